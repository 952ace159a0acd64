"""The table of runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlx.errors import ConfigError, RunDirectoryError
from rlx.tools.record import read_run
from rlx.tools.runs import find_runs, list_runs, table

from .made_runs import make_run


def dead_pid() -> int:
    program = subprocess.Popen([sys.executable, "-c", ""])
    program.wait()
    return program.pid


def names(folder: Path, **options: object) -> list[str]:
    return [record.directory.name for record in list_runs(folder, **options)[0]]  # pyright: ignore[reportArgumentType]


def test_record_tells_how_a_run_stands(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path / "run", returns=[1.0, 7.0, 5.0], seed=4, gamma=0.9))
    assert (record.algo, record.env, record.status, record.reason) == ("ppo", "CartPole", "done", None)
    assert (record.env_steps, record.total_steps, record.progress) == (300, 300, 1.0)
    assert (record.best, record.last, record.steps_per_second) == (7.0, 5.0, 200.0)
    assert record.overrides == {"seed": "4", "algo.gamma": "0.9"}


def test_run_without_a_summary_is_running_while_its_process_lives(tmp_path: Path) -> None:
    alive = read_run(make_run(tmp_path / "alive", status=None, pid=os.getpid()))
    dead = read_run(make_run(tmp_path / "dead", status=None, pid=dead_pid()))
    assert alive.status == "running"
    assert dead.status == "failed"
    assert dead.reason is not None
    assert "ended without a word" in dead.reason


def test_run_of_another_machine_is_judged_by_when_it_last_wrote(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status=None)
    (run / "log.txt").write_text((run / "log.txt").read_text().replace("host: ", "host: elsewhere-"))
    assert read_run(run).status == "running"
    for name in ("config.yaml", "metrics.csv", "log.txt"):
        os.utime(run / name, (1e9, 1e9))
    assert read_run(run).status == "failed"


def test_run_that_has_no_log_is_named_by_its_configuration(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", algo="sac", env="Pendulum-v1")
    (run / "log.txt").unlink()
    record = read_run(run)
    assert (record.algo, record.env, record.total_steps) == ("sac", "Pendulum-v1", 300)


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "deep/down/1"):
        make_run(tmp_path / name)
    make_run(tmp_path / ".hidden" / "0")
    assert [run.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["9", "10", "deep/down/1"]
    assert list(find_runs(tmp_path / "9")) == [tmp_path / "9"]


@pytest.mark.parametrize("text", ["[8,8]", "[8, 8]"])
def test_filter_finds_a_list_whether_it_was_typed_or_stands_in_a_file(tmp_path: Path, text: str) -> None:
    typed, written = make_run(tmp_path / "typed", sizes="[8,8]"), make_run(tmp_path / "written", sizes=[8, 8])
    make_run(tmp_path / "other", sizes=[8])
    (written / "log.txt").write_text((written / "log.txt").read_text().replace("algo.sizes=[8, 8]", ""))
    assert [path.name for path in (typed, written)] == names(tmp_path, where=[f"algo.sizes={text}"])


def test_filters_and_sorting(tmp_path: Path) -> None:
    make_run(tmp_path / "a", returns=[1.0], gamma=0.9)
    make_run(tmp_path / "b", returns=[3.0], algo="a2c", status="failed", reason="LossError: the loss is nan")
    make_run(tmp_path / "c", returns=[None])
    make_run(tmp_path / "d", returns=[2.0])
    assert names(tmp_path, status=["failed"]) == ["b"]
    assert names(tmp_path, where=["algo=ppo"]) == ["a", "c", "d"]
    assert names(tmp_path, where=["algo=ppo", "algo.gamma=0.990"]) == ["c", "d"]
    assert names(tmp_path, sort="best") == ["a", "d", "b", "c"]
    assert names(tmp_path, sort="best", descending=True) == ["b", "d", "a", "c"]
    with pytest.raises(ConfigError, match="--where: got 'algo', expected KEY=VALUE"):
        names(tmp_path, where=["algo"])


def test_unreadable_and_foreign_folders_are_named_and_the_rest_is_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    broken = make_run(tmp_path / "broken")
    (broken / "summary.json").write_text("{half")
    foreign_csv = make_run(tmp_path / "foreign_csv")
    (foreign_csv / "metrics.csv").write_text("a,b\n1,2\n")
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "todo.txt").write_text("x")
    (tmp_path / "notes" / "deep" / "more.txt").write_text("x")
    records, problems = list_runs(tmp_path)
    assert [record.directory.name for record in records] == ["good"]
    told = "\n".join(problems)
    assert len(problems) == 3, told
    assert all(name in told for name in ("broken", "foreign_csv", "no run of rlx; it holds todo.txt"))
    with pytest.raises(RunDirectoryError, match="there is no folder"):
        list_runs(tmp_path / "missing")


def test_table_has_a_line_a_run_and_the_reason_of_those_that_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "0", gamma=0.9)
    make_run(tmp_path / "1", status="failed", reason="LossError: the loss is nan")
    lines = list(table(list_runs(tmp_path)[0], tmp_path, 200))
    assert " ".join(lines[0].split()) == "run status algo env steps done best last steps/s overrides"
    assert " ".join(lines[1].split()) == "0 done ppo CartPole 300 100% 3 3 200 seed=0 algo.gamma=0.9"
    assert lines[3] == "    LossError: the loss is nan"
    assert all(len(line) <= 30 for line in table(list_runs(tmp_path)[0], tmp_path, 30))


def test_table_needs_neither_torch_nor_numpy_nor_yaml(tmp_path: Path) -> None:
    make_run(tmp_path / "0")
    code = (
        "import sys; from rlx.tools.runs import list_runs, table; from pathlib import Path\n"
        f"list(table(list_runs({str(tmp_path)!r})[0], Path({str(tmp_path)!r}), 99))\n"
        "print([name for name in ('torch', 'numpy', 'yaml', 'hydra', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_links_to_runs_are_runs_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one")
    gathered = tmp_path / "gathered"
    gathered.mkdir()
    (gathered / "a").symlink_to(run)
    (gathered / "round").symlink_to(gathered)
    (gathered / "folder").symlink_to(tmp_path / "runs")
    assert names(gathered) == ["a"]


def test_a_link_that_leads_in_a_circle_is_named_and_the_rest_is_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "circle").symlink_to("circle")
    records, problems = list_runs(tmp_path)
    assert [record.directory.name for record in records] == ["run"]
    assert problems == [f"{tmp_path / 'circle'}: cannot be read: Too many levels of symbolic links"]


@pytest.mark.parametrize("content", [b"", b"a: [", b"\xff\xfe", b"- 1\n"])
def test_a_run_without_a_configuration_is_listed_and_named(content: bytes, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_bytes(content)
    records, problems = list_runs(tmp_path)
    assert [record.directory for record in records] == [run]
    assert problems == [f"{run / 'config.yaml'}: holds no configuration of a run"]

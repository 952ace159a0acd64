"""`rlx runs` and `rlx plot`, called in this process."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlx.cli.report import reported_errors
from rlx.errors import CheckpointError
from rlx.run.checkpoint import find_checkpoint, prune_checkpoints
from rlx.run.ending import what_is_left
from rlx.run.launch import resume_run
from rlx.run.migrate import SCHEMA

from ..run.test_migrate import EARLY
from ..tools.made_runs import make_run
from .test_commands import call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        make_run(tmp_path / "runs" / str(seed), seed=seed)
    make_run(tmp_path / "runs" / "3", algo="a2c", status="failed", reason="LossError: the loss is nan")
    return tmp_path


def test_runs_are_listed_from_the_usual_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs", "--status", "failed") == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:2]] == [["3", "failed", "a2c"]]
    assert "LossError: the loss is nan" in out


def test_json_of_runs_is_one_object(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "note").mkdir()
    (folder / "runs" / "note" / "x.txt").touch()
    assert call("runs", "runs", "--json", "--sort", "run", "--descending") == 0
    listing = json.loads(capfd.readouterr().out)
    assert [run["run"] for run in listing["runs"]] == [f"runs/{number}" for number in (3, 2, 1, 0)]
    assert len(listing["problems"]) == 1


@pytest.mark.parametrize("command", [("runs", "odd"), ("compare", "odd/0", "odd/1")])
def test_json_of_an_infinite_metric_is_strict(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "odd" / "0", returns=[1.0, float("inf")])
    make_run(tmp_path / "odd" / "1", seed=1)

    def refuse(name: str) -> None:
        raise AssertionError(f"JSON has no {name}")

    assert call(*command, "--json") == 0
    json.loads(capfd.readouterr().out, parse_constant=refuse)


def test_no_runs_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs", "--where", "algo=sac") == 0
    assert capsys.readouterr() == ("", "no runs in 'runs' that fit\n")
    assert call("runs", "nowhere") == 2
    assert "there is no folder 'nowhere'" in capsys.readouterr().err


def test_plot_names_its_picture_and_what_it_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    make_run(folder / "runs" / "4", seed=4, returns=[None])
    assert call("plot", "runs", "--by", "algo.gamma", "--statistic", "iqm") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "curves.png"
    assert "left out" in err
    assert (folder / "curves.png").exists()


def test_plot_of_nothing_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plot", "runs", "--metric", "evl/return") == 2
    assert capsys.readouterr().err.startswith("Error: --metric: no run has 'evl/return'")
    assert call("plot", "runs", "--scale", "x") == 2
    assert "ENV=LOW:HIGH" in capsys.readouterr().err


def test_compare_shows_settings_beside_results(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_run(folder / "other" / "0", returns=[9.0], seed=0, gamma=0.9)
    assert call("compare", "runs/0", "other/0") == 0
    lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    assert "algo.gamma 0.99 0.9" in lines
    assert "total_steps 300 100" in lines
    assert "best episode/return 3 9 +6" in lines
    assert not any(line.startswith(("run_dir", "seed", "algo.learning_rate")) for line in lines)
    assert call("compare", "runs/0", "other", "--json") == 0
    assert json.loads(capfd.readouterr().out)["config"]["algo.gamma"] == [[0.99], [0.9]]


def test_compare_takes_the_means_of_folders(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed, value in enumerate((2.0, 6.0)):
        make_run(folder / "other" / str(seed), returns=[value, None], seed=seed)
    assert call("compare", "runs/1", "other", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["runs"] == [1, 2]
    assert found["results"]["last"] == [3.0, 4.0]
    assert found["config"]["seed"] == [[1], [0, 1]]
    assert call("compare", "runs/1", str(folder / "other" / "nothing")) == 2


def test_runs_of_an_older_rlx_are_read_and_told_of_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("4", "5"):
        shutil.copytree(EARLY, folder / "runs" / name)
    assert call("compare", "runs/4", "runs", "--json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert [note.split(" was written by")[0] for note in found["notes"]] == ["'runs/4/config.yaml'"]
    assert found["notes"][0].endswith("(and 2 others likewise)")
    assert err.splitlines() == found["notes"]
    assert call("runs", "--where", "algo.epsilon_spread=0", "--json") == 0
    listed = json.loads(capfd.readouterr().out)
    assert [run["run"] for run in listed["runs"]] == ["runs/4", "runs/5"]
    assert [line.endswith("(and 1 other likewise)") for line in listed["problems"]] == [True]
    pytest.importorskip("matplotlib")
    assert call("plot", "runs/4", "runs/5") == 0
    assert capfd.readouterr().err.count("older rlx") == 1


def test_a_run_of_a_newer_rlx_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "runs" / "2" / "config.yaml"
    path.write_text(path.read_text().replace(f"schema: {SCHEMA}", "schema: 99"))
    assert call("runs") == 0
    assert "runs/2/config.yaml' has format version 99, written by a newer rlx" in capsys.readouterr().err
    assert call("compare", "runs/0", "runs/2") == 2
    assert "has format version 99" in capsys.readouterr().err
    assert call("plot", "runs") == 0
    assert f"left out: '{path}' has format version 99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs", "--where", "algo.gama=1"), "--where: no run has a key 'algo.gama'. Did you mean 'algo.gamma'?"),
        (
            ("runs", "--metric", "episode/retrun"),
            "--metric: no run has 'episode/retrun'. Did you mean 'episode/return'?",
        ),
        (("compare", "runs/0", "runs/1", "--metric", "eval/return"), "--metric: no run has 'eval/return'."),
        (("plot", "runs", "--out", "no/x.png"), "--out: cannot write 'no/x.png': there is no folder 'no'"),
        (("plot", "runs", "--out", "here.png"), "--out: cannot write 'here.png': it is a folder; expected a file"),
        (("eval", "runs/0", "--csv", "no/x.csv"), "--csv: cannot write 'no/x.csv': there is no folder 'no'"),
        (("eval", "runs/0", "--config-dir", "no"), "--config-dir: there is no directory 'no'"),
        (("export", "runs/0", "--config-dir", "no"), "--config-dir: there is no directory 'no'"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (folder / "here.png").mkdir()
    if arguments[0] in ("plot", "export"):
        pytest.importorskip({"plot": "matplotlib", "export": "onnxscript"}[arguments[0]])
    assert call(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"Error: {message}")


@pytest.mark.parametrize("path", ["/proc/none.png", "x" * 300 + ".png", "~nobody-of-this-name/x.png"])
def test_a_bad_path_is_one_line_and_status_2_whichever_command_and_argument(
    folder: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("imageio_ffmpeg")
    for arguments in (
        ("plot", "runs", "--out", path),
        ("eval", "runs/0", "--csv", path),
        ("eval", "runs/0", "--video", path.replace("png", "mp4")),
        ("export", "runs/0", "--format", "torchscript", "--output", path),
        ("runs", path),
        ("plot", path),
        ("compare", path, "runs/0"),
        ("eval", path),
        ("export", path, "--format", "torchscript"),
        ("submit", "--config-dir", path, "--dry-run", "--", "seed=1"),
    ):
        assert call(*arguments) == 2, arguments
        err = capsys.readouterr().err
        assert (err.startswith("Error: "), err.count("\n")) == (True, 1), arguments
    assert sorted(name for name in os.listdir(folder)) == ["runs"]


def test_a_picture_that_does_not_fit_on_the_disk_leaves_the_old_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert call("plot", "runs", "--out", "it.png") == 0
    before = (folder / "it.png").read_bytes()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        assert call("plot", "runs", "--out", "it.png", "--each") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == "Error: cannot write 'it.png': File too large\n"
    assert (folder / "it.png").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["it.png", "runs"]


def test_filters_that_fit_no_run_are_no_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs", "--where", "algo.gamma=0.5") == 0
    assert call("runs", "--where", "seed=7") == 0


@pytest.fixture
def of_others(capfd: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """Give a folder of runs, the second of which belongs to others: this process may not even look into it."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        for seed in range(2):
            make_run(top / str(seed), seed=seed)
        assert call("runs", name) == 0  # imports what it takes while all may be read
        capfd.readouterr()
        (top / "1").chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield top
        finally:
            if root:
                os.seteuid(0)
            (top / "1").chmod(0o755)


def test_a_folder_of_others_is_told_and_the_rest_is_listed(of_others: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("runs", str(of_others)) == 0
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["0"]
    assert err == f"{of_others}/1: cannot be read: Permission denied\n"


def test_what_may_not_be_read_is_one_line(of_others: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, reported_errors():
        resume_run(of_others / "1", {}, tell=print)
    assert end.value.code == 2
    assert capfd.readouterr().err == f"Error: '{of_others}/1' cannot be read: Permission denied\n"
    for path in (of_others / "1", of_others / "1" / "checkpoints" / "step-000000100"):
        with pytest.raises(CheckpointError, match=f"'{path}' cannot be read: Permission denied"):
            find_checkpoint(path)


def test_checkpoints_that_may_not_be_read_are_not_said_to_be_missing(of_others: Path) -> None:
    run, folder = of_others / "0", of_others / "0" / "checkpoints"
    root, somebody = os.getuid() == 0, os.geteuid()

    def protect(mode: int) -> None:
        if root:
            os.seteuid(0)
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        os.seteuid(somebody)

    protect(0)
    try:
        message = f"'{folder}' cannot be read: Permission denied"
        with pytest.raises(CheckpointError, match=message):
            find_checkpoint(run)
        assert what_is_left(run, 3000, None) == f"The run ended at 3,000 steps; {message}."
        prune_checkpoints(run, 1)  # what cannot be seen, stays
    finally:
        protect(0o755)


def test_what_an_algorithm_may_not_do_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), reported_errors():
        raise PermissionError(13, "Permission denied", str(tmp_path))

"""The real program in a process of its own: few, for each takes a second or more."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rlx.run.metrics import read_metrics
from rlx.run.sweep import Sweep
from tests.env.environments import CountsUp
from tests.program import COMMAND, ENVIRONMENT, ROOT, SMALL, left_in, rlx, train_here, training


def test_help_answers_at_once_and_without_torch(tmp_path: Path) -> None:
    seconds: list[float] = []
    for _ in range(3):
        start = os.times()
        done = rlx(tmp_path, "--help")
        end = os.times()  # the processor's time: what else the machine does is not rlx's
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "eval", "bench", "list"))
    assert min(seconds) < 0.3
    code = (
        "import sys\nfrom rlx.cli.main import main\nsys.argv = ['rlx', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'hydra', 'gymnasium', 'rich', 'numpy', 'optuna') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert loaded.stdout.splitlines()[-1] == "[]"


def test_version_is_one_line(tmp_path: Path) -> None:
    import rlx as package

    done = rlx(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"rlx {package.__version__}\n")


def test_bad_input_from_a_shell_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    for argument, beginning in (("algo.gama=1", "Error: algo.gama=1: "), ("algo.gamma=2", "Error: algo.gamma: ")):
        done = rlx(tmp_path, "train", argument)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(beginning)
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        assert left_in(tmp_path) == []


def test_eval_from_a_shell_draws_actions_only_where_it_is_asked_to(tmp_path: Path) -> None:
    # A policy as training begins, nearly uniform: what it draws is rarely what it likes best.
    assert train_here("algo.learning_rate=1e-9", f"run_dir={tmp_path / 'run'}") == 0
    found = {}
    for options in ("", "--stochastic"):
        done = rlx(tmp_path, "eval", "run", *options.split(), "--episodes", "8", "--json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        result = found[options] = json.loads(done.stdout)
        assert set(result) >= {"episodes", "mean", "std", "returns", "lengths", "env_steps", "deterministic"}
        assert result["episodes"] == len(result["returns"]) == len(result["lengths"]) == 8
        assert result["mean"] == pytest.approx(sum(result["returns"]) / 8)
        assert result["deterministic"] == (not options)
    drawn = found["--stochastic"]
    assert drawn["returns"] != found[""]["returns"]
    told = rlx(tmp_path, "eval", "run/checkpoints/step-000000064", "--stochastic", "--episodes", "8")
    assert told.stdout.startswith(f"return {drawn['mean']:.2f} ± {drawn['std']:.2f} over 8 episodes")
    assert left_in(tmp_path) == []


def test_configuration_is_shown_from_a_shell_and_nothing_is_run(tmp_path: Path) -> None:
    shown = rlx(tmp_path, "train", "env=Pendulum", "algo.gamma=0.5", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert "  id: Pendulum-v1" in lines
    assert "  gamma: 0.5" in lines
    assert not any(line.startswith("hydra") for line in lines)
    tree = rlx(tmp_path, "train", "experiment=ppo_acrobot", "--info", "defaults-tree")
    assert tree.returncode == 0, tree.stderr
    assert "experiment: ppo_acrobot" in tree.stdout
    everything = rlx(tmp_path, "train", "--info")
    assert everything.returncode == 0, everything.stderr
    assert "Config search path" in everything.stdout
    assert "total_steps: 60000" in everything.stdout
    assert list(tmp_path.iterdir()) == []
    assert left_in(tmp_path) == []


def test_jobs_of_a_multirun_and_where_they_lie(tmp_path: Path) -> None:
    done = rlx(tmp_path, "train", "-m", *SMALL, "batcher=local", "seed=0,1", "run_dir='all of them'")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["all of them"]
    assert sorted(path.name for path in (tmp_path / "all of them").iterdir()) == ["0", "1", "jobs", "multirun.yaml"]
    for number in ("0", "1"):
        log = (tmp_path / "all of them" / number / "log.txt").read_text()
        assert f" seed={number} " in next(line for line in log.splitlines() if " command: rlx train " in line)


def test_multirun_in_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "metrics.csv").write_text("another run's\n")
    done = rlx(tmp_path, "train", "-m", *SMALL, "seed=0,1", "run_dir=here")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("Error: run_dir: 'here' exists already")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["metrics.csv"]


@pytest.fixture
def heeds_hangups() -> Iterator[None]:
    """What is started hears of a closed terminal also where the tests themselves run below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeds_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_that_reaches_the_workers_too_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with training(tmp_path, "run_dir=run", "checkpoint.minutes=0") as program:
        os.killpg(program.pid, number)
        assert program.wait(60) == 143
    log = (tmp_path / "run/log.txt").read_text()
    assert "WARNING" not in log
    assert left_in(tmp_path) == []
    steps = json.loads((tmp_path / "run/summary.json").read_text())["checkpoint"]
    done = rlx(tmp_path, "train", "resume=run", f"total_steps={steps + 1}")
    assert done.returncode == 0, done.stderr
    assert "exact=true" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.usefixtures("heeds_hangups")
@pytest.mark.parametrize(
    ("how", "steps", "status", "summary"),
    [
        ('exec "$@" <{0} >{0} 2>{0}', 100_000_000, 143, "stopped"),
        ('exec nohup "$@" <{0} >/dev/null 2>&1', 20_000, 0, "done"),
    ],
)
def test_a_run_whose_terminal_is_closed_ends_behind_a_checkpoint_and_below_nohup_it_goes_on(
    tmp_path: Path, how: str, steps: int, status: int, summary: str
) -> None:
    master, terminal = pty.openpty()
    words = ["run_dir=run", f"total_steps={steps}", "checkpoint.minutes=0", "batcher=local"]
    shell = ["sh", "-c", how.format(os.ttyname(terminal)), "sh"]  # whoever leads a session and opens a terminal has it
    program = subprocess.Popen(
        [*shell, *COMMAND, "train", *SMALL, *words], cwd=tmp_path, env=ENVIRONMENT, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/metrics.csv").exists() and time.monotonic() < deadline:
        if select.select([master], [], [], 0.05)[0]:
            os.read(master, 1 << 16)
    os.close(terminal)
    os.close(master)
    assert program.wait(90) == status
    told = json.loads((tmp_path / "run/summary.json").read_text())
    assert told["status"] == summary
    assert told["checkpoint"] == told["env_steps"] > 0


SHOWING = [("list", "algos"), ("train", "--help"), ("train", "--cfg", "job"), ("train", "--info", "defaults")]


@pytest.mark.parametrize("arguments", SHOWING, ids=" ".join)
def test_standard_output_that_takes_nothing_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
    if "--info" in arguments:  # is shown by way of logging, on standard error
        assert "Traceback" not in done.stderr
        return
    assert (done.returncode, done.stderr) == (1, "Error: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", SHOWING[1:3], ids=" ".join)
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, cwd=tmp_path,
        env=ENVIRONMENT,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_result_is_shown_where_the_terminal_does_not_know_all_its_signs(tmp_path: Path) -> None:
    assert rlx(tmp_path, "train", *SMALL, "batcher=local", "run_dir=run").returncode == 0
    done = subprocess.run(
        [*COMMAND, "eval", "run", "--episodes", "2"], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, "\\xb1" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_closed_do_no_harm(tmp_path: Path, closed: str) -> None:
    train = [*COMMAND, "train", *SMALL, "run_dir=run"]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *train],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "done"
    assert left_in(tmp_path) == []


def test_failed_job_of_a_multirun_from_a_shell_leaves_the_others_whole(tmp_path: Path) -> None:
    done = rlx(tmp_path, "train", "-m", *SMALL, "batcher=local", "algo.gamma=0.9,2,0.8", "run_dir=runs")
    assert done.returncode == 1
    assert "Error: algo.gamma: expected a number in [0, 1], got 2." in done.stderr
    assert "Job 1 failed: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["0", "2", "jobs", "multirun.yaml"]
    assert left_in(tmp_path) == []


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs rlx[joblib]")
def test_joblib_launcher_runs_jobs_with_worker_processes_of_their_own(tmp_path: Path) -> None:
    launcher = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = rlx(tmp_path, "train", *launcher, *SMALL, "seed=0,1", "run_dir=runs")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for number in ("0", "1"):
        directory = tmp_path / "runs" / number
        assert json.loads((directory / "summary.json").read_text())["status"] == "done"
        assert [row["env_steps"] for row in read_metrics(directory / "metrics.csv")] == [64]
        assert (
            f" command: rlx train batcher.envs_per_worker=2 algo.num_steps=16 total_steps=64 seed={number} "
            in (directory / "log.txt").read_text()
        )
    first, second = (read_metrics(tmp_path / "runs" / number / "metrics.csv")[0]["loss/value"] for number in "01")
    assert first != second
    assert left_in(tmp_path) == []


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs rlx[joblib]")
def test_jobs_of_joblib_save_and_end_when_their_command_is_killed(tmp_path: Path) -> None:
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "batcher=local", "seed=0,1", "run_dir=runs"]
    with training(tmp_path, "-m", *words, "checkpoint.every=1024") as program:
        assert program.stdout is not None
        for _ in program.stdout:
            if all((tmp_path / "runs" / number / "checkpoints").is_dir() for number in "01"):
                break
        program.kill()
        assert left_in(tmp_path, seconds=60.0) == []
    assert [job.reason for job in Sweep(tmp_path / "runs").jobs()] == ["stopped by SIGTERM"] * 2


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs rlx[joblib]")
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # a scheduler's, and a terminal's Ctrl-C
def test_jobs_of_joblib_save_before_a_signal_ends_their_command(send: Any, tmp_path: Path) -> None:
    number = signal.SIGTERM if send is os.kill else signal.SIGINT
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "batcher=local", "seed=0,1,2,3", "run_dir=runs"]
    with training(tmp_path, "-m", *words) as program:
        assert program.stdout is not None
        for _ in program.stdout:
            if all((tmp_path / "runs" / job / "metrics.csv").is_file() for job in "01"):
                break
        send(program.pid, number)
        assert program.wait(30) == (143 if send is os.kill else 130)
        assert program.stdout.read().splitlines()[-1] == f"Interrupted: stopped by {number.name}."
    assert left_in(tmp_path, seconds=10.0) == []
    assert [job.state for job in Sweep(tmp_path / "runs").jobs()] == ["stopped", "stopped", "pending", "pending"]
    for job in "01":
        assert list((tmp_path / "runs" / job / "checkpoints").glob("step-*"))


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is not None, reason="rlx[joblib] is installed")
def test_joblib_launcher_that_is_not_installed_is_told(tmp_path: Path) -> None:
    done = rlx(tmp_path, "train", "-m", "hydra/launcher=joblib", "seed=0,1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'rlx[joblib]'" in done.stderr


class Wanders(CountsUp):
    """Changes the working directory of its process, as some do that read their files by relative paths."""

    def __init__(self, to: str) -> None:
        self.to = to

    def reset(self, **keywords: Any) -> Any:
        os.chdir(self.to)
        return super().reset(**keywords)


gymnasium.register("Wanders-v0", entry_point=Wanders)


def test_an_environment_that_changes_the_working_directory_moves_no_run(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    env = ["env=gym", f"env.id={__name__}:Wanders-v0", f"+env.kwargs.to={elsewhere}", "batcher=local"]
    done = rlx(here, "train", *SMALL, *env, "-m", "seed=0,1", "run_dir=many")
    assert done.returncode == 0, done.stderr
    assert all((here / "many" / job / "summary.json").exists() for job in "01")
    assert not list(elsewhere.iterdir())

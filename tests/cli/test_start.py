"""The start of `rlx train`: it ends the server that it started and no other, and a signal ends it, whatever comes."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from rlx.cli.start import run_job, run_train
from rlx.run.sweep import Sweep

ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
import multiprocessing, os, sys
from multiprocessing import forkserver
from rlx.cli.start import run_job, run_train
from rlx.run.sweep import Sweep

def server():
    return forkserver._forkserver._forkserver_pid

def runs(pid):
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False

if __name__ == "__main__":
    own = None
    if sys.argv[1] == "own":
        context = multiprocessing.get_context("forkserver")
        reader, writer = context.Pipe()
        child = context.Process(target=reader.recv)  # lives until it is told something
        child.start()
        own = server()
        assert own is not None
    small = ["batcher.envs_per_worker=2", "algo.num_steps=16", "total_steps=64", "logger=csv"]
    for name in ("first", "second"):
        run_train([*small, f"run_dir={name}"])
        assert os.path.exists(f"{name}/summary.json")
        assert server() == own, (server(), own)
    if own is not None:
        assert runs(own)
        assert child.is_alive()
        writer.send("end")
        child.join(10)
        assert child.exitcode == 0, child.exitcode  # which the server tells: it works
"""


def train_in_process(directory: Path, kind: str) -> None:
    program = directory / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), kind],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_server_of_the_calling_program_stays(tmp_path: Path) -> None:
    train_in_process(tmp_path, "own")


def test_server_that_training_started_ends_with_it(tmp_path: Path) -> None:
    train_in_process(tmp_path, "none")


SIGNALLED = """
import os, signal, torch

class Sequence:
    def __len__(self):
        return 1

    def __getitem__(self, place):
        if place:
            raise IndexError(place)
        os.kill(os.getpid(), signal.{name})
        return 0

torch.tensor(Sequence())  # torch asks for an item, and makes an error of its own of whatever that raises
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
def test_error_that_torch_makes_of_a_signal_is_still_the_signal(
    name: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / f"signalled_by_{name}.py").write_text(SIGNALLED.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
    request.addfinalizer(partial(signal.signal, signal.SIGINT, given))
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(SystemExit) as end:
        run_train(["batcher=local", f"agent._target_=signalled_by_{name}.Agent", f"run_dir={tmp_path / 'run'}"])
    assert (end.value.code, capsys.readouterr().err) == (status, f"Interrupted: stopped by {name}.\n")
    assert signal.getsignal(getattr(signal, name)) is before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_that_an_import_drops_is_obeyed_before_there_is_a_directory(
    name: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    drops = f"""import os
import signal
from contextlib import suppress

from rlx.agent import ActorCritic as Agent

with suppress(BaseException):  # as torch does while it imports NumPy
    os.kill(os.getpid(), signal.{name})
"""
    (tmp_path / f"drops_{name}.py").write_text(drops)
    monkeypatch.syspath_prepend(tmp_path)
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
    request.addfinalizer(partial(signal.signal, signal.SIGINT, given))
    with pytest.raises(SystemExit) as end:
        run_train(
            ["batcher=local", f"agent._target_=drops_{name}.Agent", f"run_dir={tmp_path / 'run'}", "total_steps=1"]
        )
    assert (end.value.code, capsys.readouterr().err) == (status, f"Interrupted: stopped by {name}.\n")
    assert not (tmp_path / "run").exists()


def test_job_of_a_sweep_whose_signal_torch_made_an_error_of_was_stopped_and_goes_back_into_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "signalled_job.py").write_text(SIGNALLED.format(name="SIGUSR1"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    sweep = Sweep(tmp_path / "sweep")
    sweep.ask([["batcher=local", "agent._target_=signalled_job.Agent"]], flags=[])
    with pytest.raises(SystemExit) as end:
        run_job(sweep.directory, 0, requeue=True)
    told = "this is no job of SLURM: it is not put into a queue\nInterrupted: stopped by SIGUSR1.\n"
    assert (end.value.code, capsys.readouterr().err) == (143, told)
    assert [(attempt["state"], attempt["reason"]) for attempt in sweep.job(0).attempts] == [
        ("stopped", "stopped by SIGUSR1")
    ]

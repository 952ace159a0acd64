"""The whole command in processes of its own: how it ends, and what it leaves."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from rlx.cli.main import main; main()", "train"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SMALL = ["batcher.envs_per_worker=2", "algo.num_steps=16", "total_steps=64"]


def rlx_train(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *SMALL, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, env=ENVIRONMENT
    )


def own(name: str) -> list[str]:
    return ["env=gym", f"env.id=tests.run.short_and_long:{name}-v0"]


def left_in(directory: Path, seconds: float = 5.0) -> list[str]:
    """Return the processes that still work in `directory` after so long; those that are just ending are waited for."""
    found: list[str] = []
    deadline = time.monotonic() + seconds
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve(strict=True) == directory:
                command = (process / "cmdline").read_text().replace("\0", " ")
                handle = os.pidfd_open(int(process.name))
                ended, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
                os.close(handle)
                found += [] if ended else [command]
    return found


def test_constructor_that_raises_shows_its_traceback_and_where(tmp_path: Path) -> None:
    done = rlx_train(tmp_path, *own("Raises"))
    assert done.returncode == 1
    assert "ZeroDivisionError: no such level" in done.stderr
    assert "short_and_long.py" in done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("Error: ")
    assert "Raises-v0" in message
    assert "worker" in message
    assert list(tmp_path.iterdir()) == []
    assert left_in(tmp_path) == []


def test_unsupported_space_is_refused_by_name(tmp_path: Path) -> None:
    done = rlx_train(tmp_path, *own("Unsupported"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Text" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert left_in(tmp_path) == []


def test_observation_that_is_nan_ends_a_run_that_had_begun(tmp_path: Path) -> None:
    done = rlx_train(tmp_path, *own("ShowsNaN"), "run_dir=run")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("Error: ")
    assert "NaN" in message or "nan" in message
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("EnvironmentFault: ")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert left_in(tmp_path) == []


def test_run_directory_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = rlx_train(tmp_path, "run_dir=run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("Error: run_dir: ")
    assert list((tmp_path / "run").iterdir()) == []
    assert left_in(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_device_that_is_not_here_is_refused(tmp_path: Path) -> None:
    done = rlx_train(tmp_path, "device=cuda")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("Error: device: got 'cuda'")
    assert list(tmp_path.iterdir()) == []
    assert left_in(tmp_path) == []


def test_run_that_ends_well_leaves_no_process(tmp_path: Path) -> None:
    done = rlx_train(tmp_path, "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "done"
    assert left_in(tmp_path) == []


def test_ctrl_c_ends_a_run_with_a_checkpoint_and_a_summary(tmp_path: Path) -> None:
    arguments = ["run_dir=run", "total_steps=100_000_000", "algo.num_steps=64"]
    program = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        ready, _, _ = select.select([program.stdout], [], [], 60)  # the first plain line follows the first iteration
        assert ready
        start = time.monotonic()
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: every process gets it
        output, _ = program.communicate(timeout=30)
        seconds = time.monotonic() - start
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 130, output
    assert "Traceback" not in output
    assert seconds < 6
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "stopped"
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert checkpoint.name == f"step-{summary['checkpoint']:09d}"
    assert summary["checkpoint"] == summary["env_steps"] > 0
    assert left_in(tmp_path) == []

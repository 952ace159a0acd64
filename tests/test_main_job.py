"""The whole command in processes of its own: how it ends, and what it leaves."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.program import left_in, own, rlx_train, training


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
    with training(tmp_path, "run_dir=run") as program:
        start = time.monotonic()
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: every process gets it
        output, _ = program.communicate(timeout=30)
        seconds = time.monotonic() - start
    assert program.returncode == 130, output
    assert "Traceback" not in output
    assert seconds < 6
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "stopped"
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert checkpoint.name == f"step-{summary['checkpoint']:09d}"
    assert summary["checkpoint"] == summary["env_steps"] > 0
    assert (tmp_path / "run/log.txt").read_text().splitlines()[-1].find(" INFO stopped by SIGINT at ") > 0
    assert left_in(tmp_path) == []

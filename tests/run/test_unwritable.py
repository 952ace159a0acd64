"""Runs whose disk is full, or whose directory somebody removes: what the user hears, and what is left."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from rlx.run.checkpoint import list_checkpoints, load_checkpoint, step_of
from rlx.run.metrics import read_metrics
from tests.program import left_in, own, rlx_train, training


def full(tmp_path: Path, at_step: int, limit: int, *arguments: str) -> str:
    """Train with three files at most so large, and return the one message."""
    room = [f"+env.kwargs.at_step={at_step}", f"+env.kwargs.limit={limit}"]
    done = rlx_train(tmp_path, *own("FillsDisk"), *room, "total_steps=640", "run_dir=run", *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *progress, message = done.stderr.splitlines()
    assert all("steps" in line or "the run goes on" in line for line in progress)
    assert message.startswith("Error: ")
    assert left_in(tmp_path) == []
    return message.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("file", "other"), [("metrics.csv", "logger=csv"), ("tensorboard/events.", "logger=tensorboard")]
)
def test_row_that_does_not_fit_ends_the_run_and_earlier_rows_and_checkpoints_stay(
    tmp_path: Path, file: str, other: str
) -> None:
    message = full(tmp_path, 40, 1000, "checkpoint.every=64", other)  # the third iteration: 128 steps are behind it
    assert message.startswith(f"cannot write '{tmp_path}/run/{file}")
    # The checkpoint of 128 steps was being written when the disk filled up: it is whole, or it is not there.
    kept = list_checkpoints(tmp_path / "run")
    last, names = kept[-1], ["step-000000064", "step-000000128"]
    assert message.endswith(f": File too large. The run ended at 192 steps; its last checkpoint is '{last}'.")
    assert [path.name for path in kept] in (names[:1], names)
    assert load_checkpoint(last).meta["env_steps"] == step_of(last)
    assert not list((tmp_path / "run").rglob(".*"))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["env_steps"], summary["checkpoint"]) == ("failed", 192, step_of(last))
    assert summary["reason"].startswith("RunWriteError: cannot write ")
    if file == "metrics.csv":
        assert [row["env_steps"] for row in read_metrics(tmp_path / "run/metrics.csv")] == [64, 128]


def test_second_checkpoint_in_turn_that_does_not_fit_ends_the_run_and_earlier_ones_stay(tmp_path: Path) -> None:
    message = full(tmp_path, 40, 10_000, "checkpoint.every=64")
    assert message.startswith(f"cannot write checkpoint '{tmp_path}/run/checkpoints/step-000000")
    kept = list_checkpoints(tmp_path / "run")
    assert 0 < step_of(kept[-1]) < 192
    assert load_checkpoint(kept[-1]).meta["env_steps"] == step_of(kept[-1])
    assert message.endswith(f"its last checkpoint is '{kept[-1]}'.")
    assert not list((tmp_path / "run").rglob(".*"))
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("the run goes on, and ends if the next checkpoint cannot be written either") == 1
    assert "ERROR failed at " in log
    assert "RunWriteError: cannot write checkpoint" in log


def test_run_that_has_no_room_to_begin_leaves_nothing(tmp_path: Path) -> None:
    message = full(tmp_path, 0, 100)
    assert message == f"cannot write '{tmp_path}/run/config.yaml': File too large; no run was started"
    assert list(tmp_path.iterdir()) == []


def test_run_whose_directory_was_removed_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with training(tmp_path / "work", "run_dir=run") as program:
        shutil.rmtree(tmp_path / "work")
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=30)
    assert program.returncode == 1
    assert "Traceback" not in output
    message = output.splitlines()[-1]
    assert message.startswith(f"Error: cannot write '{tmp_path}/work/run/")
    assert f"asked to by SIGTERM; its directory '{tmp_path}/work/run' is gone." in message
    assert not (tmp_path / "work").exists()
    assert left_in(tmp_path / "work") == []


def test_run_whose_working_directory_was_removed_ends_as_ever(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with training(tmp_path / "work", f"run_dir='{tmp_path}/run'") as program:
        shutil.rmtree(tmp_path / "work")
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=30)
    assert program.returncode == 143
    assert output.splitlines()[-1] == "Interrupted: stopped by SIGTERM."
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["checkpoint"]) == ("stopped", summary["env_steps"])
    assert left_in(tmp_path / "work") == []

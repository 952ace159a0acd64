"""Evaluation of runs from outside, with real checkpoints."""

from pathlib import Path

import pytest

from rlx.errors import CheckpointError
from rlx.tools.evaluate import evaluate_paths

from ..program import rlx_train
from .made_runs import make_run


def test_all_checkpoints_of_a_run_make_a_curve_over_the_same_episodes(tmp_path: Path) -> None:
    done = rlx_train(tmp_path, "run_dir=run", "batcher=local", "checkpoint.every=32")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    found = evaluate_paths([run], all_checkpoints=True, episodes=3)
    assert [one["env_steps"] for one in found] == [32, 64]
    assert [Path(one["path"]).name for one in found] == ["step-000000032", "step-000000064"]
    (newest,) = evaluate_paths([run], episodes=3)
    assert newest["path"] == str(run)
    assert newest["returns"] == found[1]["returns"]
    low, high = newest["interval"]
    assert min(newest["returns"]) <= low <= newest["mean"] <= high <= max(newest["returns"])
    assert newest["median"] == sorted(newest["returns"])[1]


def test_run_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="run' has no checkpoint"):
        evaluate_paths([make_run(tmp_path / "run")], all_checkpoints=True)

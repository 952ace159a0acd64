"""Rows of metrics that stand for several iterations."""

from pathlib import Path

import pytest

from rlx.run.averages import Averages
from rlx.run.metrics import read_metrics
from tests.run.jobs import SMALL, train


def test_terms_are_averaged_over_the_iterations_that_reported_them_and_counts_keep_the_newest() -> None:
    averages = Averages()
    averages.add({"dqn/buffer": 8}, 8)
    averages.add({"dqn/buffer": 16, "loss/total": 1.0}, 8)
    averages.add({"dqn/buffer": 24, "loss/total": 2.0}, 8)
    assert averages.env_steps == 24
    assert averages.take() == {"dqn/buffer": 24, "loss/total": 1.5}
    assert not averages
    assert averages.take() == {}


def test_rows_are_written_by_environment_steps_with_means_and_the_last_one_always(tmp_path: Path) -> None:
    # 64 steps an iteration, 10 of them: rows are due when 150, 300, 450 and 600 are passed, and at the end.
    each = read_metrics(train(tmp_path / "each", *SMALL, "total_steps=640") / "metrics.csv")
    few = read_metrics(train(tmp_path / "few", *SMALL, "total_steps=640", "logger.every=150") / "metrics.csv")
    assert [row["env_steps"] for row in few] == [192, 320, 512, 640]
    assert [row["iteration"] for row in few] == [3, 5, 8, 10]
    first = [float(row["loss/total"] or 0) for row in each[:3]]
    assert few[0]["loss/total"] == pytest.approx(sum(first) / 3)
    assert [row["episode/count"] for row in few] == [each[place]["episode/count"] for place in (2, 4, 7, 9)]

"""Rows of metrics that stand for several iterations."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlx.batcher.episode_log import EpisodeLog
from rlx.errors import UserError
from rlx.run.agreement import Iteration
from rlx.run.averages import Averages, number_of
from rlx.run.metrics import read_metrics
from rlx.run.migrate import bring_state_up_to_date
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


def test_means_are_over_what_is_a_number_and_equal_numbers_stay_themselves() -> None:
    averages = Averages()
    for value in (math.nan, 1.0, 2.0):
        averages.add({"explained_variance": value, "never": math.nan, "clip_coef": 0.1, "huge": math.inf}, 8)
    assert averages.take() == {
        "explained_variance": 1.5,
        "never": pytest.approx(math.nan, nan_ok=True),
        "clip_coef": 0.1,  # a third of the sum would be 0.10000000000000002
        "huge": math.inf,
    }


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"my/q": torch.zeros(3)}, r"run\.log: 'my/q' is a Tensor of shape \[3\], expected a number or a 0-dim"),
        ({"my/name": "gru"}, r"run\.log: 'my/name' is a str, expected a number"),
        ({"iteration": 3}, r"run\.log: 'iteration' is the run's own column; expected another name, such as 'my/it"),
    ],
)
def test_what_is_no_number_and_the_runs_own_columns_are_refused_by_name(term: dict[str, Any], message: str) -> None:
    for take in (partial(Averages().add, term, 8), partial(number_of, *next(iter(term.items())))):
        with pytest.raises(UserError, match=message):
            take()


@pytest.mark.parametrize("env_steps", [torch.tensor(8), 8.0, -8, "8"])
def test_steps_that_cannot_be_counted_are_refused_as_they_are_reported(env_steps: Any) -> None:
    with pytest.raises(UserError, match=r"run\.log: env_steps is .*8.*, expected an integer >= 0, such as traj"):
        Iteration({}, env_steps, 0, EpisodeLog(), None, False, 0, 0)


def test_a_loss_that_was_not_detached_is_taken_without_a_warning() -> None:
    averages = Averages()
    averages.add({"loss/total": torch.tensor(2.0, requires_grad=True)}, 8)
    assert averages.take() == {"loss/total": 2.0}


def test_a_row_under_way_goes_on_as_it_was() -> None:
    terms = [{"loss/total": 0.1, "x": math.nan}, {"loss/total": 0.7, "x": 2.0}, {"loss/total": 1.3, "x": 0.5}]
    straight, first, second = Averages(), Averages(), Averages()
    for one in terms:
        straight.add(one, 8)
    first.add(terms[0], 8)
    second.load_state_dict(first.state_dict())
    for one in terms[1:]:
        second.add(one, 8)
    assert second.state_dict() == straight.state_dict()
    assert second.take() == straight.take()


def test_a_row_that_an_older_rlx_was_under_way_with_goes_on() -> None:
    state = {"run": {"counters": {"averages": {"env_steps": 16, "sums": {"x": 3.0}, "counts": {"x": 2}}}}}
    bring_state_up_to_date(state, {}, 4)
    averages = Averages()
    averages.load_state_dict(state["run"]["counters"]["averages"])
    averages.add({"x": 3.0}, 8)
    assert averages.take() == {"x": 2.0}

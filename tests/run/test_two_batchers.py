"""A run whose algorithm tracks a second batcher goes on exactly, or says what begins anew."""

import logging
from functools import partial
from pathlib import Path

import pytest

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import make
from rlx.errors import UserError
from rlx.run.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from rlx.run.metrics import read_metrics
from rlx.run.tracked import state_of
from tests.run.jobs import train
from tests.run.resuming import end_of, job, resume, stopped_at

TWO = [
    *(word for word in job("ppo") if not word.startswith("algo")),
    *("~algo", "+algo._target_=tests.run.two_batchers.train", "+algo.num_steps=20", "total_steps=960"),
]


def test_a_run_with_two_batchers_that_is_resumed_equals_one_never_stopped(tmp_path: Path, caplog) -> None:
    whole = train(tmp_path / "whole", *TWO, "+algo.publish=true")
    assert all(row["first"] != row["second"] for row in read_metrics(whole / "metrics.csv"))
    with caplog.at_level(logging.WARNING):
        resume(stopped_at(whole, tmp_path / "run", 320))
    assert "exact=false" not in caplog.text
    assert end_of(tmp_path / "run") == end_of(whole)


def test_a_second_batcher_that_begins_anew_is_named(tmp_path: Path, caplog) -> None:
    whole = train(tmp_path / "whole", *TWO, "+algo.publish=true")
    found = load_checkpoint(find_checkpoint(stopped_at(whole, tmp_path / "run", 320)))
    found.state["second"]["workers"] = []  # as it is left where the run was stopped inside an iteration
    save_checkpoint(tmp_path / "run", found.state, found.config, found.meta)
    with caplog.at_level(logging.WARNING):
        resume(tmp_path / "run")
    told = [record.getMessage() for record in caplog.records if "exact=false" in record.getMessage()]
    assert told == ["resume: exact=false: second: a piece was in the making, and its environments begin new episodes"]


def test_a_second_batcher_without_weights_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.track\(second=\.\.\.\): got a batcher without weights"):
        train(tmp_path / "run", *TWO, "+algo.publish=false")
    assert not (tmp_path / "run").exists()


def test_of_a_batcher_that_is_closed_what_little_there_is_can_be_kept() -> None:
    make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    size = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 5, "seed": 0}
    with Batcher(make_agent, partial(make, "CartPole-v1"), **size, workers="local") as batcher:
        batcher.publish(make_agent(batcher.specs))
    assert state_of(batcher, between_pieces=False)["workers"] == []

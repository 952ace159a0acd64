"""Speeds of a run."""

from functools import partial

import torch

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import make
from rlx.run.clock import Clock

make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)


def test_an_iteration_that_collected_nothing_has_no_speed_of_collecting() -> None:
    with Batcher(
        make_agent, partial(make, "CartPole-v1"), num_workers=1, envs_per_worker=2, num_steps=4, seed=0, workers="local"
    ) as batcher:
        batcher.publish(make_agent(batcher.specs))
        clock = Clock(batcher, torch.device("cpu"))
        learned_only = clock.iteration(batcher, 50)
        piece = batcher.collect()
        both = clock.iteration(batcher, piece.num_steps)
    assert "speed/collect_steps_per_second" not in learned_only
    assert float(learned_only["speed/steps_per_second"]) > 0
    assert float(both["speed/collect_steps_per_second"]) >= float(both["speed/steps_per_second"]) > 0

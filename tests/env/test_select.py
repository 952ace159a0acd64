"""Environments of which only a part is seen."""

import gymnasium
import numpy as np
import pytest

from rlx.env import SelectObservation, make
from rlx.errors import ConfigError


def test_what_is_kept_is_shown_and_nothing_else() -> None:
    whole, part = gymnasium.make("CartPole-v1"), SelectObservation(gymnasium.make("CartPole-v1"), keep=[2, 0])
    seen, shown = whole.reset(seed=3)[0], part.reset(seed=3)[0]
    for _ in range(5):
        assert np.array_equal(shown, seen[[2, 0]])
        assert part.observation_space.contains(shown)
        seen, shown = whole.step(1)[0], part.step(1)[0]
    assert np.array_equal(part.observation_space.high, whole.observation_space.high[[2, 0]])


@pytest.mark.parametrize("keep", [[4], [-1], [0, 9], []])
def test_places_that_there_are_not_are_refused(keep: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"keep: got .*, expected places from 0 to 3"):
        SelectObservation(gymnasium.make("CartPole-v1"), keep=keep)


def test_what_is_no_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a Box of one dimension"):
        SelectObservation(gymnasium.make("FrozenLake-v1"), keep=[0])


def test_it_is_named_in_a_configuration() -> None:
    env = make("CartPole-v1", 2, wrappers=[{"rlx.env.SelectObservation": {"keep": [0, 2]}}])
    assert env.specs.observation["obs"].shape == (2,)
    env.close()

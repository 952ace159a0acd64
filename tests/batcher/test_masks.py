"""A row that allows nothing is found before its piece is handed over, and what ends an episode need allow nothing."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import NativeGymVecEnv, VecEnv, make
from rlx.errors import EnvironmentFault, SpecError

make_agent = partial(ActorCritic, hidden_sizes=[4], activation="tanh", log_std_init=0.0)


class Locks(gymnasium.Env):
    """Shows `mask` at step `at` of episode `episode` of its third instance, all allowed elsewhere; 5 steps an episode.

    Episodes end by themselves or by time, as `ends` says, and the mask at their end is `end_mask`.
    """

    made = 0
    observation_space = spaces.Dict(here=spaces.Box(0, 9, (1,)), action_mask=spaces.Box(0, 1, (5,), np.int8))
    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(
        self,
        mask: tuple[int, ...] = (1,) * 5,
        at: int = -1,
        episode: int = 2,
        ends: str = "terminated",
        end_mask: tuple[int, ...] = (0,) * 5,
        raises: bool = False,
    ) -> None:
        self._mask, self._at, self._episode, self._ends, self._end_mask = mask, at, episode, ends, end_mask
        self._number, self._raises = Locks.made % 4, raises
        Locks.made += 1
        self._episodes = self._steps = 0

    def _seen(self) -> Any:
        here = self._number == 2 and self._steps == self._at and self._episodes == self._episode
        mask = self._mask if here else self._end_mask if self._steps == 5 else (1,) * 5
        return {"here": np.array([self._steps], np.float32), "action_mask": np.array(mask, np.int8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._episodes, self._steps = self._episodes + 1, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if self._raises and not any(self._seen()["action_mask"]):
            raise ValueError("there is no such move")
        self._steps += 1
        over = self._steps == 5
        return self._seen(), 1.0, over and self._ends == "terminated", over and self._ends == "truncated", {}


gymnasium.register("Locks-v0", entry_point=Locks)


def sync(num_envs: int, mode: AutoresetMode, **kwargs: Any) -> VecEnv:
    vector = SyncVectorEnv([partial(Locks, **kwargs)] * num_envs, autoreset_mode=mode)
    return NativeGymVecEnv(vector, name="Locks-v0")


def collected(make_env: Any, pieces: int = 3, **changes: Any) -> int:
    Locks.made = 0
    options = {"num_workers": 1, "envs_per_worker": 4, "num_steps": 7, "seed": 0, "workers": "local"} | changes
    with Batcher(make_agent, make_env, **options) as batcher:
        batcher.publish(make_agent(batcher.specs))
        return sum(batcher.collect().num_steps for _ in range(pieces))


def one_a_row(**kwargs: Any) -> Any:
    return partial(make, "tests.batcher.test_masks:Locks-v0", kwargs=kwargs)


@pytest.mark.parametrize("workers", ["local", "process"])
@pytest.mark.parametrize("mask", [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 0, 1, 1, 1), (2, 1, 1, 1, 1), (-1, 1, 1, 1, 1)])
def test_a_mask_that_allows_nothing_names_environment_and_row(mask: tuple[int, ...], workers: Any) -> None:
    shown = ", *".join(map(str, mask))
    message = (
        rf"Locks-v0: obs/action_mask is \[ ?{shown}\] \(expected zeros and ones, and an action "
        r"that is allowed\) in environment 2 \(reset seed \d+, episode 2, step 3\)"
    )
    with pytest.raises(EnvironmentFault, match=message):
        collected(one_a_row(mask=mask, at=3), workers=workers)


@pytest.mark.parametrize("at", [0, 4])
def test_every_step_of_an_episode_is_looked_at(at: int) -> None:
    with pytest.raises(EnvironmentFault, match=rf"episode 3, step {at}\)"):
        collected(one_a_row(mask=(0,) * 5, at=at, episode=3))


def test_what_it_led_to_is_not_blamed() -> None:
    with pytest.raises(EnvironmentFault, match=r"obs/action_mask is \[0, 0, 0, 0, 0\] .* environment 2 .*step 3\)"):
        collected(one_a_row(mask=(0,) * 5, at=3, raises=True))


@pytest.mark.parametrize("mode", AutoresetMode)
def test_native_environments_are_looked_at_too(mode: AutoresetMode) -> None:
    with pytest.raises(EnvironmentFault, match=r"obs/action_mask is .* in environment 2 .*episode 2, step 3\)"):
        collected(partial(sync, mode=mode, mask=(0,) * 5, at=3))


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("ends", [{"ends": "terminated"}, {"ends": "truncated", "end_mask": (1, 0, 1, 0, 0)}])
def test_behind_an_end_nothing_need_be_allowed(ends: Any, stop: bool) -> None:
    makers = [one_a_row(**ends)] + [partial(sync, mode=mode, **ends) for mode in AutoresetMode]
    for make_env in makers:
        assert collected(make_env, 1 if stop else 4, stop_at_episode_end=stop) >= (20 if stop else 80)


def test_an_episode_that_only_ran_out_of_time_has_to_allow_something() -> None:
    for make_env in [
        one_a_row(ends="truncated"),
        *(partial(sync, mode=mode, ends="truncated") for mode in AutoresetMode),
    ]:
        with pytest.raises(EnvironmentFault, match=r"the final obs/action_mask is \[0, 0, 0, 0, 0\] .* step 5\)"):
            collected(make_env)


def test_the_check_can_be_left_out() -> None:
    assert collected(one_a_row(mask=(0,) * 5, at=3), check_finite=False) == 3 * 4 * 7


class Short(Locks):
    """Shows a mask of the wrong length."""

    observation_space = spaces.Dict(here=spaces.Box(0, 9, (1,)), action_mask=spaces.Box(0, 1, (4,), np.int8))


gymnasium.register("Short-v0", entry_point=Short)


def test_a_mask_of_the_wrong_length_is_refused_before_anything_is_stepped() -> None:
    with pytest.raises(SpecError, match=r"'obs/action_mask' has shape \(4,\); expected .* shape \(5,\)"):
        collected(partial(make, "tests.batcher.test_masks:Short-v0"))

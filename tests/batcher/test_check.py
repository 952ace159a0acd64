"""Numbers that are wrong are told before a piece is handed over: what, in which environment, seed, episode and step."""

import re
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.agent import Agent
from rlx.batcher import Batcher
from rlx.data import DictTensor, EnvSpecs
from rlx.env import GymVecEnv, NativeGymVecEnv
from rlx.errors import AgentError, EnvironmentFault, RlxError
from rlx.seeding import env_seed

EPISODE, STEPS = 4, 6


class Plain(gymnasium.Env[np.ndarray, Any]):
    """Episodes of four steps; what goes wrong in the third step of the second one is `wrong`."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, wrong: str, action_space: spaces.Space[Any]) -> None:
        self.action_space, self._wrong = action_space, wrong
        self._episode, self._step = 0, 0

    def _seen(self) -> np.ndarray:
        return np.array([self._episode, self._step], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._episode += 1
        self._step = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        seen, reward = self._seen(), 1.0
        if (self._episode, self._step) == (2, 3):
            reward = {"reward inf": np.inf, "reward nan": np.nan}.get(self._wrong, 1.0)
            seen[1] = {"obs inf": -np.inf, "obs nan": np.nan}.get(self._wrong, 3.0)
        return seen, reward, self._step == EPISODE, False, {}


class Wrong(Agent):
    """Does as the environments of `Plain` wish, but for one row in the third step of its second episode."""

    def __init__(self, specs: EnvSpecs, *, row: int, value: float) -> None:
        super().__init__()
        self._spec, self._row, self._value = specs.action["action"], row, value

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"seen": observation["obs"]}), state

    def act(self, outputs, agent_info, generator):
        action = self._spec.zeros(outputs.batch_size)
        at = (outputs["seen"] == torch.tensor([2.0, 2.0])).all(1)
        at[torch.arange(len(at)) != self._row] = False
        action[at] = torch.tensor(self._value).to(action.dtype)
        return DictTensor({"action": action})


MODES = {
    "per instance": lambda make, num_envs: GymVecEnv(make, num_envs, name="Plain"),
    "next step": lambda make, num_envs: NativeGymVecEnv(
        gymnasium.vector.SyncVectorEnv([make] * num_envs, autoreset_mode="NextStep"), name="Plain"
    ),
}


def failure(wrong: str, space: spaces.Space[Any], mode: str, value: float, **changes: Any) -> RlxError | None:
    make = partial(Plain, wrong, space)
    settings = {"num_workers": 2, "envs_per_worker": 2, "num_steps": STEPS, "seed": 3, "workers": "local"} | changes
    row = -1 if wrong else 1
    with Batcher(partial(Wrong, row=row, value=value), partial(MODES[mode], make), **settings) as batcher:
        try:
            for _ in range(3):
                batcher.collect()
        except RlxError as error:
            return error
    return None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrong", ["reward inf", "reward nan", "obs inf", "obs nan"])
def test_numbers_of_an_environment_that_are_not_finite_are_told_with_their_place(wrong: str, mode: str) -> None:
    space = spaces.Discrete(2)
    error = failure(wrong, space, mode, 0.0)
    assert isinstance(error, EnvironmentFault)
    what, number = wrong.split()
    place = rf"environment 0 \(reset seed {env_seed(3, 0)}, episode 2, step 3\)"
    shown = rf"Plain: {what} is .*{number}.* \(not finite\) in {place}"
    assert re.search(shown, str(error)), error
    assert failure(wrong, space, mode, 0.0, check_finite=False) is None


@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize("mode", MODES)
def test_a_reward_that_is_not_finite_counts_for_its_own_episode_alone(number: float, mode: str) -> None:
    make = partial(Plain, f"reward {number}", spaces.Discrete(2))
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 11, "seed": 3, "workers": "local"}
    with Batcher(
        partial(Wrong, row=-1, value=0.0), partial(MODES[mode], make), **settings, check_finite=False
    ) as batcher:
        for _ in range(3):
            batcher.collect()
        for row in range(2):
            returns = [total for own, total, _ in batcher.episodes if own == row]
            assert len(returns) >= 6
            np.testing.assert_equal(returns[1], number)
            assert set(returns[:1] + returns[2:]) == {4.0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("space", "value", "why"),
    [
        (spaces.Box(-1.0, 1.0, (2,)), np.nan, "not finite"),
        (spaces.Box(-1.0, 1.0, (2,)), np.inf, "not finite"),
        (spaces.Discrete(3), 3, "expected 0 to 2"),
        (spaces.Discrete(3), -1, "expected 0 to 2"),
        (spaces.MultiDiscrete([2, 3]), 2, "out of range"),
        (spaces.MultiBinary(2), 2, "out of range"),
    ],
)
def test_actions_that_there_are_not_are_told_with_their_place(
    space: spaces.Space[Any], value: float, why: str, mode: str
) -> None:
    error = failure("", space, mode, value)
    assert isinstance(error, AgentError)
    place = rf"for environment 1 \(reset seed {env_seed(3, 1)}, episode 2, step 3\) of Plain"
    assert re.search(rf"the agent's action is .* \({why}\) {place}", str(error)), error


@pytest.mark.parametrize("value", [-3, 2, 9])
def test_a_box_of_integers_takes_any_of_its_numbers(value: int) -> None:
    assert failure("", spaces.Box(-3, 9, (2,), np.int16), "per instance", value) is None


class Growing(Agent):
    """Puts out something else from its second answer on."""

    def __init__(self, specs: EnvSpecs, *, change: str) -> None:
        super().__init__()
        self._change, self._answers = change, 0

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"seen": observation["obs"]}), state

    def act(self, outputs, agent_info, generator):
        self._answers += 1
        size = outputs.batch_size
        action, extra = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
        if self._answers > 2:
            action = action.int() if self._change == "dtype" else action
            extra = torch.zeros(size, 1) if self._change == "shape" else extra
        return DictTensor({"action": action, "extra": extra})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("dtype", r"'action' is torch\.int32 of shape \[2\], its first answer was torch\.int64 of shape \[2\]"),
        ("shape", r"'extra' is torch\.float32 of shape \[2, 1\], its first answer was torch\.float32 of shape \[2\]"),
    ],
)
def test_an_answer_of_another_form_than_the_first_is_told(change: str, said: str) -> None:
    make = partial(MODES["per instance"], partial(Plain, "", spaces.Discrete(2)))
    with (
        Batcher(
            partial(Growing, change=change), make, num_workers=1, envs_per_worker=2, num_steps=4, seed=0,
            workers="local",
        ) as batcher,
        pytest.raises(AgentError, match=rf"Growing\.act\(\) for environments 0 to 1: {said}"),
    ):  # fmt: skip
        batcher.collect()

"""Small environments, one for each thing that the tests are about."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Scripted(gymnasium.Env):
    """Shows samples of its observation space, and ends episodes after `length` steps."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space | None = None, length: int = 5
    ) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.length = length
        self.steps = 0
        self.shown: list[Any] = []
        self.actions: list[Any] = []
        self.options: list[Any] = []
        self.closed = 0

    def _show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        self.options.append(options)
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.steps += 1
        return self._show(), float(self.steps), self.steps >= self.length, False, {}

    def close(self) -> None:
        self.closed += 1


class Answers(Scripted):
    """Answers `step` with what a function makes of the step's number; `reset` likewise, as step 0."""

    def __init__(self, answer: Callable[[int], Any], observation_space: spaces.Space | None = None) -> None:
        super().__init__(spaces.Box(-1.0, 1.0, (3,)) if observation_space is None else observation_space, length=10**9)
        self.answer = answer

    def _show(self) -> Any:
        return self.answer(self.steps)


class CountsUp(gymnasium.Env):
    """Counts its steps from a drawn beginning: each observation says which episode and which step it is."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = float(self.np_random.integers(1_000_000))
        self.count = 0.0
        self.length = int(self.np_random.integers(1, 6))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1.0
        ended = self.count >= self.length
        by_time = ended and self.length % 2 == 0
        return self._observe(), self.count + 10.0 * int(action), ended and not by_time, by_time, {}

    def _observe(self) -> Any:
        return np.array([self.episode, self.count], np.float32)


class Repeat(gymnasium.Wrapper):
    """Does each action several times, and pays the last reward only."""

    def __init__(self, env: gymnasium.Env, times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> Any:
        for _ in range(self.times):
            answer = self.env.step(action)
        return answer


class StepsInReset(gymnasium.Wrapper):
    """Does some steps before an episode begins, as Atari's no-op starts do."""

    def reset(self, **keywords: Any) -> Any:
        self.env.reset(**keywords)
        self.env.step(0)
        observation, _, _, _, info = self.env.step(1)
        return observation, info

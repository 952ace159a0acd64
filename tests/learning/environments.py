"""Environments whose right answers are known beforehand."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Endless(gymnasium.Env[np.ndarray, int]):
    """Pays the same each step and is cut after 10, though nothing ends: the value is that over 1 - gamma everywhere."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, terminates: bool = False, pays: float = 1.0) -> None:
        self._terminates, self._pays, self._step = terminates, pays, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._step = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        over = self._step == 10
        return np.zeros(1, np.float32), self._pays, over and self._terminates, over and not self._terminates, {}


class Target(gymnasium.Env[np.ndarray, np.ndarray]):
    """Shows a number in [-1, 1] and pays minus the squared distance of the action from it, `delay` steps later.

    At those steps it shows 0. Who cannot remember the number gets -1/3 an episode at most.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, delay: int = 0) -> None:
        self._delay, self._step = delay, 0
        self._number = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step, self._number = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self._number.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        over = self._step == self._delay
        self._step += 1
        return np.zeros(1, np.float32), -float((action[0] - self._number[0]) ** 2) if over else 0.0, over, False, {}


class Recall(gymnasium.Env[np.ndarray, int]):
    """Shows a cue at the first step and asks for it `delay` steps later: pays 1 for the right action then, 0 else.

    Who cannot remember the cue gets 0.5 an episode at most.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, delay: int = 8) -> None:
        self._delay, self._step, self._cue = delay, 0, 0

    def _seen(self) -> np.ndarray:
        cue = 2.0 * self._cue - 1.0 if self._step == 0 else 0.0
        return np.array([cue, float(self._step == self._delay)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step, self._cue = 0, int(self.np_random.integers(2))
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        over = self._step == self._delay
        reward = float(over and action == self._cue)
        self._step += 1
        return self._seen(), reward, over, False, {}


class Arms(gymnasium.Env[np.ndarray, int]):
    """Three arms, of which one is forbidden at each of 8 steps: the others pay 1, 0.5 and 0; the forbidden one pays 2.

    The best that is allowed pays 5 / 6 a step, a draw among what is allowed 0.5; the first arm, allowed or not, 4 / 3.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self._step, self._forbidden = 0, 0

    def _show(self) -> tuple[np.ndarray, dict]:
        self._forbidden = int(self.np_random.integers(3))
        return np.zeros(1, np.float32), {"action_mask": np.arange(3) != self._forbidden}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step = 0
        return self._show()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 2.0 if action == self._forbidden else 1.0 - action / 2
        self._step += 1
        seen, info = self._show()
        return seen, reward, self._step == 8, False, info


gymnasium.register("Arms-v0", entry_point=Arms)
gymnasium.register("Endless-v0", entry_point=Endless)
gymnasium.register("Target-v0", entry_point=Target)
gymnasium.register("Recall-v0", entry_point=Recall)

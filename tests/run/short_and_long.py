"""Small environments for whole runs: one whose return is its length, and one for each way to be broken."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ShortAndLong(gymnasium.Env[np.ndarray, int]):
    """Pays 1 a step; an episode has 2 steps or 60, by its seed's draw, whatever the actions."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._left = 2 if self.np_random.random() < 0.5 else 60
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._left -= 1
        return np.zeros(2, np.float32), 1.0, self._left == 0, False, {}


class Raises(ShortAndLong):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ZeroDivisionError("no such level")


class Unsupported(ShortAndLong):
    """Shows text, for which there is no layout."""

    observation_space = spaces.Text(5)


class ShowsNaN(ShortAndLong):
    """Shows NaN from its first step on."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.full(2, np.nan, np.float32), 1.0, False, False, {}


for kind in (ShortAndLong, Raises, Unsupported, ShowsNaN):
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind)

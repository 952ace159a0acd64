"""An environment of short episodes for the agents' tests, with any action space."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ID = "tests.agent.environments:Stroll-v0"

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-2.0, 1.0, (2,), np.float32),
    "dict": spaces.Dict({"gear": spaces.Discrete(2), "steer": spaces.Box(-1.0, 1.0, (1,), np.float32)}),
}


class Stroll(gymnasium.Env[dict[str, Any], Any]):
    """Shows and pays random numbers; an episode has 1 to 12 steps and terminates or is truncated."""

    observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (3,), np.float32), "kind": spaces.Discrete(3)})

    def __init__(self, action: str = "discrete") -> None:
        self.action_space = ACTION_SPACES[action]
        self._left = 0

    def _seen(self) -> dict[str, Any]:
        place = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"place": place, "kind": int(self.np_random.integers(3))}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 13))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict]:
        self._left -= 1
        terminated = self._left == 0 and bool(self.np_random.integers(2))
        return self._seen(), float(self.np_random.normal()), terminated, self._left == 0 and not terminated, {}


gymnasium.register("Stroll-v0", entry_point=Stroll)

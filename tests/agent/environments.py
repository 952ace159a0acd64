"""Environments of short episodes for the agents' tests, with any action space, and with actions forbidden."""

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


MASKED_ID = "tests.agent.environments:Fences-v0"

MASKED_ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "dict": spaces.Dict(
        {"aim": spaces.Box(-1, 1, (2,), np.float32), "gear": spaces.Discrete(3), "lamps": spaces.MultiBinary(3)}
    ),
}
SHOWN: dict[str, spaces.Space[Any]] = {
    "numbers": spaces.Box(-1, 1, (3,), np.float32),
    "image": spaces.Box(0, 255, (12, 12), np.uint8),
    "dict": spaces.Dict({"place": spaces.Box(-1, 1, (3,), np.float32), "kind": spaces.Discrete(3)}),
}


class Fences(gymnasium.Env[Any, Any]):
    """Allows some actions, others at each step, and raises where another one is taken.

    What is allowed stands in the observation (`road="observation"`) or in the info (`road="info"`). An episode has 1 to
    12 steps and terminates, with nothing allowed any more, or is truncated.
    """

    def __init__(self, action: str = "discrete", road: str = "observation", shown: str = "numbers") -> None:
        self.action_space = MASKED_ACTION_SPACES[action]
        self._masked: Any = self.action_space["gear"] if action == "dict" else self.action_space
        self._choices = self._masked.nvec.tolist() if action == "multi_discrete" else [int(self._masked.n)]
        self._in_info, self._left, self._mask = road == "info", 0, np.zeros(0, np.bool_)
        self._space = self.observation_space = SHOWN[shown]
        if not self._in_info:
            mask = spaces.Box(0, 1, (sum(self._choices),), np.bool_)
            parts = dict(self._space.spaces) if shown == "dict" else {"observation": self._space}
            self.observation_space = spaces.Dict({**parts, "action_mask": mask})

    def _answer(self, over: bool) -> tuple[Any, dict[str, Any]]:
        parts = [self.np_random.random(n) < 0.4 for n in self._choices]
        for part in parts:
            part[self.np_random.integers(len(part))] = True
        self._mask = np.zeros(sum(self._choices), np.bool_) if over else np.concatenate(parts)
        seen: Any = self._space.sample()
        if self._in_info:
            return seen, {"action_mask": self._mask.astype(np.int8)}
        return {**(seen if isinstance(seen, dict) else {"observation": seen}), "action_mask": self._mask}, {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self._space.seed(seed)
        self._left = int(self.np_random.integers(1, 13))
        return self._answer(False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        taken = action["gear"] if isinstance(action, dict) else action
        allowed = tuple(np.split(self._mask, np.cumsum(self._choices)[:-1]))
        start = np.broadcast_to(getattr(self._masked, "start", 0), len(allowed))
        for choice, number, first in zip(allowed, np.atleast_1d(taken), start, strict=True):
            if not choice[number - first]:
                raise ValueError(f"{taken} is not allowed: {self._mask}")
        self._left -= 1
        terminated = self._left == 0 and bool(self.np_random.integers(2))
        seen, info = self._answer(terminated)
        return seen, float(self.np_random.normal()), terminated, self._left == 0 and not terminated, info


gymnasium.register("Stroll-v0", entry_point=Stroll)
gymnasium.register("Fences-v0", entry_point=Fences)

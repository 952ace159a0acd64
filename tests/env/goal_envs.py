"""Gymnasium environments with goals, as Gymnasium-Robotics has them."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Line(gymnasium.Env):
    """Walk along a line to a whole number; the methods take many pairs of goals at once."""

    observation_space = spaces.Dict(
        observation=spaces.Box(-1, 1, (1,)),
        achieved_goal=spaces.Box(-20, 20, (1,), np.float64),
        desired_goal=spaces.Box(-20, 20, (1,), np.float64),
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.goal, self.steps = np.zeros(1), np.array([self.np_random.integers(-3, 4)], float), 0
        return self.seen(), {}

    def seen(self) -> dict[str, np.ndarray]:
        return {"observation": np.zeros(1, np.float32), "achieved_goal": self.place, "desired_goal": self.goal}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.place = self.place + (1.0 if action else -1.0)
        self.steps += 1
        reward = float(self.compute_reward(self.place, self.goal, {}))
        return self.seen(), reward, bool(self.compute_terminated(self.place, self.goal, {})), self.steps >= 8, {}

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        assert np.asarray(achieved_goal).dtype == np.float64
        return -(np.abs(achieved_goal - desired_goal)[..., 0] > 0.5).astype(np.float32)

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return np.abs(achieved_goal - desired_goal)[..., 0] < 0.5


class OneAtATime(Line):
    """The same, whose methods take one pair; given many, the first one raises and the second answers for all."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return 0.0 if abs(achieved_goal - desired_goal) < 0.5 else -1.0

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return bool(np.linalg.norm(achieved_goal - desired_goal) < 0.5)


class Scalars(Line):
    """The same, whose methods take one pair; given many, they raise a TypeError."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return 0.0 if math.sqrt(((achieved_goal - desired_goal) ** 2).sum(-1)) < 0.5 else -1.0

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return self.compute_reward(achieved_goal, desired_goal, info) == 0.0


class Guarded(OneAtATime):
    """The same, whose methods look at what they are given: many raise an AssertionError."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        assert self.observation_space["achieved_goal"].contains(achieved_goal)
        return super().compute_reward(achieved_goal, desired_goal, info)


class Plane(gymnasium.Env):
    """Walk in a plane; the methods take one pair; given two, they answer with two numbers that are of no pair."""

    observation_space = spaces.Dict({key: spaces.Box(-9, 9, (2,)) for key in ("achieved_goal", "desired_goal")})
    action_space = spaces.Discrete(2)

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return -abs(achieved_goal[0] - desired_goal[0]) - abs(achieved_goal[1] - desired_goal[1])

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return self.compute_reward(achieved_goal, desired_goal, info) > -0.5


class Costly(Line):
    """The same, where going left costs."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        seen, reward, terminated, truncated, info = super().step(action)
        return seen, reward - 0.5 * (action == 0), terminated, truncated, info


class Mute(Line):
    """The same, without telling when other goals would have ended it."""

    compute_terminated = None  # type: ignore[assignment]

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.place = self.place + (1.0 if action else -1.0)
        return self.seen(), 0.0, False, True, {}


class Faulty(Line):
    """The same, whose reward needs an info."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return info["distance"]


for _kind in (Line, OneAtATime, Scalars, Costly, Mute, Faulty):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=_kind)

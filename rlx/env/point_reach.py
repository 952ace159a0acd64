"""A point with mass that is to be steered to a place: continuous actions, a reward at the goal and nowhere else."""

from typing import Annotated

import torch
from torch import Tensor

from rlx.data.spec import Spec
from rlx.env.batched import GoalVecEnv
from rlx.validate import Range

_FORCE = 0.02  # of a full action, a step
_DRAG = 0.8  # what is left of the speed after a step: 0.1 at most


class PointReach(GoalVecEnv):
    """A point in the box [-1, 1]^d, pushed by an action in [-1, 1]^d; walls stop it. Its place is what it achieves.

    Place and goal are drawn evenly, the speed is 0 at first.

    Args:
        num_envs: number of rows, B.
        num_dimensions: d.
        tolerance: how near is there, in each dimension.
        max_episode_steps: steps after which an episode is truncated; from wall to wall it takes about 25.
    """

    def __init__(
        self,
        num_envs: Annotated[int, Range(1)],
        *,
        num_dimensions: Annotated[int, Range(1)],
        tolerance: Annotated[float, Range(0, 1, low_open=True)],
        max_episode_steps: Annotated[int, Range(1)],
    ) -> None:
        def box(size: int, bound: float) -> Spec:
            return Spec(shape=(size,), dtype=torch.float32, low=(-bound,) * size, high=(bound,) * size)

        super().__init__(
            num_envs,
            "PointReach",
            observation=box(2 * num_dimensions, 1.0),
            goal=box(num_dimensions, 1.0),
            action=box(num_dimensions, 1.0),
            max_episode_steps=max_episode_steps,
        )
        self.place = torch.zeros(num_envs, num_dimensions)
        self.speed = torch.zeros(num_envs, num_dimensions)
        self._tolerance = tolerance

    def begin_with_goal(self, rows: Tensor) -> Tensor:
        """Draw the places of some rows, and goals."""
        size = self.place.shape[1]
        drawn = (2 * self.random.uniform(rows, 2 * size) - 1).float().T
        self.place[rows] = drawn[rows, :size]
        self.speed[rows] = 0.0
        return drawn[:, size:].clone()

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return place and speed (as a part of the highest), and the place."""
        return torch.cat([self.place, self.speed * ((1 - _DRAG) / _FORCE)], dim=-1), self.place

    def act(self, action: Tensor) -> None:
        """Push the points."""
        self.speed = _DRAG * self.speed + _FORCE * action.clamp(-1, 1)
        moved = self.place + self.speed
        self.place = moved.clamp(-1, 1)
        self.speed = torch.where(moved == self.place, self.speed, 0.0)

    def reached(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return whether the goal is within the tolerance in each dimension."""
        return ((achieved - desired).abs() <= self._tolerance).all(-1)

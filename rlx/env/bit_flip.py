"""Flipping bits (Andrychowicz et al. 2017, section 3.1): the smallest task that chance does not solve."""

from typing import Annotated

import torch
from torch import Tensor

from rlx.data.spec import Spec
from rlx.env.batched import GoalVecEnv
from rlx.validate import Range


class BitFlip(GoalVecEnv):
    """A row of n bits, drawn like the goal, a row of n bits as well; each of the n actions flips one bit.

    An episode has `num_bits` steps, enough for any goal. The paper pays -1 for each step that misses the goal and 0 for
    that which reaches it; here it is 0 and 1, so that a return is a success.

    Args:
        num_envs: number of rows, B.
        num_bits: n; chance alone reaches a goal in about n of 2^n episodes.
    """

    def __init__(self, num_envs: Annotated[int, Range(1)], *, num_bits: Annotated[int, Range(1)]) -> None:
        bits = Spec(shape=(num_bits,), dtype=torch.int8, kind="multi_binary")
        flip = Spec(shape=(), dtype=torch.int64, kind="discrete", nvec=(num_bits,))
        super().__init__(num_envs, "BitFlip", observation=bits, goal=bits, action=flip, max_episode_steps=num_bits)
        self.bits = bits.zeros(num_envs)
        self._row = torch.arange(num_envs)

    def begin_with_goal(self, rows: Tensor) -> Tensor:
        """Draw the bits of some rows, and goals."""
        size = self.bits.shape[1]
        drawn = (self.random.uniform(rows, 2 * size) < 0.5).to(torch.int8).T
        self.bits[rows] = drawn[rows, :size]
        return drawn[:, size:].clone()

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return the bits, twice: they are all that is seen, and what is achieved."""
        return self.bits, self.bits

    def act(self, action: Tensor) -> None:
        """Flip one bit in each row."""
        self.bits[self._row, action] ^= 1

    def reached(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return whether all bits are those of the goal."""
        return (achieved == desired).all(-1)

"""How urgent the steps of a replay buffer are, and draws in proportion to it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.data.rings import Index
from rlx.data.sum_tree import SumTree
from rlx.errors import UserError

_OFFSET = 1e-6  # no step is ever out of reach (Schaul et al. 2016, section 3.3)


class Priorities:
    """Priorities of slots, to the power of `alpha` (Schaul et al. 2016, arXiv:1511.05952, eq. 1).

    Attributes:
        alpha: how far they count; None where all slots that may be drawn are alike.
    """

    def __init__(self, num_slots: int, alpha: float | None) -> None:
        """Begin with no slot that may be drawn."""
        self.alpha = alpha
        self._tree = SumTree(num_slots)
        self._greatest = 1.0

    def __len__(self) -> int:
        """Return how many slots may be drawn."""
        return int(np.count_nonzero(self._tree.weights.numpy() > 0))

    def begin(self, new: Index, gone: Index) -> None:
        """Let slots be drawn, with the greatest priority so far, and others no longer.

        Args:
            new: `[N]`; those that are gone as well are new.
            gone: `[K]`.
        """
        self._tree.set(torch.from_numpy(gone), 0.0)
        self._tree.set(torch.from_numpy(new), 1.0 if self.alpha is None else self._greatest**self.alpha)

    def draw(self, count: int, generator: torch.Generator, beta: float) -> tuple[Index, Tensor | None]:
        """Return `count` slots `[N]`, and their weights `[N]` float32, at most 1; None where all are alike.

        Args:
            count: N.
            generator: source of the draw, on the CPU.
            beta: how far weights make up for priorities, 0 to 1.
        """
        slots = self._tree.draw(count, generator)
        if self.alpha is None:
            return slots.numpy(), None
        probability = self._tree[slots]
        weight = (probability / probability.min()) ** -beta  # the batch's greatest is 1 (section 3.4)
        return slots.numpy(), weight.float()

    def update(self, slots: Tensor, errors: Tensor) -> None:
        """Set the priorities of slots that may still be drawn; see `ReplayBuffer.update_priorities`.

        Raises:
            UserError: an error is not finite.
        """
        assert self.alpha is not None
        priority = errors.detach().to("cpu", torch.float64).abs() + _OFFSET
        if not bool(priority.isfinite().all()):
            wrong = errors.detach().cpu()[~priority.isfinite()][0]
            raise UserError(f"update_priorities(): got an error of {float(wrong)}, expected finite ones")
        slots = slots.cpu()
        still = self._tree[slots] > 0  # others have been overwritten since
        slots, priority = slots[still], priority[still]
        if not len(slots):
            return
        self._greatest = max(self._greatest, float(priority.max()))
        self._tree.set(slots, priority**self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return all priorities."""
        return {"priorities": self._tree.weights, "max_priority": self._greatest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over those of as many slots."""
        self._tree.set(torch.arange(self._tree.size), state["priorities"])
        self._greatest = state["max_priority"]

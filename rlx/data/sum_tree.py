"""A tree of sums: draws places in proportion to their weights, a batch in a few calls."""

import torch
from torch import Tensor

_FANOUT = 64  # children of a node
_MOST_ROOTS = 16_384  # nodes without a parent: their running sum costs less than another level


class SumTree:
    """Weights of N places, each node above them the sum of its children (Schaul et al. 2016, appendix B.2.1).

    A node's sum is always added up anew from its children, never corrected by a difference, so that rounding errors do
    not pile up however often weights change.
    """

    def __init__(self, size: int) -> None:
        """Begin with weights of zero.

        Args:
            size: the number of places, N.
        """
        self.size = size
        # The places first, then the sums of 64 of the level before: each [n, 64], and flat.
        self._levels = [torch.zeros(rows, _FANOUT, dtype=torch.float64) for rows in _rows(size)]
        self._flat = [level.view(-1) for level in self._levels]

    @staticmethod
    def num_bytes(size: int) -> int:
        """Return the bytes that a tree of `size` places takes."""
        return sum(rows * _FANOUT * 8 for rows in _rows(size))

    @property
    def total(self) -> Tensor:
        """Return the sum of all weights, 0-dimensional float64."""
        return self._levels[-1].sum()

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return the weights `[N]` float64 of `places` `[N]` int64."""
        return self._flat[0][places]

    @property
    def weights(self) -> Tensor:
        """Return the weights of all places, `[size]` float64: memory of the tree, to be read only."""
        return self._flat[0][: self.size]

    def set(self, places: Tensor, weights: Tensor | float) -> None:
        """Give places new weights.

        Args:
            places: `[N]` int64; one that is there twice needs the same weight in both.
            weights: `[N]`, or one number for all, >= 0.
        """
        level = places
        self._flat[0][level] = weights.to(torch.float64) if isinstance(weights, Tensor) else weights
        for below, above in zip(self._levels, self._flat[1:], strict=False):
            level = level // _FANOUT
            above[level] = below[level].sum(1)

    def find(self, mass: Tensor) -> Tensor:
        """Return the place at which the running sum of the weights first exceeds `mass`: never one of weight zero.

        Args:
            mass: `[N]` float64 from 0 to `total`.
        """
        roots, *below = reversed(self._flat)
        # Rounding may leave a mass that is not below the sum of a node: then it means the node's last child.
        sums = roots.cumsum(0)
        mass = torch.minimum(mass, torch.nextafter(sums[-1], sums.new_zeros(())))
        node = torch.searchsorted(sums, mass, right=True)
        mass = (mass - (sums - roots).index_select(0, node)).clamp_(min=0.0)
        for level in below:
            values = level.view(-1, _FANOUT).index_select(0, node)
            sums = values.cumsum(1)
            mass = torch.minimum(mass, torch.nextafter(sums[:, -1], sums.new_zeros(())))
            child = torch.searchsorted(sums, mass.unsqueeze(1), right=True)
            mass = (mass - (sums.gather(1, child) - values.gather(1, child)).squeeze(1)).clamp_(min=0.0)
            node = node * _FANOUT + child.squeeze(1)
        return node

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` places `[count]`, one from each of as many equal parts of the total: less noise, no bias.

        Args:
            count: how many.
            generator: source of the draw.
        """
        part = torch.arange(count, dtype=torch.float64)
        part += torch.rand(count, dtype=torch.float64, generator=generator)
        return self.find(part * (self.total / count))


def _rows(size: int) -> list[int]:
    """Return how many rows of 64 each level has, from that of the places on."""
    rows = [-(-size // _FANOUT)]
    while rows[-1] * _FANOUT > _MOST_ROOTS:
        rows.append(-(-rows[-1] // _FANOUT))
    return rows

"""Observations and returns brought to mean 0 and variance 1: by moments that are a part of the agent.

So they are published to the workers, saved in every checkpoint, and stay as they are in evaluation: only
`update_normalizers`, which an algorithm calls with what it has learned from, moves them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from rlx.data import TemporalDictTensor, Trajectories

_LIMIT = 10.0  # standard deviations, beyond which an observation is cut


Gather = Callable[[Tensor], Tensor]
"""Takes a learner's row `[K]` float64, and returns the rows of all learners, `[learners, K]`."""

SeenBy = Callable[[TemporalDictTensor], Sequence[tuple[nn.Module, Tensor | None]]]
"""Takes steps `[B, T]`, and returns an agent's parts, each with the steps that are its own, `[B, T]` bool."""


class Moments(NamedTuple):
    """Of some values of one shape.

    Attributes:
        number: `[]` float64, how many.
        mean: `[*shape]` float64.
        squares: `[*shape]` float64, the sum of the squares of their differences from the mean.
    """

    number: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return those of values `[N, *shape]`; without values, zeros."""
        values = values.double()
        if not len(values):
            nothing = values.new_zeros(values.shape[1:])
            return cls(values.new_zeros(()), nothing, nothing)
        mean = values.mean(0)
        return cls(values.new_tensor(len(values)), mean, (values - mean).square().sum(0))

    def merge(self, other: "Moments") -> "Moments":
        """Return those of both (Chan et al. 1979, eq. 2.1)."""
        count = self.number + other.number
        share = other.number / count.clamp(min=1.0)
        difference = other.mean - self.mean
        squares = self.squares + other.squares + difference.square() * (self.number * share)
        return Moments(count, self.mean + difference * share, squares)


class Normalizer(nn.Module):
    """The running mean and variance of all values so far, merged exactly (see `Moments.merge`).

    However what was seen is divided among calls, and calls among workers, the moments are those of all of it.

    Attributes:
        shift: `[*shape]` float32, the mean; 0 before the first update.
        scale: `[*shape]` float32, the standard deviation; 1 before the first update, and where nothing varies.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begin with nothing seen.

        Args:
            shape: of one value.
        """
        super().__init__()
        self._count, self._mean = (
            nn.Buffer(torch.zeros((), dtype=torch.float64)),
            nn.Buffer(torch.zeros(shape).double()),
        )
        self._squares = nn.Buffer(torch.zeros(shape, dtype=torch.float64))
        self.shift, self.scale = nn.Buffer(torch.zeros(shape)), nn.Buffer(torch.ones(shape))

    def normalize(self, values: Tensor) -> Tensor:
        """Return values `[N, *shape]` in standard deviations from the mean, cut at 10 of them."""
        return ((values - self.shift) / self.scale).clamp(-_LIMIT, _LIMIT)

    def expand(self, values: Tensor) -> Tensor:
        """Return values `[N, *shape]` that are in standard deviations from the mean as what they stand for."""
        return full_precision(values) * self.scale + self.shift

    def update(self, values: Tensor) -> None:
        """Take values `[N, *shape]` into the moments."""
        self.merge(Moments.of(values.to(self._mean)))

    @torch.no_grad()
    def merge(self, moments: Moments) -> None:
        """Take values into the moments that somebody else has seen, another learner or another normaliser."""
        if not moments.number:
            return
        merged = self.moments.merge(moments)
        for own, new in zip(self.moments, merged, strict=True):
            own.copy_(new)
        deviation = (merged.squares / merged.number).sqrt()
        self.shift.copy_(merged.mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    @property
    def moments(self) -> Moments:
        """Return the moments of all values so far; views."""
        return Moments(self._count, self._mean, self._squares)


class ReturnNormalizer(Normalizer):
    """That of an agent's returns, `[]`: its critic puts out standard deviations, `expand` makes values of them."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        super().__init__(())


class ObservationNormalizer(Normalizer):
    """That of one field of the observation.

    Attributes:
        key: the field, such as `obs` or `obs/position`.
    """

    def __init__(self, key: str, shape: tuple[int, ...]) -> None:
        """Begin with nothing seen."""
        super().__init__(shape)
        self.key = key


@torch.no_grad()
def update_normalizers(
    agent: nn.Module, trajectories: Trajectories, returns: Tensor | None = None, gather: Gather | None = None
) -> None:
    """Take all steps into the moments of all normalisers in the agent; nothing where it has none.

    Call it when the batch has been learned from, before `publish`: so the losses see what the workers saw.

    Args:
        agent: any module that holds normalisers. Where it has a method `seen_by(steps)`, that tells which of its parts
            see which steps only, `[B, T]` bool; None for all.
        trajectories: steps `[B, T]`; padding counts nothing.
        returns: `[B, T]`, for a normaliser of returns.
        gather: of several learners that take each other's steps in too, `run.ranks.gather`; all have to call this.
    """
    steps = trajectories.steps
    seen_by: SeenBy = getattr(agent, "seen_by", lambda _: [(agent, None)])
    found: list[tuple[Normalizer, Moments]] = []
    for part, own in seen_by(steps) if any(isinstance(module, Normalizer) for module in agent.modules()) else ():
        for module in part.modules():
            if isinstance(module, ObservationNormalizer):
                values = steps[f"env/{module.key}"]
            elif isinstance(module, ReturnNormalizer) and returns is not None:
                values = returns
            else:
                continue
            found.append((module, Moments.of(_valid(values, trajectories, own).to(module.moments.mean))))
    if gather is None or not found:
        for module, moments in found:
            module.merge(moments)
        return
    row = torch.cat([part.flatten() for _, moments in found for part in moments])  # all normalisers in one exchange
    for one in gather(row):
        place = 0
        for module, moments in found:
            parts: list[Tensor] = []
            for like in moments:
                parts.append(one[place : place + like.numel()].view_as(like))
                place += like.numel()
            module.merge(Moments(*parts))


def _valid(values: Tensor, trajectories: Trajectories, own: Tensor | None) -> Tensor:
    if trajectories.is_full():
        return values.flatten(0, 1) if own is None else values[own]
    mask = trajectories.steps.mask()
    return values[mask if own is None else mask & own]


def full_precision(output: Tensor) -> Tensor:
    """Return a network's output for what is computed with it: float32 where mixed precision made it bfloat16."""
    return output.float() if output.dtype is torch.bfloat16 else output

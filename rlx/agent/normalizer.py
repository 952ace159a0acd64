"""Observations and returns brought to mean 0 and variance 1: by moments that are a part of the agent.

So they are published to the workers, saved in every checkpoint, and stay as they are in evaluation: only
`update_normalizers`, which an algorithm calls with what it has learned from, moves them.
"""

import torch
from torch import Tensor, nn

from rlx.data import Trajectories

_LIMIT = 10.0  # standard deviations, beyond which an observation is cut


class Normalizer(nn.Module):
    """The running mean and variance of all values so far, merged exactly (Chan et al. 1979, eq. 2.1).

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
        return values * self.scale + self.shift

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take values `[N, *shape]` into the moments."""
        if not len(values):
            return
        values = values.to(self._mean)
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        total = self._count + len(values)
        difference = mean - self._mean
        self._squares += squares + difference.square() * (self._count * len(values) / total)
        self._mean += difference * (len(values) / total)
        self._count.copy_(total)
        deviation = (self._squares / total).sqrt()
        self.shift.copy_(self._mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))


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


def update_normalizers(agent: nn.Module, trajectories: Trajectories, returns: Tensor | None = None) -> None:
    """Take all steps into the moments of all normalisers in the agent; nothing where it has none.

    Call it when the batch has been learned from, before `publish`: so the losses see what the workers saw.

    Args:
        agent: any module that holds normalisers.
        trajectories: steps `[B, T]`; padding counts nothing.
        returns: `[B, T]`, for a normaliser of returns.
    """
    steps = trajectories.steps
    for module in agent.modules():
        if isinstance(module, ObservationNormalizer):
            module.update(_valid(steps[f"env/{module.key}"], trajectories))
        elif isinstance(module, ReturnNormalizer) and returns is not None:
            module.update(_valid(returns, trajectories))


def _valid(values: Tensor, trajectories: Trajectories) -> Tensor:
    return values.flatten(0, 1) if trajectories.is_full() else values[trajectories.steps.mask()]

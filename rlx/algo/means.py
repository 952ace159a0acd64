"""Means of what many updates of one iteration reported."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor


def mean_terms(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each term over the updates: one transfer from the device, not one a term.

    Args:
        updates: what each update reported, 0-dimensional tensors by name. The mean of a term is over the updates that
            reported it: not each one need do so, as where a policy learns at every other update only.
    """
    reported: dict[str, list[Tensor]] = {}
    for update in updates:
        for name, value in update.items():
            reported.setdefault(name, []).append(value)
    if not reported:
        return {}
    with torch.no_grad():
        together = torch.stack([value for each in reported.values() for value in each])
    values = iter(cast(list[float], together.tolist()))
    # float32 summed up in float64 is exact, so that the mean of equal numbers is that number.
    return {name: sum(islice(values, len(each))) / len(each) for name, each in reported.items()}


def mean_or_zero(values: Tensor) -> Tensor:
    """Return the mean of all values, 0-dimensional; 0 where there are none, as of a piece that is resets alone."""
    return values.mean() if values.numel() else values.sum()


def mean_of_valid(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the valid steps, 0-dimensional; 0 where there are none, as after a long burn-in.

    Args:
        values: `[B, T]`.
        mask: `[B, T]` bool.
    """
    return values[mask].sum() / mask.sum().clamp(min=1)

"""Means of what many updates of one iteration reported."""

from collections.abc import Mapping, Sequence

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
        values = torch.stack([value for each in reported.values() for value in each]).cpu().double()
    parts = torch.split(values, [len(each) for each in reported.values()])
    return {name: float(part.mean()) for name, part in zip(reported, parts, strict=True)}  # of equal numbers: that one


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

"""Means of what many updates of one iteration reported."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor


def mean_terms(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each term over the updates: one transfer from the device, not one a term.

    Args:
        updates: what each update reported, 0-dimensional tensors under the same names.
    """
    if not updates:
        return {}
    names = list(updates[0])
    with torch.no_grad():
        table = torch.stack([torch.stack([update[name] for update in updates]) for name in names])
        means = cast("list[float]", table.cpu().double().mean(dim=1).tolist())  # of equal numbers: that number
    return dict(zip(names, means, strict=True))


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

"""Sequences cut where episodes begin, laid out so that one fused call runs a recurrent network over all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stretches:
    """The S stretches of valid steps between resets, in packed order: first all first steps, then all second steps.

    Longer stretches come first, as torch's `PackedSequence` wants it, so that no step is computed that is padding.

    Attributes:
        place: `[N]` int64, the place `b * T + t` of each packed step.
        counts: `[L]` int64 on the CPU, how many stretches have a first, second, ... step.
        row: `[S]` int64, the sequence that each stretch is of.
        begins_episode: `[S]` bool; the others go on from the state that their sequence began with.
    """

    place: Tensor
    counts: Tensor
    row: Tensor
    begins_episode: Tensor


def cut_at_resets(is_first: Tensor, mask: Tensor) -> Stretches | None:
    """Return the stretches of sequences, or None where nothing is to be cut: all are whole and no reset is inside.

    Args:
        is_first: `[B, T]` bool, the steps before which the state is reset.
        mask: `[B, T]` bool, the valid steps, from the first on.
    """
    if not bool(is_first[:, 1:].any()) and bool(mask.all()):
        return None
    starts = is_first.clone()
    starts[:, 0] = True
    starts &= mask
    time = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    offset = time - torch.where(starts, time, 0).cummax(1).values
    row, time = mask.nonzero(as_tuple=True)
    offset = offset[row, time]
    stretch = starts[row, time].cumsum(0) - 1
    size = torch.bincount(stretch)
    longest_first = torch.argsort(size, descending=True, stable=True)
    rank = torch.empty_like(longest_first)
    rank[longest_first] = torch.arange(len(size), device=mask.device)
    order = torch.argsort(offset * len(size) + rank[stretch])
    start_row, start_time = starts.nonzero(as_tuple=True)
    return Stretches(
        place=(row * mask.shape[1] + time)[order],
        counts=torch.bincount(offset).cpu(),
        row=start_row[longest_first],
        begins_episode=is_first[start_row, start_time][longest_first],
    )

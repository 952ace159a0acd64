"""What is drawn from a replay buffer: Trajectories whose last observations are worked out when they are asked for."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rlx.data.dict_tensor import DictTensor
from rlx.data.temporal_dict_tensor import TemporalDictTensor
from rlx.data.trajectories import Trajectories


def drawn(info: DictTensor, steps: TemporalDictTensor, num_steps: int | None = None) -> Trajectories:
    """Return sequences that were drawn as Trajectories.

    Args:
        info: `[N]`.
        steps: `[N, T]`.
        num_steps: the sum of the lengths, where it is known.
    """
    return Trajectories(info, steps, lambda: _bootstrap(steps), num_steps=num_steps)


def split(trajectories: Trajectories, batch_size: int) -> Iterator[Trajectories]:
    """Yield what was drawn in batches of `batch_size` sequences: views."""
    num_steps = batch_size * trajectories.steps.max_length if trajectories.is_full() else None
    for info, steps in zip(trajectories.info.split(batch_size), trajectories.steps.split(batch_size), strict=True):
        yield drawn(info, steps, num_steps)


def _bootstrap(steps: TemporalDictTensor) -> DictTensor:
    """Return the observation after each sequence's last step; none after a termination."""
    last = steps.lengths - 1
    row = torch.arange(steps.batch_size, device=last.device)
    row = row[~steps["next/terminated"][row, last]]
    time = last[row]
    fields: dict[str, Tensor] = {"row": row, "time": time, "is_first": torch.zeros_like(row, dtype=torch.bool)}
    for name in steps:
        group, _, key = name.partition("/")
        if group == "next" and key not in ("terminated", "truncated", "discount"):
            fields["prev_reward" if key == "reward" else key] = steps[name][row, time]
        elif name == "agent/action" or name.startswith("agent/action/"):
            fields[f"prev_{key}"] = steps[name][row, time]
    return DictTensor.trusted(fields, len(row))

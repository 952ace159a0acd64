"""What the ranks of a distributed learner tell each other at an iteration's end, so that all of them go on alike."""

import signal
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from rlx.batcher.pieces import Episode
from rlx.errors import RankError
from rlx.run.ranks import Ranks
from rlx.run.signals import STOP_SIGNALS


@dataclass(frozen=True)
class Iteration:
    """What an iteration came to: of one rank, or of all.

    Attributes:
        terms: what the algorithm reports: 0-dimensional tensors or numbers.
        env_steps: valid environment steps.
        samples: samples of all updates.
        episodes: the training episodes that ended.
        stop: the signal that asked to stop.
        late: whether a checkpoint is due by the clock.
        restarts: of workers, so far.
        dropped_steps: likewise.
    """

    terms: Mapping[str, Tensor | float]
    env_steps: int
    samples: int
    episodes: list[Episode]
    stop: signal.Signals | None
    late: bool
    restarts: int
    dropped_steps: int


def agree(ranks: Ranks, own: Iteration) -> Iteration:
    """Return the iteration of all ranks together; the same on each.

    Steps and whole numbers among the terms are added up. Other terms are means, weighed by each rank's samples, or by
    its steps where there was no update. Episodes come in the order of the ranks.

    Raises:
        RankError: the ranks do not report the same terms: they have gone different ways.
    """
    if ranks.size == 1:
        return own
    names = zlib.crc32("\n".join(own.terms).encode())
    stops = [float(own.stop == number) for number in STOP_SIGNALS]
    counts = [0] * ranks.size
    counts[ranks.rank] = len(own.episodes)
    mine = [own.env_steps, own.samples, own.late, own.restarts, own.dropped_steps, names]
    header = _sum(ranks, torch.tensor([*mine, *stops, *counts], dtype=torch.float64))
    env_steps, samples, late, restarts, dropped_steps = (int(value) for value in header[: len(mine) - 1])
    if header[len(mine) - 1] != names * ranks.size:
        raise RankError(f"the ranks went different ways: rank {ranks.rank} reports {', '.join(own.terms) or 'nothing'}")
    asked = header[len(mine) : len(mine) + len(stops)]
    numbers = [int(value) for value in header[len(mine) + len(stops) :]]
    weight, total = (own.samples, samples) if samples else (own.env_steps, env_steps)
    values = [_share(value, weight) for value in own.terms.values()]
    played = torch.zeros(sum(numbers), 3, dtype=torch.float64)
    place = sum(numbers[: ranks.rank])
    if own.episodes:
        played[place : place + len(own.episodes)] = torch.tensor(own.episodes, dtype=torch.float64)
    sums = _sum(ranks, torch.cat([torch.tensor(values, dtype=torch.float64), played.flatten()]))
    terms: dict[str, Tensor | float] = {}
    for (name, value), total_of in zip(own.terms.items(), sums, strict=False):
        terms[name] = int(total_of) if isinstance(value, int) else total_of / max(total, 1)
    rows = sums[len(values) :]
    episodes = [(int(rows[i]), rows[i + 1], int(rows[i + 2])) for i in range(0, len(rows), 3)]
    stop = first_of(asked)
    return Iteration(terms, env_steps, samples, episodes, stop, late > 0, restarts, dropped_steps)


def agree_on_stop(ranks: Ranks, own: signal.Signals | None) -> signal.Signals | None:
    """Return the signal that asked any rank to stop, the same on each; None where none did."""
    if ranks.size == 1:
        return own
    return first_of(_sum(ranks, torch.tensor([float(own == number) for number in STOP_SIGNALS])))


def first_of(asked: list[float]) -> signal.Signals | None:
    """Return the first of the signals that stop a run which somebody got."""
    return next((number for number, count in zip(STOP_SIGNALS, asked, strict=True) if count), None)


def _sum(ranks: Ranks, own: Tensor) -> list[float]:
    return cast("list[float]", ranks.reduce(own).tolist())


def _share(value: Tensor | float, weight: int) -> float:
    """Return what a rank adds to a term's sum: a count as it is, a mean times its weight."""
    if isinstance(value, int):
        return float(value)
    return float(value) * weight if weight else 0.0

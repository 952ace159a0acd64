"""What the ranks of a distributed learner tell each other at an iteration's end, so that all of them go on alike."""

import math
import signal
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rlx.batcher.episode_log import EpisodeLog
from rlx.errors import RankError, UserError
from rlx.run.averages import number_of
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
    episodes: EpisodeLog
    stop: signal.Signals | None
    late: bool
    restarts: int
    dropped_steps: int

    def __post_init__(self) -> None:
        """Refuse steps that cannot be counted: they decide when the run ends, and name its checkpoints.

        Raises:
            UserError: they are no integer >= 0.
        """
        told = self.env_steps
        if not isinstance(told, int) or told < 0:  # pyright: ignore[reportUnnecessaryIsInstance] (it is what a user gave)
            got = f"{told!r} ({type(told).__name__})"
            raise UserError(f"run.log: env_steps is {got}, expected an integer >= 0, such as trajectories.num_steps")


def agree(ranks: Ranks, own: Iteration) -> Iteration:
    """Return the iteration of all ranks together; the same on each.

    Steps and whole numbers among the terms are added up. Other terms are means, weighed by each rank's samples, by its
    steps where there was no update, or evenly where there were none; over what is not NaN. Episodes come in the order
    of the ranks.

    Raises:
        RankError: the ranks do not report the same terms: they have gone different ways.
    """
    if ranks.size == 1:
        return own
    names = zlib.crc32("\n".join(own.terms).encode())
    stops = [float(own.stop == number) for number in STOP_SIGNALS]
    mine = [own.env_steps, own.samples, own.late, own.restarts, own.dropped_steps, len(own.episodes), names, *stops]
    all_of_them = ranks.gather(torch.tensor(mine, dtype=torch.float64)).unbind(1)  # of every rank, `[R]` each
    steps_of, samples_of, late_of, restarts_of, dropped_of, numbers_of, names_of, *stops_of = all_of_them
    if (names_of != names).any():
        raise RankError(f"the ranks went different ways: rank {ranks.rank} reports {', '.join(own.terms) or 'nothing'}")
    added = (steps_of, samples_of, late_of, restarts_of, dropped_of)
    env_steps, samples, late, restarts, dropped_steps = (int(each.sum()) for each in added)
    weighed = samples_of if samples else steps_of if env_steps else torch.ones(ranks.size)
    weights = cast("list[float]", weighed.tolist())
    numbers = [int(number) for number in numbers_of]
    values = torch.zeros(ranks.size, len(own.terms), dtype=torch.float64)
    values[ranks.rank] = torch.tensor([number_of(*term) for term in own.terms.items()], dtype=torch.float64)
    played = torch.zeros(sum(numbers), 3, dtype=torch.float64)
    place = sum(numbers[: ranks.rank])
    columns = own.episodes.rows, own.episodes.returns, own.episodes.lengths
    played[place : place + len(own.episodes)] = torch.from_numpy(np.column_stack(columns))
    found = _sum(ranks, torch.cat([values.flatten(), played.flatten()]))
    terms: dict[str, Tensor | float] = {}
    for column, (name, value) in enumerate(own.terms.items()):
        reported = found[column : values.numel() : len(own.terms)]
        terms[name] = int(sum(reported)) if isinstance(value, int) else _mean(reported, weights)
    rows = found[values.numel() :]
    episodes = EpisodeLog(*np.array(rows).reshape(-1, 3).T)
    stop = first_of([float(each.sum()) for each in stops_of])
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


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted mean of what is not NaN: of equal numbers that number, to the bit."""
    known = [pair for pair in zip(values, weights, strict=True) if pair[1] and not math.isnan(pair[0])]
    if not known:
        return math.nan
    if len({value for value, _ in known}) == 1:
        return known[0][0]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)

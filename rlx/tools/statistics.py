"""Statistics of a few runs: interquartile means, performance profiles, the probability of improvement, and intervals.

As Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice", recommend them. Scores
of several tasks are a list with one array `[num_runs]` a task; a stratified bootstrap draws runs anew within each task.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Literal["mean", "iqm", "median"]

_CHUNK = 1 << 22
"""Numbers that a bootstrap holds at once, at most: 32 MB."""


def summarize(values: Array, statistic: Statistic, axis: int = 0) -> Any:
    """Return the mean, the interquartile mean or the median along an axis."""
    match statistic:
        case "mean":
            return values.mean(axis)
        case "median":
            return np.median(values, axis)
        case "iqm":
            return interquartile_mean(values, axis)


def interquartile_mean(values: Array, axis: int = 0) -> Any:
    """Return the mean without the lowest and the highest quarter (each rounded down to whole values)."""
    count = values.shape[axis]
    cut = count // 4
    ordered = np.sort(values, axis)
    return ordered.take(range(cut, count - cut), axis).mean(axis)


def bootstrap_interval(
    values: Array, statistic: Statistic, *, level: float, draws: int, seed: int = 0
) -> tuple[Array, Array]:
    """Return the percentile bootstrap interval of a statistic over runs.

    Args:
        values: `[num_runs, ...]`.
        statistic: of the first axis.
        level: the interval's, such as 0.95.
        draws: how many times runs are drawn anew, with replacement.
        seed: of the draws; the same one gives the same interval.

    Returns:
        Low and high ends, `[...]`; both the value itself where there is one run only.
    """
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(1, values.size))
    found: list[Array] = []
    for start in range(0, draws, size):
        rows = rng.integers(len(values), size=(min(size, draws - start), len(values)))
        found.append(summarize(values[rows], statistic, axis=1))
    return _ends(np.concatenate(found), level)


def stratified_interval(
    function: Callable[[list[Array]], Any], tasks: Sequence[Array], *, level: float, draws: int, seed: int = 0
) -> tuple[Array, Array]:
    """Return the percentile bootstrap interval of a function of the runs of several tasks.

    Args:
        function: takes one array of scores a stratum, as `tasks` has them; returns a number or an array.
        tasks: `[num_runs]` each; runs are drawn anew within each.
        level: the interval's, such as 0.95.
        draws: how many times.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    found = [function([scores[rng.integers(len(scores), size=len(scores))] for scores in tasks]) for _ in range(draws)]
    return _ends(np.asarray(found, float), level)


def performance_profile(tasks: Sequence[Array], thresholds: Array) -> Array:
    """Return for each threshold the share of runs whose score is above it, every task counting alike, `[thresholds]`.

    Equation 5 of the paper.
    """
    return np.mean([(scores[:, None] > thresholds).mean(0) for scores in tasks], axis=0)


def probability_of_improvement(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """Return the probability that a run of ours beats one of theirs on a task drawn evenly; a tie counts one half.

    The mean over tasks of the Mann-Whitney statistic (section 4.3 of the paper).
    """
    differences = [np.subtract.outer(own, other) for own, other in zip(ours, theirs, strict=True)]
    return float(np.mean([((found > 0) + 0.5 * (found == 0)).mean() for found in differences]))


def _ends(found: Array, level: float) -> tuple[Array, Array]:
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(found, [tail, 100.0 - tail], axis=0)
    return low, high

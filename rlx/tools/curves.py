"""Learning curves of groups of runs: read, brought to common points, and averaged over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlx.errors import ConfigError, RunDirectoryError, did_you_mean
from rlx.run.directory import METRICS
from rlx.run.metrics import blank_rows, read_columns, read_metrics
from rlx.tools.groups import Group
from rlx.tools.statistics import Statistic, bootstrap_interval, summarize

Array = NDArray[np.float64]

NUM_POINTS = 200
"""Points of a curve: each is the mean over its share of the axis, so that nothing between them is lost."""


@dataclass(frozen=True)
class Curve:
    """A metric over an axis, of one run.

    Attributes:
        run: its directory.
        x: increasing.
        y: as many.
    """

    run: Path
    x: Array
    y: Array


@dataclass(frozen=True)
class GroupCurves:
    """The curves of a group's runs."""

    group: Group
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Band:
    """What a group's curves come to.

    Attributes:
        x: `[points]`.
        middle: the mean, or what was asked for, over runs.
        low: lower end of its bootstrap interval.
        high: upper end.
        each: `[num_runs, points]`.
    """

    x: Array
    middle: Array
    low: Array
    high: Array
    each: Array


def read_curves(groups: Sequence[Group], metric: str, axis: str, notes: list[str]) -> list[GroupCurves]:
    """Read what the runs of groups logged.

    Args:
        groups: of runs.
        metric: a column of `metrics.csv`.
        axis: another: `env_steps`, `wall_time` or `iteration`.
        notes: takes a line for each run that has nothing to show, which is left out, or has rows that are no numbers.

    Raises:
        ConfigError: no run has the metric; says which there are.
    """
    found: list[GroupCurves] = []
    for group in groups:
        curves: list[Curve] = []
        for run in group.runs:
            try:
                columns = read_columns(run / METRICS, (axis, metric))
            except RunDirectoryError as error:
                notes.append(f"left out: {error}")
                continue
            x, y = (np.asarray(columns.get(name, []), float) for name in (axis, metric))
            kept = np.isfinite(y) if len(x) == len(y) else np.zeros(0, bool)
            if not kept.any():
                notes.append(f"left out: '{run}' has no '{metric}' over '{axis}'")
                continue
            _tell_undefined(run, x, y, metric, axis, notes)
            # The last one counts where there are two: rows of evaluations come late, but each has its own steps.
            order = np.argsort(x[kept], kind="stable")
            x, y = x[kept][order], y[kept][order]
            last = np.append(np.diff(x) > 0, True)
            curves.append(Curve(run, x[last], y[last]))
        if curves:
            found.append(GroupCurves(group, tuple(curves)))
    if not found:
        raise ConfigError(_no_such_metric(groups, metric, axis))
    return found


def _tell_undefined(run: Path, x: Array, y: Array, metric: str, axis: str, notes: list[str]) -> None:
    """Note where a run's metric is no number, other than in rows that lack it."""
    if np.isfinite(y).all():
        return
    wrong = ~np.isfinite(y) & ~np.array(blank_rows(run / METRICS, metric)[: len(y)], bool)
    if wrong.any():
        last = x[np.isfinite(y)].max()
        cut = f", and nothing is known of it after {last:,.6g}" if x[wrong].max() > last else ""
        where = f"in {wrong.sum():,} rows, from {axis} {x[wrong].min():,.6g} on"
        notes.append(f"'{run}': '{metric}' is NaN or infinite {where}; these are left out{cut}")


def average(curves: Sequence[Curve], edges: Array, *, statistic: Statistic, level: float, draws: int) -> Band:
    """Average a group's curves where all of its runs have values.

    Args:
        curves: of the group's runs.
        edges: `[points + 1]`, increasing: where the points' shares of the axis begin and end.
        statistic: over runs.
        level: of the bootstrap interval.
        draws: of the bootstrap.
    """
    each = np.stack([resample(curve, edges) for curve in curves])
    common = np.isfinite(each).all(0)
    each, x = each[:, common], ((edges[:-1] + edges[1:]) / 2)[common]
    low, high = bootstrap_interval(each, statistic, level=level, draws=draws)
    return Band(x, summarize(each, statistic), low, high, each)


def resample(curve: Curve, edges: Array) -> Array:
    """Return the mean of a curve, taken as straight lines between its points, over each of the axis's shares.

    NaN where the curve covers less than half of a share.
    """
    inside = np.clip(edges, curve.x[0], curve.x[-1])
    x = np.union1d(curve.x, inside)
    y = np.interp(x, curve.x, curve.y)
    place = np.searchsorted(x, inside)
    pieces = np.append((np.diff(x) * (y[1:] + y[:-1]) / 2)[: place[-1]], 0.0)
    width = np.diff(inside)
    covered = width >= np.diff(edges) / 2
    # Each share's own sum: of a running one, all that comes after a huge value would be lost in rounding.
    sums = np.where(np.diff(place) > 0, np.add.reduceat(pieces, place[:-1]), 0.0)
    return np.where(covered, sums / np.where(covered, width, 1.0), np.nan)


def common_edges(groups: Sequence[GroupCurves]) -> Array:
    """Return the shares of an axis that holds all of these curves."""
    curves = [curve for group in groups for curve in group.curves]
    first, last = min(float(curve.x[0]) for curve in curves), max(float(curve.x[-1]) for curve in curves)
    if first == last:
        raise ConfigError("a curve needs two points of a run at least; so far the runs have one each")
    return np.linspace(first, last, NUM_POINTS + 1)


def final_scores(group: GroupCurves, share: float) -> Array:
    """Return the mean of each curve over the last part of its axis, `[num_runs]`.

    Args:
        group: the curves.
        share: how much of each counts, such as 0.1.
    """
    return np.array([_tail(curve, share) for curve in group.curves])


def _tail(curve: Curve, share: float) -> float:
    start = curve.x[-1] - share * (curve.x[-1] - curve.x[0])
    return float(curve.y[curve.x >= start].mean())


def _no_such_metric(groups: Sequence[Group], metric: str, axis: str) -> str:
    unread: list[str] = []
    for group in groups:
        for run in group.runs:
            try:
                rows = read_metrics(run / METRICS)
            except RunDirectoryError as error:
                unread.append(str(error))
                continue
            known = sorted({name for row in rows for name, value in row.items() if isinstance(value, int | float)})
            if not known:
                continue
            if axis not in known:
                return f"--axis: no run has '{axis}'.{did_you_mean(axis, known)} There are: {', '.join(known)}"
            return f"--metric: no run has '{metric}'.{did_you_mean(metric, known)} There are: {', '.join(known)}"
    return unread[0] if unread else "no run has logged anything yet"

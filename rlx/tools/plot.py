"""`rlx plot`: learning curves, performance profiles and probabilities of improvement, from run directories."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from rlx.errors import ConfigError, RunDirectoryError, did_you_mean
from rlx.run.files import check_output
from rlx.tools.curves import Array, GroupCurves, average, common_edges, final_scores, read_curves
from rlx.tools.draw import COLORS, Figure, nice_limits, print_style, style_of, whiskers
from rlx.tools.groups import group_runs
from rlx.tools.record import METRIC
from rlx.tools.runs import find_runs
from rlx.tools.statistics import (
    Statistic,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

Kind = Literal["curves", "profile", "improvement"]

FORMATS = (".png", ".svg", ".pdf")
UNEVEN = 0.9
"""Where the shortest run of a group ends before this part of the longest one, the user is told."""

_AXES = {"env_steps": "environment steps", "wall_time": "seconds", "iteration": "iterations"}
_METRICS = {
    "episode/return": "return (last 100 episodes)",
    "episode/length": "episode length (last 100 episodes)",
    "eval/return": "return in evaluation",
    "eval/length": "episode length in evaluation",
}
_STATISTICS = {"mean": "mean", "iqm": "interquartile mean", "median": "median"}
_FEWEST_FOR_BAND = 3
_THRESHOLDS = 200


@dataclass(frozen=True)
class PlotOptions:
    """What a picture shows.

    Attributes:
        kind: `curves` over an axis; `profile`, the share of runs above each score; `improvement`, the probability that
            a run of one group beats one of another. The last two are about final scores.
        metric: a column of `metrics.csv`.
        axis: `env_steps`, `wall_time` or `iteration`.
        statistic: over a group's runs: `mean`, `iqm` (interquartile mean) or `median`.
        by: keys that tell groups apart; None to find those that differ.
        each: draw each run behind its group's curve.
        last: the part of each run whose mean is its final score.
        scales: for each environment the scores that count as 0 and 1 where several environments are put together; the
            least and greatest final scores where none is given.
        level: of the bootstrap intervals.
        draws: of the bootstrap.
        title: above the picture.
    """

    kind: Kind = "curves"
    metric: str = METRIC
    axis: str = "env_steps"
    statistic: Statistic = "mean"
    by: Sequence[str] | None = None
    each: bool = False
    last: float = 0.1
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    level: float = 0.95
    draws: int = 2000
    title: str = ""


def plot_runs(paths: Sequence[Path], out: Path, options: PlotOptions) -> list[str]:
    """Draw runs into a picture.

    Args:
        paths: run directories and folders of them, such as a multirun's.
        out: the picture: `.png`, `.svg` or `.pdf`.
        options: what it shows.

    Returns:
        Lines that say what is in the picture, what was left out, and what to know when reading it.

    Raises:
        RunDirectoryError: there are no runs.
        ConfigError: a metric, key or format that is not there.
        UserError: the picture is nowhere where a file can be written.
        RlxError: it could not be written; what was there before still is.
        MissingPackageError: matplotlib is not installed.
    """
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out: got '{out}', expected a name that ends in {', '.join(FORMATS)}")
    out = check_output(out, "--out")
    notes: list[str] = []
    runs = list(dict.fromkeys(run.resolve() for path in paths for run in find_runs(path, notes)))
    if not runs:
        raise RunDirectoryError(f"there is no run in {', '.join(f'{str(path)!r}' for path in paths)}")
    groups = read_curves(group_runs(runs, options.by, notes), options.metric, options.axis, notes)
    with print_style():
        picture, about = _KINDS[options.kind](groups, options, notes)
        picture.save(out)
    counted = "; ".join(
        f"{env}: {', '.join(f'{one.group.label} ({len(one.curves)})' for one in groups if one.group.env == env)}"
        for env in dict.fromkeys(one.group.env for one in groups)
    )
    return [f"{about} Runs by environment: {counted}.", *notes]


def parse_scales(words: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the scales that `ENV=LOW:HIGH` words give.

    Raises:
        ConfigError: a word is not of that form.
    """
    scales: dict[str, tuple[float, float]] = {}
    for word in words:
        env, _, numbers = word.rpartition("=")
        low, _, high = numbers.partition(":")
        try:
            scales[env] = float(low), float(high)
        except ValueError:
            raise ConfigError(f"--scale: got '{word}', expected ENV=LOW:HIGH, such as CartPole-v1=0:500") from None
        if not env or scales[env][0] == scales[env][1]:
            raise ConfigError(f"--scale: got '{word}', expected an environment and two different scores")
    return scales


def _curves(groups: list[GroupCurves], options: PlotOptions, notes: list[str]) -> tuple[Figure, str]:
    envs = list(dict.fromkeys(one.group.env for one in groups))
    styles = style_of([one.group.label for one in groups])
    figure = Figure(len(envs))
    alone = len(styles) == 1
    for panel, env in enumerate(envs):
        here = [one for one in groups if one.group.env == env]
        edges = common_edges(here)
        for one in here:
            _tell_uneven(one, options, notes)
            band = average(one.curves, edges, statistic=options.statistic, level=options.level, draws=options.draws)
            if not len(band.x):
                notes.append(f"{env}, {one.group.label}: no part of the axis is covered by all of its runs")
                continue
            few = len(one.curves) < _FEWEST_FOR_BAND
            figure.curve(
                panel,
                band.x,
                band.middle,
                style=styles[one.group.label],
                label=one.group.label,
                band=None if few else (band.low, band.high),
                each=band.each if options.each or (few and len(one.curves) > 1) else None,
            )
        title = env if not (alone and options.title) else options.title
        figure.label(panel, title=title, x=_AXES.get(options.axis, options.axis), y=_metric(options.metric))
        figure.thousands(panel)
    if not alone or len(envs) > 1:
        figure.headline(options.title)
    figure.legend()
    about = f"{options.metric} over {options.axis}: {_STATISTICS[options.statistic]} over runs; {_bands(options)}"
    return figure, f"{about}, where there are {_FEWEST_FOR_BAND} runs or more."


def _profile(groups: list[GroupCurves], options: PlotOptions, notes: list[str]) -> tuple[Figure, str]:
    scores, axis, about = _scores(groups, options, notes)
    everything = np.concatenate([task for tasks in scores.values() for task in tasks])
    low, high = nice_limits(everything)
    thresholds = np.linspace(low - 0.02 * (high - low), high + 0.02 * (high - low), _THRESHOLDS)
    figure = Figure(1)
    styles = style_of(list(scores))
    for label, tasks in scores.items():
        share = performance_profile(tasks, thresholds)
        few = min(map(len, tasks)) < _FEWEST_FOR_BAND
        band = (
            None
            if few
            else stratified_interval(
                lambda drawn: performance_profile(drawn, thresholds), tasks, level=options.level, draws=options.draws
            )
        )
        figure.curve(0, thresholds, share, style=styles[label], label=label, band=band, steps=True)
    figure.label(0, title=options.title, x=axis, y="share of runs with a greater score")
    figure.panels[0].set_ylim(-0.02, 1.02)
    figure.panels[0].margins(x=0)
    figure.legend(inside=False)
    bands = f"{_bands(options)}, stratified by environment, where there are {_FEWEST_FOR_BAND} runs or more of each."
    return figure, f"Performance profiles. {about} {bands}"


def _improvement(groups: list[GroupCurves], options: PlotOptions, notes: list[str]) -> tuple[Figure, str]:
    scores, _, about = _scores(groups, options, notes)
    labels = list(scores)
    if len(labels) < 2:
        raise ConfigError("--kind improvement: expected two groups of runs at least, got one; see --by")
    pairs = [(ours, theirs) for place, ours in enumerate(labels) for theirs in labels[place + 1 :]]
    # The better one of each pair stands on the left: one half is what to look at.
    values = [probability_of_improvement(scores[ours], scores[theirs]) for ours, theirs in pairs]
    pairs = [pair if value >= 0.5 else pair[::-1] for pair, value in zip(pairs, values, strict=True)]
    values = [max(value, 1.0 - value) for value in values]
    ends: list[tuple[Array, Array]] = []
    for ours, theirs in pairs:
        count = len(scores[ours])

        def improvement(drawn: list[Array], count: int = count) -> float:
            return probability_of_improvement(drawn[:count], drawn[count:])

        both = [*scores[ours], *scores[theirs]]
        if min(map(len, both)) < _FEWEST_FOR_BAND:  # draws of so few tell nothing of what another run would do
            value = np.asarray(improvement(both))
            ends.append((value, value))
            notes.append(f"{ours}, {theirs}: no interval, of fewer than {_FEWEST_FOR_BAND} runs")
            continue
        ends.append(stratified_interval(improvement, both, level=options.level, draws=options.draws))
    figure = Figure(1, panel=(3.4, 0.35 + 0.32 * len(pairs)))
    axes, styles = figure.panels[0], style_of(labels)
    colors = [COLORS[styles[ours] % len(COLORS)] for ours, _ in pairs]
    whiskers(axes, range(len(pairs)), values, [low for low, _ in ends], [high for _, high in ends], colors)
    axes.axvline(0.5, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(pairs)), [f"{ours} > {theirs}" for ours, theirs in pairs])
    axes.set_xlim(min(0.45, *(float(low) for low, _ in ends)) - 0.02, 1.02)
    figure.label(0, title=options.title, x="probability of improvement")
    return figure, f"Probability that a run of the one beats a run of the other. {about} {_bands(options)}."


def _scores(
    groups: list[GroupCurves], options: PlotOptions, notes: list[str]
) -> tuple[dict[str, list[Array]], str, str]:
    """Return the final scores by label, one array an environment, what the score is, and a sentence about it.

    Runs that end early are noted: their scores are of less training than the others'.

    Raises:
        ConfigError: a group has no runs on one of the environments, or a scale is of none of them.
    """
    envs = list(dict.fromkeys(one.group.env for one in groups))
    for env in options.scales:
        if env not in envs:
            raise ConfigError(f"--scale: no run is of '{env}'.{did_you_mean(env, envs)}")
    for env in envs:
        _tell_cut(env, [one for one in groups if one.group.env == env], options, notes)
    raw = {(one.group.env, one.group.label): final_scores(one, options.last) for one in groups}
    labels = list(dict.fromkeys(one.group.label for one in groups))
    for label in labels:
        for env in envs:
            if (env, label) not in raw:
                raise ConfigError(f"'{label}' has no run on {env}: scores over environments need each group on all")
    about = f"A run's score is the mean of {options.metric} over its last {options.last:.0%}."
    if len(envs) == 1 and not options.scales:
        return {label: [raw[envs[0], label]] for label in labels}, _metric(options.metric), about
    scales = {
        env: options.scales.get(env) or nice_limits(np.concatenate([raw[env, label] for label in labels]))
        for env in envs
    }
    told = ", ".join(f"{env} {low:.4g} to {high:.4g}" for env, (low, high) in scales.items())
    scores = {
        label: [(raw[env, label] - scales[env][0]) / (scales[env][1] - scales[env][0]) for env in envs]
        for label in labels
    }
    return scores, "scaled score", f"{about} Scores are scaled to 0 to 1: {told}."


def _tell_uneven(one: GroupCurves, options: PlotOptions, notes: list[str]) -> None:
    """Note where a group's curve ends early, because one of its runs did."""
    ends = [curve.x[-1] for curve in one.curves]
    shortest = one.curves[int(np.argmin(ends))]
    if min(ends) < UNEVEN * max(ends):
        notes.append(
            f"{one.group.env}, {one.group.label}: the curve ends at {min(ends):,.6g} {options.axis}, where "
            f"'{shortest.run}' does; the longest run goes to {max(ends):,.6g}"
        )


def _tell_cut(env: str, groups: list[GroupCurves], options: PlotOptions, notes: list[str]) -> None:
    """Note the runs of an environment that end well before its longest one."""
    curves = [curve for one in groups for curve in one.curves]
    longest = max(float(curve.x[-1]) for curve in curves)
    cut = sorted((curve for curve in curves if curve.x[-1] < UNEVEN * longest), key=lambda curve: curve.x[-1])
    if cut:
        others = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
        notes.append(
            f"{env}: the score of '{cut[0].run}'{others} is of a run that ended early, at {cut[0].x[-1]:,.6g} "
            f"{options.axis}; the longest one went to {longest:,.6g}"
        )


def _metric(name: str) -> str:
    return _METRICS.get(name, name)


def _bands(options: PlotOptions) -> str:
    return f"bands: {options.level:.0%} bootstrap intervals"


_KINDS: dict[Kind, Callable[[list[GroupCurves], PlotOptions, list[str]], tuple[Figure, str]]] = {
    "curves": _curves,
    "profile": _profile,
    "improvement": _improvement,
}

"""What a study has found: its best trial, which keys matter, a table, and pictures."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study as OptunaStudy
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from rlx.errors import MissingPackageError
from rlx.tools.draw import COLORS, Figure, print_style
from rlx.tools.search_space import show
from rlx.tools.study import REASON, Study, counts

HISTORY, IMPORTANCE = "history.png", "importance.png"
_SHOWN = 5
"""Trials in the table, the best ones."""
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.FAIL: "failed",
}
_GREY = "#888888"


def describe_study(study: Study) -> dict[str, Any]:
    """Return what a study has found, as JSON-ready data.

    Returns:
        `study`, `title`, `count` by state, `best` (the number, or None), `importances`, and `trials`: each with
        `number`, `state`, `value` (the last evaluation where it was pruned), `params` (what was drawn), `overrides`
        (for `rlx train`) and `reason`.
    """
    trials = study.trials()
    rows = [_row(study, trial) for trial in trials if trial.state is not TrialState.WAITING]
    complete = [row for row in rows if row["state"] == "complete"]
    count = {name: sum(row["state"] == name for row in rows) for name in (*_STATES.values(), "interrupted")}
    return {
        "study": str(study.directory),
        "title": study.plan.title,
        "count": {name: number for name, number in count.items() if number},
        "best": max(complete, key=lambda row: row["value"])["number"] if complete else None,
        "importances": _importances(study.optuna),
        "trials": rows,
    }


def table(found: Mapping[str, Any], study: Study) -> Iterator[str]:
    """Give the lines of a table of what `describe_study` found."""
    counted = ", ".join(f"{number} {state}" for state, number in found["count"].items())
    yield f"{found['title']}: {counted or 'no trial yet'}"
    failed = [row for row in found["trials"] if row["state"] == "failed"]
    for row in failed[-_SHOWN:]:
        yield f"  trial {row['number']} failed: {row['reason']}"
    ranked = sorted((row for row in found["trials"] if row["state"] == "complete"), key=lambda row: -row["value"])
    if not ranked:
        return
    shown = ranked[:_SHOWN]
    head = ["", *(f"trial {row['number']}" for row in shown), "importance"]
    lines = [head, ["mean return", *(f"{row['value']:.2f}" for row in shown), ""]]
    for one in study.plan.parameters:
        weight = found["importances"].get(one.key)
        cells = [show(row["params"].get(one.key)) for row in shown]
        lines.append([one.key, *cells, "" if weight is None else f"{weight:.2f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        first, *others = line
        cells = [first.ljust(widths[0]), *(text.rjust(size) for text, size in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def draw_study(found: Mapping[str, Any], directory: Path) -> tuple[list[Path], list[str]]:
    """Draw the history of a study, and the importance of its keys where enough trials have ended.

    Returns:
        The pictures, and a line for each that could not be drawn.
    """
    pictures: list[Path] = []
    try:
        with print_style():
            if any(row["value"] is not None for row in found["trials"]):
                pictures.append(_draw_history(found, directory / HISTORY))
            if found["importances"]:
                pictures.append(_draw_importance(found, directory / IMPORTANCE))
    except MissingPackageError as error:
        return [], [f"no pictures: {error}"]
    notes = [] if found["importances"] else ["importance.png is drawn when a few trials have come to their end"]
    return pictures, notes


def _row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    state = _STATES[trial.state]
    value = trial.value if trial.state is TrialState.COMPLETE else None
    if trial.state is TrialState.PRUNED and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
    drawn = all(one.key in trial.params for one in study.plan.parameters)
    return {
        "number": trial.number,
        "state": state if counts(trial) else "interrupted",
        "value": value,
        "params": trial.params,
        "overrides": study.overrides(trial) if drawn else [],
        "reason": trial.user_attrs.get(REASON),
    }


def _importances(study: OptunaStudy) -> dict[str, float]:
    """Return how much each key matters for being among the best tenth, 1 in all; empty where that is not known."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, in Optuna 4
        try:
            return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
        except (ValueError, RuntimeError):  # no key has been drawn twice
            return {}


def _draw_history(found: Mapping[str, Any], path: Path) -> Path:
    rows: Sequence[Mapping[str, Any]] = found["trials"]
    figure = Figure(1, panel=(4.2, 2.7))
    axes = figure.panels[0]
    complete = [row for row in rows if row["state"] == "complete"]
    pruned = [row for row in rows if row["state"] == "pruned" and row["value"] is not None]
    failed = [row["number"] for row in rows if row["state"] == "failed"]
    if complete:
        numbers = [row["number"] for row in complete]
        best = np.maximum.accumulate([row["value"] for row in complete])
        ends = [*numbers, max(row["number"] for row in rows) + 0.5]
        axes.plot(ends, [*best, best[-1]], color=COLORS[1], linewidth=1.5, drawstyle="steps-post", label="best so far")
        axes.plot(numbers, [row["value"] for row in complete], "o", color=COLORS[0], markersize=4.5, label="complete")
    if pruned:
        axes.plot(
            [row["number"] for row in pruned],
            [row["value"] for row in pruned],
            "o",
            markerfacecolor="none",
            markeredgecolor=_GREY,
            markersize=4.5,
            label="pruned, where it was",
        )
    if failed:
        bottom = axes.get_xaxis_transform()
        axes.plot(failed, [0.03] * len(failed), "x", color=COLORS[3], transform=bottom, label="failed", clip_on=False)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.5)
    figure.label(0, title=found["title"], x="trial", y="mean return")
    figure.save(path)
    return path


def _draw_importance(found: Mapping[str, Any], path: Path) -> Path:
    importances: Mapping[str, float] = found["importances"]
    figure = Figure(1, panel=(3.4, 0.5 + 0.24 * len(importances)))
    axes = figure.panels[0]
    places = range(len(importances))
    axes.barh(places, list(importances.values()), height=0.62, color=COLORS[0])
    for place, value in zip(places, importances.values(), strict=True):
        axes.text(value, place, f" {value:.2f}", va="center", ha="left", fontsize=8)
    axes.set_yticks(places, list(importances))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    complete = found["count"]["complete"]
    figure.label(0, title=found["title"], x=f"importance, from {complete} complete trials")
    figure.save(path)
    return path

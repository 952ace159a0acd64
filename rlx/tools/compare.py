"""`rlx compare A B`: what two runs, or two folders of runs, were told differently, beside what they reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.errors import RunDirectoryError
from rlx.run.console import format_value
from rlx.run.migrate import told_together
from rlx.tools.record import METRIC, RunRecord, check_metric, read_run
from rlx.tools.runs import find_runs

_NO_MATTER = ("run_dir",)
_MANY = 4
"""Values of a key over a folder's runs that are shown one by one, at most."""


@dataclass(frozen=True)
class Side:
    """One of the two: a run, or all runs of a folder.

    Attributes:
        path: as it was typed.
        runs: one at least.
    """

    path: Path
    runs: tuple[RunRecord, ...]

    def values(self, key: str) -> list[Any]:
        """Return the values that a key of the configuration has over the runs, each once; None where it is missing."""
        found: list[Any] = []
        for run in self.runs:
            value = run.config.get(key)
            if value not in found:
                found.append(value)
        return found

    def results(self) -> dict[str, float | None]:
        """Return what the runs reached: means over those that have the figure."""
        figures: dict[str, list[float | None]] = {
            "best": [run.best for run in self.runs],
            "last": [run.last for run in self.runs],
            "env_steps": [float(run.env_steps) for run in self.runs],
            "steps_per_second": [run.steps_per_second for run in self.runs],
        }
        return {name: _mean(values) for name, values in figures.items()}


def compare_runs(ours: Path, theirs: Path, metric: str = METRIC) -> dict[str, Any]:
    """Compare two runs, or two folders of runs, of which means are taken.

    Args:
        ours: a run directory or a folder of runs.
        theirs: another.
        metric: what `best` and `last` are of.

    Returns:
        JSON-ready: `runs` (how many on each side), `status`, `config` (`{key: [ours, theirs]}`, lists of the values
        that the runs of each side have, for the keys that differ), `results` (`{name: [ours, theirs]}`) and `notes`
        (a line where there are runs of an older rlx).

    Raises:
        RunDirectoryError: there is no run in one of the two, or a run cannot be read.
        ConfigError: no run has the metric.
    """
    sides = [_side(ours, metric), _side(theirs, metric)]
    check_metric((run for side in sides for run in side.runs), metric)
    keys = dict.fromkeys(key for side in sides for run in side.runs for key in run.config)
    config = {key: [side.values(key) for side in sides] for key in keys if key not in _NO_MATTER}
    results = [side.results() for side in sides]
    return {
        "runs": [len(side.runs) for side in sides],
        "status": [sorted({run.status for run in side.runs}) for side in sides],
        "metric": metric,
        "config": {key: pair for key, pair in config.items() if not _same(*pair)},
        "results": {name: [found[name] for found in results] for name in results[0]},
        "notes": told_together([run.older for side in sides for run in side.runs if run.older is not None]),
    }


def describe_comparison(found: dict[str, Any], ours: Path, theirs: Path) -> Iterator[str]:
    """Give the lines that show what `compare_runs` returned."""
    rows: list[tuple[str, ...]] = [("", str(ours), str(theirs), "difference")]
    rows.append(("runs", *map(str, found["runs"]), ""))
    rows.append(("status", *(", ".join(status) for status in found["status"]), ""))
    for key, pair in found["config"].items():
        rows.append((key, *map(_show, pair), ""))
    for name, (one, other) in found["results"].items():
        change = "" if one is None or other is None else f"{'+' if other > one else ''}{_figure(other - one)}"
        label = f"{name} {found['metric']}" if name in ("best", "last") else name
        rows.append((label, _figure(one), _figure(other), change))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    if not found["config"]:
        yield "their configurations are the same"


def _side(path: Path, metric: str) -> Side:
    runs = tuple(read_run(directory, metric) for directory in find_runs(path))
    if not runs:
        raise RunDirectoryError(f"there is no run in '{path}'")
    return Side(path, runs)


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    return all(value in theirs for value in ours) and all(value in ours for value in theirs)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _figure(value: float | None) -> str:
    return format_value(int(value) if value is not None and value.is_integer() else value)


def _show(values: list[Any]) -> str:
    shown = ["-" if value is None else str(value) for value in values[:_MANY]]
    return ", ".join(shown) + (f", ... ({len(values)} values)" if len(values) > _MANY else "")

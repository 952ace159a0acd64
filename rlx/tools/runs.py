"""`rlx runs`: the runs in a folder, filtered and sorted, as a table."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError, RunDirectoryError, did_you_mean
from rlx.run.console import format_value
from rlx.run.directory import CONFIG, PREPARED, is_run_directory
from rlx.run.files import expanded
from rlx.run.migrate import told_together
from rlx.run.sweep import is_sweep
from rlx.tools.queued import sweeps_of, with_jobs
from rlx.tools.record import METRIC, RunRecord, check_metric, read_run

STUDY, CONF = "study.yaml", "conf"
"""What `rlx tune` writes beside the runs of a study."""


def list_runs(
    folder: Path | str,
    *,
    metric: str = METRIC,
    status: Sequence[str] = (),
    where: Sequence[str] = (),
    sort: str = "run",
    descending: bool = False,
) -> tuple[list[RunRecord], list[str]]:
    """Read all runs in a folder.

    Args:
        folder: of runs, at any depth.
        metric: what `best` and `last` are of.
        status: those to keep; all where it is empty.
        where: `KEY=VALUE`, each of which a run has to have: `algo`, `env`, or any key of the configuration.
        sort: a key of `SORTS`; runs without a value come last.
        descending: whether the greatest comes first.

    Returns:
        The runs, and a line for each folder that could not be read or holds something else, or is of an older rlx.

    Raises:
        RunDirectoryError: there is no such folder.
        ConfigError: a filter that is not `KEY=VALUE`, or a metric or a key that no run has.
    """
    wanted: list[tuple[str, str]] = []
    for word in where:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--where: got '{word}', expected KEY=VALUE, such as algo=ppo or algo.gamma=0.99")
        wanted.append((key, value))
    problems: list[str] = []
    found: list[RunRecord] = []
    sweeps: list[Path] = []
    for directory in find_runs(folder, problems, sweeps):
        try:
            found.append(read_run(directory, metric))
            if found[-1].total_steps is None:
                problems.append(f"{directory / CONFIG}: holds no configuration of a run")
        except (RunDirectoryError, OSError) as error:
            problems.append(f"{directory}: {error}")
    top = expanded(folder)
    found = with_jobs(found, sweeps_of(top, sweeps, (record.directory for record in found)), top, problems)
    found.sort(key=lambda record: [_natural(part) for part in record.directory.parts])
    records: list[RunRecord] = []
    for record in found:
        try:
            if (not status or record.status in status) and all(_is(record.value(key), text) for key, text in wanted):
                records.append(record)
        except (RunDirectoryError, OSError) as error:
            problems.append(f"{record.directory}: {error}")
    check_metric(found, metric)
    if wanted and not records:
        _check_keys(found, [key for key, _ in wanted])
    problems.extend(told_together([record.older for record in records if record.older is not None]))
    if sort != "run":
        value = SORTS[sort]
        records.sort(key=value, reverse=descending)
        records.sort(key=lambda record: value(record) == _NOTHING)
    elif descending:
        records.reverse()
    return records, problems


_NOTHING = (-math.inf, "")
SORTS: dict[str, Callable[[RunRecord], tuple[float, str]]] = {
    "run": lambda record: (0.0, str(record.directory)),
    "best": lambda record: (_low(record.best), ""),
    "last": lambda record: (_low(record.last), ""),
    "steps": lambda record: (record.env_steps, ""),
    "progress": lambda record: (_low(record.progress), ""),
    "speed": lambda record: (_low(record.steps_per_second), ""),
    "began": lambda record: (record.began, ""),
    "status": lambda record: (0.0, record.status),
    "algo": lambda record: (0.0, record.algo),
    "env": lambda record: (0.0, record.env),
}
"""What runs can be sorted by."""


def _check_keys(records: Sequence[RunRecord], keys: Sequence[str]) -> None:
    """Refuse filters by a key that no run has.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    known = {"algo", "env", "status"}
    for record in records:
        with contextlib.suppress(RunDirectoryError, OSError):  # which is told already
            known.update(record.overrides, record.config if record.directory.exists() else ())
    for key in keys:
        if records and key not in known:
            raise ConfigError(f"--where: no run has a key '{key}'.{did_you_mean(key, known)}")


def _low(value: float | None) -> float:
    return -math.inf if value is None else value


def _is(value: Any, text: str) -> bool:
    """Return whether a key's value is what a filter says: the same text, however it is quoted, or the same number."""
    if _bare(str(value)) == _bare(text) or (value is None and text == "null"):
        return True
    if value is None:
        return False
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return False


def _bare(text: str) -> str:
    """Return text without what a list may be written with or without: `[8, 8]` stands in files, `[8,8]` was typed."""
    return re.sub(r"""['"]|(?<=,)\s+""", "", text).lower()


def find_runs(
    folder: Path | str, problems: list[str] | None = None, sweeps: list[Path] | None = None
) -> Iterator[Path]:
    """Give the run directories in a folder and in those below it, by name; links are not followed.

    Args:
        folder: a run directory itself, or any folder above some: of one sweep, or of all runs.
        problems: takes a line for each folder that cannot be read, and for each that holds files but no run.
        sweeps: takes the directory of each sweep.

    Raises:
        RunDirectoryError: there is no such folder.
    """
    top = expanded(folder)
    if not top.is_dir():
        raise RunDirectoryError(f"there is no folder '{folder}'")
    told: list[str] = [] if problems is None else problems
    yield from _walk(top, told, [] if sweeps is None else sweeps)


def _walk(folder: Path, problems: list[str], sweeps: list[Path]) -> Iterator[Path]:
    found: list[os.DirEntry[str]] = []
    try:
        of_sweep, of_run = is_sweep(folder), is_run_directory(folder)
        if not of_run:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: _natural(entry.name))
    except OSError as error:
        problems.append(f"{folder}: cannot be read: {error.strerror}")
        return
    if of_sweep:
        sweeps.append(folder)
    if of_run:
        yield folder
        return
    inside: list[str] = []
    any_run = study = any(entry.name == STUDY for entry in found)
    for entry in found:
        if (of_sweep and entry.name == PREPARED) or (study and entry.name == CONF):
            continue
        linked = entry.is_symlink() and _is_run(entry, inside)  # runs may be gathered by links
        if (linked or entry.is_dir(follow_symlinks=False)) and not entry.name.startswith("."):
            for run in _walk(Path(entry.path), inside, sweeps):
                any_run = True
                yield run
    files = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
    foreign = files and not any_run and not of_sweep
    # Of a foreign tree its top alone is told, but always what could not be read.
    problems.extend(line for line in inside if not foreign or "cannot be read" in line)
    if foreign:
        problems.append(f"{folder}: no run of rlx; it holds {files[0]}{' and other files' if files[1:] else ''}")


def _is_run(link: os.DirEntry[str], problems: list[str]) -> bool:
    """Return whether a link leads to a run; one that leads in a circle, or to what nobody may see, is told."""
    try:
        return link.is_dir() and is_run_directory(link.path)
    except OSError as error:
        problems.append(f"{link.path}: cannot be read: {error.strerror}")
    except RunDirectoryError as error:
        problems.append(str(error))
    return False


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts `10` behind `9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def table(records: Sequence[RunRecord], folder: Path, width: int) -> Iterator[str]:
    """Give the lines of a table of runs, a line with the reason below each that was stopped or failed.

    Args:
        records: the runs.
        folder: what their names are relative to.
        width: columns of the terminal; what a line has beyond it is cut off.
    """
    head = ["run", "status", "algo", "env", "steps", "done", "best", "last", "steps/s", "overrides"]
    rows = [_cells(record, folder) for record in records]
    if any(record.slurm for record in records):
        head.insert(_SLURM, "slurm")
        for record, row in zip(records, rows, strict=True):
            row.insert(_SLURM, record.slurm or "")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for record, row in zip([None, *records], [head, *rows], strict=True):
        cells = [
            text.rjust(size) if column in _NUMBERS else text.ljust(size)
            for column, (text, size) in enumerate(zip(row, widths, strict=True))
        ]
        yield _cut("  ".join(cells).rstrip(), width)
        if record is not None and record.reason and record.status != "done":
            yield _cut(f"    {record.reason}", width)


_NUMBERS = range(4, 9)
_SLURM = 9


def _cells(record: RunRecord, folder: Path) -> list[str]:
    name = record.directory.name if record.directory == folder else str(record.directory.relative_to(folder))
    progress = record.progress
    return [
        name,
        record.status,
        record.algo,
        record.env,
        f"{record.env_steps:,}",
        "" if progress is None else f"{progress:.0%}",
        format_value(record.best),
        format_value(record.last),
        "" if record.steps_per_second is None else f"{record.steps_per_second:,.0f}",
        " ".join(f"{key}={value}" for key, value in record.overrides.items()),
    ]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"

"""Which runs belong together: same environment, same algorithm, same numbers; what is left to differ is the seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError, RunDirectoryError, did_you_mean
from rlx.run.migrate import told_together
from rlx.tools.record import env_name, read_config, target_name

_NO_MATTER = ("seed", "run_dir", "logger", "checkpoint", "evaluation", "device", "num_threads", "resume")
"""Keys and groups that do not change what is computed, or, as the seed, are what a group averages over."""
_MISSING = object()
_LONG = 80
"""Letters of a label beyond which nobody reads it."""


@dataclass(frozen=True)
class RunConfig:
    """A run, and its configuration with dotted keys.

    Attributes:
        directory: where it is.
        config: `{"algo.gamma": 0.99, ...}`.
        older: what an older rlx had written otherwise, in a line.
    """

    directory: Path
    config: dict[str, Any]
    older: str | None = None

    @property
    def algo(self) -> str:
        """Return the algorithm's name."""
        return target_name(self.config.get("algo._target_", "unknown"))

    @property
    def env(self) -> str:
        """Return the environment's name."""
        return env_name(self.config)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only.

    Attributes:
        env: the environment's name.
        label: what tells the group from others: the algorithm, and the keys that differ.
        runs: its runs.
    """

    env: str
    label: str
    runs: tuple[Path, ...]


def group_runs(
    directories: Iterable[Path], by: Sequence[str] | None = None, notes: list[str] | None = None
) -> list[Group]:
    """Put runs into groups, in the order in which they come.

    A key tells groups apart where it differs between runs of the same environment and the same algorithm; the keys of
    a part that was exchanged as a whole (another agent) are not told one by one.

    Args:
        directories: run directories.
        by: keys that tell groups apart, instead of those found; the environment always does.
        notes: takes a line where runs of an older rlx are among them, and one for each that is left out, since its
            configuration cannot be read.

    Raises:
        ConfigError: a key of `by` that no run has.
        RunDirectoryError: a configuration cannot be read, and nobody takes notes; or none of them can.
    """
    runs: list[RunConfig] = []
    damaged: list[RunDirectoryError] = []
    for directory in directories:
        try:
            runs.append(RunConfig(directory, *read_config(directory)))
        except RunDirectoryError as error:
            damaged.append(error)
    if damaged and (notes is None or not runs):
        raise damaged[0]
    if notes is not None:
        notes.extend(told_together([run.older for run in runs if run.older is not None]))
        notes.extend(f"left out: {error}" for error in damaged)
    if by is None:
        keys = differing_keys(runs)
        algos = len({run.algo for run in runs}) > 1
    else:
        known = {key for run in runs for key in run.config}
        for key in by:
            if key not in known and key != "algo":
                raise ConfigError(f"--by: no run has a key '{key}'.{did_you_mean(key, known)}")
        keys, algos = [key for key in by if key != "algo"], "algo" in by
    names = _short_names(keys)
    found: dict[tuple[str, str], list[Path]] = {}
    for run in runs:
        told = [f"{names[key]}={_show(key, run.config[key])}" for key in keys if key in run.config]
        label = ", ".join(([run.algo] if algos else []) + told) or run.algo
        found.setdefault((run.env, label), []).append(run.directory)
    groups = [Group(env, label, tuple(members)) for (env, label), members in found.items()]
    return _by_folder(groups) if by is None and max((len(one.label) for one in groups), default=0) > _LONG else groups


def _by_folder(groups: list[Group]) -> list[Group]:
    """Return the groups called by their folders, as the trials of a study are, where these tell them apart."""
    folders = [{run.name if len(one.runs) == 1 else run.parent.name for run in one.runs} for one in groups]
    labels = [next(iter(names)) for names in folders if len(names) == 1]
    if len(set(labels)) < len(groups):
        return groups
    return [replace(one, label=label) for one, label in zip(groups, labels, strict=True)]


def differing_keys(runs: Sequence[RunConfig]) -> list[str]:
    """Return the keys that differ between runs of the same environment and algorithm, in the configuration's order."""
    cells: dict[tuple[str, str], list[RunConfig]] = {}
    for run in runs:
        cells.setdefault((run.env, run.algo), []).append(run)
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.config) if _matters(key)]
    return [key for key in keys if any(_differs(key, members) for members in cells.values())]


def _matters(key: str) -> bool:
    return key not in _NO_MATTER and key.split(".")[0] not in _NO_MATTER


def _differs(key: str, runs: Sequence[RunConfig]) -> bool:
    """Return whether a key differs between runs whose part it is of has the same target."""
    target = f"{key.split('.')[0]}._target_"
    seen: dict[str, Any] = {}
    for run in runs:
        value = run.config.get(key, _MISSING)
        kind = "" if key == target else str(run.config.get(target))
        if seen.setdefault(kind, value) != value:
            return True
    return False


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key without its parents, unless another one would be called the same; `agent._target_` is `agent`."""
    plain = [key.removesuffix("._target_") for key in keys]
    last = [key.rpartition(".")[2] for key in plain]
    return {key: short if last.count(short) == 1 else name for key, name, short in zip(keys, plain, last, strict=True)}


def _show(key: str, value: Any) -> str:
    if key.endswith("._target_"):
        return target_name(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)  # no two values look alike
    return str(value).lower() if value in (True, False) else str(value)

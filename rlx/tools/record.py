"""What a run's directory tells from outside: how the run stands, what it reached, and what it was told.

Nothing here imports torch or YAML unless it must: a table of a thousand runs comes in a second.
"""

import json
import platform
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from rlx.errors import ConfigError, RunDirectoryError, did_you_mean
from rlx.run.directory import CONFIG, LOG, METRICS, read_summary
from rlx.run.lock import LOCK, is_running
from rlx.run.metrics import column_names, read_columns
from rlx.run.migrate import check_schema, read_stored

Status = Literal["pending", "running", "done", "stopped", "failed"]

METRIC = "episode/return"
"""What a run is told by, unless something else is asked for."""

_SILENT_SECONDS = 600.0
"""A run on another machine that has written nothing for so long no longer counts as running."""
_MOMENT = re.compile(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)")
_TITLE = re.compile(r"begins: (.+) on (\S+), [\d,]+ steps$", re.MULTILINE)
_COMMAND = re.compile(r"command: rlx train (.*)$", re.MULTILINE)
_OWNER = re.compile(r"host: ([^,]+), .*process (\d+)$", re.MULTILINE)
_SCHEMA = re.compile(r"^schema: (\d+)$", re.MULTILINE)
_TOTAL = re.compile(r"^total_steps: (\d+)$", re.MULTILINE)
_HEAD_BYTES = 4096
_NOT_KEY = ("run_dir", "logger", "checkpoint", "evaluation", "hydra", "resume")
"""Overrides that say where and how a run writes, and not what it computes."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells of it.

    Attributes:
        directory: where it is.
        algo: the algorithm's name, such as `ppo`.
        env: the environment's name, such as `CartPole`.
        status: `running`, `done`, `stopped` (a signal ended it) or `failed`; of a sweep's job that has no directory
            yet, `pending`.
        reason: why, in one line, where it was stopped or failed.
        env_steps: environment steps so far.
        total_steps: environment steps at which it was to end; None where that is not known.
        best: the greatest value of the metric; None where it has none.
        last: its last value.
        steps_per_second: environment steps over the seconds that the run took.
        began: seconds since the epoch when its directory was made.
        overrides: what was typed for it, `algo=` and `env=` left out, and what only says where it writes.
        slurm: SLURM's name of its job and, where SLURM has it in the queue, its state.
    """

    directory: Path
    algo: str
    env: str
    status: Status
    reason: str | None
    env_steps: int
    total_steps: int | None
    best: float | None
    last: float | None
    steps_per_second: float | None
    began: float
    overrides: dict[str, str]
    slurm: str | None = None

    @property
    def progress(self) -> float | None:
        """Return the part that is done, in [0, 1]; a run that ended by a rule of its own is done."""
        if not self.total_steps:
            return None
        return 1.0 if self.status == "done" else min(self.env_steps / self.total_steps, 1.0)

    @property
    def config(self) -> dict[str, Any]:
        """Return the run's resolved configuration with dotted keys; read when asked for, which takes about 1 ms."""
        return self._stored[0]

    @property
    def older(self) -> str | None:
        """Return what an older rlx had written otherwise, in a line, where `config` has been asked for; else None."""
        return self.__dict__.get("_stored", (None, None))[1]

    @cached_property
    def _stored(self) -> tuple[dict[str, Any], str | None]:
        return read_config(self.directory)

    def value(self, key: str) -> Any:
        """Return what a key is in this run: a field of this record, an override, or a key of the configuration."""
        if key in ("algo", "env", "status"):
            return getattr(self, key)
        if key in self.overrides or not self.directory.exists():
            return self.overrides.get(key)
        return self.config.get(key)

    def to_dict(self) -> dict[str, Any]:
        """Return this run as JSON-ready data."""
        return {
            "run": str(self.directory),
            "algo": self.algo,
            "env": self.env,
            "status": self.status,
            "reason": self.reason,
            "progress": self.progress,
            "env_steps": self.env_steps,
            "total_steps": self.total_steps,
            "best": self.best,
            "last": self.last,
            "steps_per_second": self.steps_per_second,
            "began": self.began,
            "overrides": self.overrides,
            "slurm": self.slurm,
        }


def read_run(directory: Path, metric: str = METRIC) -> RunRecord:
    """Read how a run stands.

    Args:
        directory: a run directory.
        metric: what `best` and `last` are of, a column of `metrics.csv`.

    Raises:
        RunDirectoryError: one of its files cannot be read.
    """
    head = _head(directory / LOG)
    title, command = _TITLE.search(head), _COMMAND.search(head)
    config = _head(directory / CONFIG, 1 << 16)
    if (schema := _SCHEMA.search(config)) is not None:
        check_schema(int(schema[1]), f"'{directory / CONFIG}'", RunDirectoryError)
    total = _TOTAL.search(config)
    summary = read_summary(directory)
    columns: dict[str, list[float]] = {}
    if (directory / METRICS).exists():
        columns = read_columns(directory / METRICS, ("env_steps", "wall_time", metric))
    values = [value for value in columns.get(metric, []) if value == value]
    env_steps = int(max(columns.get("env_steps") or [0.0]))
    seconds = max(columns.get("wall_time") or [0.0])
    status, reason = _status(directory, summary, _owner(directory, head))
    algo, env = title.groups() if title is not None else _names(directory)
    return RunRecord(
        directory=directory,
        algo=algo,
        env=env,
        status=status,
        reason=reason,
        env_steps=env_steps or int((summary or {}).get("env_steps") or 0),
        total_steps=int(total[1]) if total is not None else None,
        best=max(values, default=None),
        last=values[-1] if values else None,
        steps_per_second=env_steps / seconds if seconds else None,
        began=_began(head) or directory.stat().st_mtime,
        overrides=_overrides(command[1]) if command is not None else {},
    )


def read_config(directory: Path) -> tuple[dict[str, Any], str | None]:
    """Return a run's resolved configuration with dotted keys, and what was older in it.

    Returns:
        `{"algo.gamma": 0.99, "seed": 0, ...}`, and a line on what was brought up to date; None where nothing was.

    Raises:
        RunDirectoryError: it cannot be read, is no configuration, or is of a newer rlx.
    """
    config, note = read_stored(directory)
    return dict(_flatten(config)), note


def check_metric(records: Iterable[RunRecord], metric: str) -> None:
    """Refuse a metric that no run has, where one has logged anything; the usual one may be missing.

    Raises:
        ConfigError: there is no such column; names the nearest.
    """
    known: set[str] = set()
    for record in records:
        if metric == METRIC or record.best is not None:
            return
        known.update(column_names(record.directory / METRICS))
    if known and metric not in known:
        raise ConfigError(f"--metric: no run has '{metric}'.{did_you_mean(metric, known)}")


def target_name(target: Any) -> str:
    """Return what people call the function or class that a `_target_` names: `rlx.algo.ppo.train` is `ppo`."""
    parts = str(target).split(".")
    return parts[-2] if parts[-1] == "train" and len(parts) > 1 else parts[-1]


def env_name(config: dict[str, Any]) -> str:
    """Return the environment's name in a configuration with dotted keys: its id, its game, or what makes it."""
    for key in ("env.id", "env.game"):
        if config.get(key):
            return str(config[key])
    return target_name(config.get("env._target_", "unknown"))


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _head(path: Path, size: int = _HEAD_BYTES) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(size).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error.strerror}") from error


def _names(directory: Path) -> tuple[str, str]:
    config, _ = read_config(directory)
    return target_name(config.get("algo._target_", "unknown")), env_name(config)


def _began(head: str) -> float | None:
    found = _MOMENT.match(head)
    if found is None:
        return None
    year, month, day, hour, minute, second = map(int, found.groups())
    return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))


def _overrides(command: str) -> dict[str, str]:
    try:
        words = shlex.split(command) if re.search(r"['\"\\]", command) else command.split()
    except ValueError:
        words = command.split()
    return typed_overrides(words)[1]


def typed_overrides(words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what was typed, by key: all of it, and without `algo=`, `env=` and what only says where a run writes."""
    pairs = (word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
    typed = {key.lstrip("+"): value for key, value in pairs}
    hidden = ("algo", "env", *_NOT_KEY)
    shown = {key: value for key, value in typed.items() if key not in hidden and key.split(".")[0] not in _NOT_KEY}
    return typed, shown


def _owner(directory: Path, head: str) -> tuple[str, int] | None:
    """Return host and process of who writes a run: by its lock, since it may have been resumed, else by its log."""
    try:
        lock: Any = json.loads((directory / LOCK).read_bytes())
        return str(lock["host"]), int(lock["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        found = _OWNER.search(head)
        return None if found is None else (found[1], int(found[2]))


def _status(
    directory: Path, summary: dict[str, Any] | None, owner: tuple[str, int] | None
) -> tuple[Status, str | None]:
    if summary is not None:
        told, reason = summary.get("status"), summary.get("reason")
        if told not in ("done", "stopped", "failed"):
            raise RunDirectoryError(f"'{directory}': its summary has the status {told!r}, which this rlx does not know")
        return told, None if reason is None else str(reason)
    if owner is not None and owner[0] == platform.node():
        if is_running(owner[1]):
            return "running", None
        return "failed", f"process {owner[1]} ended without a word (killed, Ctrl-C twice, or the machine went down)"
    silent = time.time() - max(
        (path.stat().st_mtime for name in (METRICS, LOG, CONFIG) if (path := directory / name).exists()), default=0.0
    )
    if silent < _SILENT_SECONDS:
        return "running", None
    return "failed", f"it has written nothing for {silent / 3600:.1f} h, and left no summary"

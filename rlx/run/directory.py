"""The run directory: made once, by one run, and all that a run leaves behind lies in it.

config.yaml     the resolved configuration
metrics.csv     one row an interval
tensorboard/    the same rows as TensorBoard events
checkpoints/    step-000000123/: safetensors and JSON
summary.json    how the run ended, and its last figures
log.txt         what was said on the way
jobs/           of a run that was submitted to a cluster: its script, and what became of it
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from rlx.errors import RunDirectoryError
from rlx.run.files import expanded, write_json_atomic, write_text_atomic

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "LOG",
    "METRICS",
    "PREPARED",
    "SUMMARY",
    "TENSORBOARD",
    "create_run_directory",
    "default_run_directory",
    "discard_run_directory",
    "is_run_directory",
    "is_taken",
    "read_summary",
    "write_json_atomic",
    "write_summary",
    "write_text_atomic",
]

CONFIG = "config.yaml"
METRICS = "metrics.csv"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
LOG = "log.txt"
FAILED = "failed"
PREPARED = "jobs"
"""What may be in a run's directory before the run: it was made for it."""


def default_run_directory(env: str, algo: str, root: Path | str = "runs") -> Path:
    """Return a path that no other run has: `runs/<env>/<algo>/<date>_<time>_<random>`.

    The random part keeps apart the runs that start in the same second, on one machine or on several that share a disk.

    Args:
        env: name of the environment, such as `CartPole`; what a path cannot hold becomes `-`.
        algo: name of the algorithm.
        root: the folder of all runs.
    """
    moment = time.strftime("%Y-%m-%d_%H-%M-%S")
    return Path(root) / _as_folder(env) / _as_folder(algo) / f"{moment}_{secrets.token_hex(3)}"


def create_run_directory(path: Path | str) -> Path:
    """Create a run's directory; of several processes that try, exactly one succeeds.

    Args:
        path: where; parents are created too. It may be there and hold `jobs/`, and nothing else.

    Returns:
        The absolute path.

    Raises:
        RunDirectoryError: something is there already, or the directory cannot be made.
    """
    path = expanded(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_prepared(path):
            (path / CHECKPOINTS).mkdir()
        else:
            path.mkdir()  # fails where it exists: this, as the line above, is the lock between two runs
    except FileExistsError:
        raise RunDirectoryError(f"run_dir: '{path}' {_what_is_at(path)}; give a path that does not exist yet") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunDirectoryError(f"run_dir: cannot create '{path}': {reason}") from error
    return path


def is_taken(path: Path | str) -> bool:
    """Return whether no run can be made at this path: there is something, and not only `jobs/`."""
    path = expanded(path)
    return os.path.lexists(path) and not _is_prepared(path)


def discard_run_directory(path: Path) -> None:
    """Remove a run's directory that was just created, as far as it can be; what was there before it stays."""
    if not (path / PREPARED).is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        for entry in path.iterdir():
            if entry.is_dir() and entry.name != PREPARED:
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != PREPARED:
                entry.unlink(missing_ok=True)


def is_run_directory(path: Path | str) -> bool:
    """Return whether a run wrote this directory: it holds `config.yaml` beside metrics, checkpoints or a summary.

    Raises:
        RunDirectoryError: it belongs to somebody else, who lets nobody look into it.
    """
    path = Path(path)
    try:
        return (path / CONFIG).is_file() and any((path / name).exists() for name in (METRICS, CHECKPOINTS, SUMMARY))
    except PermissionError as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error.strerror}") from error


def write_summary(directory: Path | str, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` atomically; numbers that JSON lacks (NaN, infinities) become null."""
    write_json_atomic(Path(directory) / SUMMARY, summary)


def read_summary(directory: Path | str) -> dict[str, Any] | None:
    """Return a run's summary, or None while there is none.

    Raises:
        RunDirectoryError: the file is not a JSON object.
    """
    path = Path(directory) / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunDirectoryError(f"'{path}' cannot be read as a run's summary: {error}") from error
    if not isinstance(summary, dict):
        raise RunDirectoryError(f"'{path}' cannot be read as a run's summary: it holds no JSON object")
    return cast(dict[str, Any], summary)


def _as_folder(name: str) -> str:
    """Return a name that is one folder on every file system: `ALE/Pong-v5` becomes `ALE-Pong-v5`."""
    kept = "".join(letter if letter.isalnum() or letter in "-_.+" else "-" for letter in name).strip(".")
    return kept or "unnamed"


def _is_prepared(path: Path) -> bool:
    try:
        return [entry.name for entry in path.iterdir()] == [PREPARED]
    except OSError:
        return False


def _what_is_at(path: Path) -> str:
    """Return how a path is already taken, for the message that refuses it."""
    if not path.exists() and not path.is_symlink():
        return "lies below something that is a file"
    if not path.is_dir():
        return "is a file"
    if is_run_directory(path):
        return "already holds a run"
    return "already exists"

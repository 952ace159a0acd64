"""The jobs of a multirun: where they write, and which of them failed, whatever process a launcher ran them in."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from rlx.errors import RlxError, RunDirectoryError, message_of

FAILED_JOBS = "failed.jsonl"
"""In a multirun's folder, one line a job that failed; there is none where all went well."""


class SweepError(RlxError):
    """Jobs of a multirun failed; all others ran."""


def sweep_directory(overrides: Sequence[str]) -> str:
    """Return where the jobs of a multirun go: the `run_dir` that was typed, or a new directory; as Hydra takes it.

    Raises:
        RunDirectoryError: the `run_dir` holds something.
    """
    typed = _last(overrides, "run_dir")
    if typed is not None and not typed.is_sweep_override() and typed.value() is not None:
        directory = Path(str(typed.value())).expanduser()
        if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
            raise RunDirectoryError(
                f"run_dir: '{directory}' exists already; give the jobs of a multirun a path that does not exist yet"
            )
        return "${run_dir}"
    # Hydra's own default is a time: two sweeps of the same second would write into each other.
    return f"'runs/multirun/{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}'"


def note_failed(folder: Path, number: int, overrides: str, error: Exception) -> None:
    """Note in a multirun's folder that a job failed; one write, so that jobs of several processes may do so at once."""
    line = json.dumps({"job": number, "overrides": overrides, "reason": _reason(error)}) + "\n"
    with contextlib.suppress(OSError):  # it has been told on standard error already
        descriptor = os.open(folder / FAILED_JOBS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def tell_failed(overrides: Sequence[str]) -> str | None:
    """Return a message that lists the jobs that failed, by number, or None where none noted that it did.

    Args:
        overrides: of the multirun, `hydra.sweep.dir=` among them.
    """
    folder = _folder(overrides)
    try:
        lines = [] if folder is None else (folder / FAILED_JOBS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    jobs: list[dict[str, Any]] = sorted(map(json.loads, lines), key=lambda job: job["job"])
    if not jobs:
        return None
    told = "\n".join(f"  job {job['job']} ({job['overrides']}): {job['reason']}" for job in jobs)
    return f"{len(jobs)} job{'s' if len(jobs) > 1 else ''} failed, all others ran; see '{folder}':\n{told}"


def _folder(overrides: Sequence[str]) -> Path | None:
    """Return the folder that `hydra.sweep.dir=` names, or None where it is made up of other keys."""
    sweep = _last(overrides, "hydra.sweep.dir")
    value = "" if sweep is None else str(sweep.value())
    if value == "${run_dir}":
        typed = _last(overrides, "run_dir")
        value = "" if typed is None else str(typed.value())
    return Path(value) if value and "${" not in value else None


def _last(overrides: Sequence[str], key: str) -> Override | None:
    with contextlib.suppress(OverrideParseException):  # composing the configuration tells of it
        found = [one for one in OverridesParser.create().parse_overrides(list(overrides)) if one.key_or_group == key]
        return found[-1] if found else None
    return None


def _reason(error: Exception) -> str:
    text = message_of(error).splitlines()
    return (text[0] if text else "") if isinstance(error, RlxError) else f"{type(error).__name__}: {' '.join(text)}"

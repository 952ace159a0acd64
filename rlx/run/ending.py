"""How a run ended, in `summary.json` and in words."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlx.errors import CheckpointError
from rlx.run.checkpoint import list_checkpoints
from rlx.run.counters import Counters


def summary_of(
    status: str, reason: BaseException | None, counters: Counters, *, wall_time: float, checkpoint: int | None
) -> dict[str, Any]:
    """Return what `summary.json` says.

    Args:
        status: `done`, `stopped` or `failed`.
        reason: what ended it, if something did.
        counters: how far it came.
        wall_time: seconds, those before it was resumed included.
        checkpoint: environment steps of its newest checkpoint; None while there is none.
    """
    return {
        "status": status,
        "reason": None if reason is None else f"{type(reason).__name__}: {reason}".splitlines()[0],
        "env_steps": counters.env_steps,
        "iteration": counters.iteration,
        "wall_time": wall_time,
        "checkpoint": checkpoint,
        **counters.last,
    }


def what_is_left(directory: Path, env_steps: int, signal: str | None) -> str:
    """Return where a run that could not write ended, and what of it can still be used."""
    ended = f"The run ended at {env_steps:,} steps{f', asked to by {signal}' if signal else ''}"
    if not directory.is_dir():
        return f"{ended}; its directory '{directory}' is gone."
    try:
        kept = list_checkpoints(directory)
    except CheckpointError as error:
        return f"{ended}; {error}."
    return f"{ended}; its last checkpoint is '{kept[-1]}'." if kept else f"{ended}; it has no checkpoint."


def last_words(summary: Mapping[str, Any], directory: Path) -> str:
    """Return what a user reads of a run that ended, and where it lies."""
    mean = summary.get("episode/return")
    shown = "no episode ended" if mean is None else f"mean return {mean:.2f} over the last training episodes"
    steps, seconds = summary["env_steps"], summary["wall_time"]
    with contextlib.suppress(ValueError, OSError):  # it lies elsewhere, or somebody removed the working directory
        directory = directory.relative_to(Path.cwd())
    return f"{summary['status']}: {shown}, {steps:,} steps in {seconds:.1f} s\n{directory}"

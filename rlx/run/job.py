"""One job of a sweep: begun, gone on with, or left alone because it is done or somebody else runs it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from rlx.errors import ConfigError, RunDirectoryError, RunWriteError
from rlx.run.cores import AUTO
from rlx.run.directory import CHECKPOINTS
from rlx.run.early_stop import errors_of_signals
from rlx.run.files import json_ready, reason_of
from rlx.run.migrate import read_stored
from rlx.run.sweep import Sweep

_WAIT_SECONDS = 1.0
"""Somebody who only looks whether a job is run holds its lock for a moment."""
_WHERE = ("run_dir", "resume")


def run_job(
    sweep: Sweep,
    number: int,
    compose: Callable[[], Mapping[str, Any]],
    choices: Mapping[str, str],
    command: str,
    tell: Callable[[str], None],
    side_by_side: int = 1,
) -> None:
    """Run a job, unless it is done or another process runs it; where it has a checkpoint, go on from there.

    Args:
        sweep: its sweep.
        number: its number there.
        compose: returns what it was told, resolved.
        choices: which member of each group was chosen.
        command: what runs this one job, for its `log.txt`.
        tell: told what is done, in one line.
        side_by_side: jobs that run on this machine's cores at once.

    Raises:
        RlxError: it failed.
        StopRequested: a signal ended it.
    """
    try:
        lock = sweep.hold(number).acquire(_WAIT_SECONDS)
    except RunDirectoryError as busy:
        tell(f"{busy}: it is left to that one")
        return
    except OSError as error:
        raise RunWriteError(f"cannot write '{sweep.folder}': {reason_of(error)}") from error
    with lock:
        job = sweep.job(number)
        directory = sweep.run_directory(number)
        if sweep.is_done(job):
            tell(f"job {number} is done already: '{directory}'")
            sweep.finish(job)
            return
        with sweep.attempt(job), errors_of_signals():
            config = compose()
            if any((directory / CHECKPOINTS).glob("step-*")):
                from rlx.run.launch import resume_run

                changes = _changes(directory, config)
                # What is trusted is what was typed now: the checkpoint is of the same configuration.
                resume_run(directory, changes, command, tell=tell, trust=True, even_if_done=True)
            else:
                from rlx.run.launch import launch

                sweep.set_aside(job)
                launch({**config, "run_dir": str(directory)}, choices, command, side_by_side=side_by_side)


def _changes(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may change when a run is resumed, as it is told now.

    Raises:
        ConfigError: something else is told otherwise.
    """
    from rlx.run.resume import MAY_CHANGE

    began = dict(_flatten(read_stored(directory)[0]))
    now = dict(_flatten(cast("dict[str, Any]", json_ready(config))))
    if now.get("batcher.num_workers") == AUTO:
        now["batcher.num_workers"] = began.get("batcher.num_workers")
    for key in sorted({*began, *now}.difference(MAY_CHANGE, _WHERE)):
        if key not in began or key not in now or json_ready(began[key]) != now[key]:
            raise ConfigError(
                f"{key}: the run in '{directory}' began with {began.get(key)}, and now it is {now.get(key)}; "
                "give the sweep another run_dir, or take the change back"
            )
    # All of them, since the newest checkpoint may be older than the last change.
    return {key: now[key] for key in MAY_CHANGE if key in began and key in now}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""The start of `rlx train`: worker processes import torch while the command itself does."""

import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rlx.cli.report import end_at_once, reported_errors, shown
from rlx.run.early_stop import stoppable

# What ends without a worker, and what starts its workers elsewhere.
_NO_WORKERS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version")
_ELSEWHERE = ("batcher=local", "batcher=ray", "hydra/launcher=")


def run_train(arguments: Sequence[str]) -> None:
    """Run `rlx train` with the arguments that follow it.

    Raises:
        SystemExit: it failed, and a message has been written to standard error.
    """
    if "RANK" in os.environ or "SLURM_STEP_NODELIST" in os.environ:
        # Else torch's C++ part writes a stack for each thing that it finds gone, where one message of ours says so.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    shows = any(word.split("=")[0] in _NO_WORKERS for word in arguments)
    with end_at_once(), reported_errors(), shown() if shows else nullcontext(), stoppable(), _workers(arguments):
        if is_resume(arguments):
            from rlx.cli.resume import run_resume

            run_resume(arguments)
        else:
            from rlx.cli.train import run_hydra

            run_hydra(arguments)


def run_job(directory: Path, number: int, *, requeue: bool) -> None:
    """Run `rlx job`.

    Raises:
        SystemExit: it failed, and a message has been written to standard error.
    """
    with reported_errors(), stoppable():
        from rlx.run.sweep import Sweep

        sweep = Sweep(directory)
        with _workers(sweep.job(number).overrides):
            from rlx.cli.job import run_one

            run_one(sweep, number, requeue=requeue)


@contextmanager
def _workers(arguments: Sequence[str]) -> Generator[None]:
    """Let the workers' server begin to import what they need, and end it with the command."""
    others = _server_pid()
    if _needs_workers(arguments):
        from rlx.batcher.start import prestart

        prestart()
    try:
        yield
    finally:
        _end_server(others)  # it would hold the terminal's output for a second after the command has ended


def is_resume(arguments: Sequence[str]) -> bool:
    """Return whether these arguments go on with a run."""
    return any(word.startswith("resume=") and word not in ("resume=", "resume=null") for word in arguments)


def _needs_workers(arguments: Sequence[str]) -> bool:
    """Return whether, as far as the bare arguments tell, workers will be started by this process."""
    return not any(word.split("=")[0] in _NO_WORKERS or word.startswith(_ELSEWHERE) for word in arguments)


def _server_pid() -> int | None:
    """Return the process that this process's workers are forked from, or None while there is none."""
    forkserver = sys.modules.get("multiprocessing.forkserver")
    return getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)


def _end_server(others: int | None) -> None:
    """End the workers' server: it may still be importing torch, and it holds the terminal's standard output open.

    Args:
        others: the server that ran before, which is the calling program's own and stays.
    """
    pid = _server_pid()
    if pid is None or pid == others:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    stop: Any = getattr(getattr(sys.modules["multiprocessing.forkserver"], "_forkserver", None), "_stop", None)
    if stop is not None:  # waits for its end, and lets this process start another
        stop()

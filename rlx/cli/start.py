"""The start of `rlx train`: worker processes import torch while the command itself does."""

import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rlx.cli.report import end_at_once, reported_errors, shown

# What ends without a worker, and what starts its workers elsewhere.
_NO_WORKERS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version")
_ELSEWHERE = ("batcher=local", "batcher=ray", "hydra/launcher=")


_STOPPING = [signal.Signals[name] for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if name in signal.Signals.__members__]


def run_train(arguments: Sequence[str]) -> None:
    """Run `rlx train` with the arguments that follow it.

    Raises:
        SystemExit: it failed, and a message has been written to standard error.
    """
    if "RANK" in os.environ or "SLURM_STEP_NODELIST" in os.environ:
        # Else torch's C++ part writes a stack for each thing that it finds gone, where one message of ours says so.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    shows = any(word.split("=")[0] in _NO_WORKERS for word in arguments)
    with end_at_once(), reported_errors(), shown() if shows else nullcontext(), _stoppable(), _workers(arguments):
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
    with reported_errors(), _stoppable():
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


class _Stopped(KeyboardInterrupt):
    """A signal came before there was a run."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number
        self.exit_status = 130 if number == signal.SIGINT else 143


@contextmanager
def _stoppable() -> Generator[None]:
    """Let SIGTERM and its like end the command from its first line on; a run, once there, obeys in its own way.

    What a signal's handler raises may be lost: torch, where it calls Python, takes any error for one of its own, and a
    checkpoint that was being read would seem damaged. So an error that follows a signal is the signal's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[_Stopped] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(_Stopped(signal.Signals(number)))
        raise came[-1]

    here = [*_STOPPING]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is somebody's own, or ignored
        here.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in here}
    try:
        yield
    except Exception as error:
        if not came:
            raise
        raise came[0] from error
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # else the run has seen to its own end
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


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

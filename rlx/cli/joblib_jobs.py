"""Jobs of a multirun in joblib's processes: whatever ends the command, they save first.

joblib kills all of its processes once anything is raised in the command or by a job.
"""

import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rlx.run.early_stop import stoppable
from rlx.run.signals import STOP_SIGNALS, exit_status, is_heard
from rlx.run.sweep import RUNNING, Job, Sweep

_LOOK_SECONDS = 1.0
_SAVE_SECONDS = 12.0
"""To save in: a job ends 8 seconds after a signal at the latest, and what it writes takes its time."""
_POLL_SECONDS = 0.05


@contextmanager
def saved_before_a_signal_ends_them(current: Callable[[], Sweep | None]) -> Generator[None]:
    """In the command: pass a signal on to the jobs, and obey it when they have saved; a second one does not wait.

    Args:
        current: returns the sweep, None before there is one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = {number: signal.getsignal(number) for number in filter(is_heard, STOP_SIGNALS)}
    before = {number: handler for number, handler in heard.items() if callable(handler)}

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for own, handler in before.items():
            signal.signal(own, handler)
        sweep = current()
        if sweep is not None:
            _end_jobs(sweep)
        signal.raise_signal(number)

    for number in before:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is pass_on:
                signal.signal(number, handler)


@contextmanager
def ended_with_their_command() -> Generator[None]:
    """In a job: ask it to stop when the command is gone, since it would go on, and take the next.

    Where a signal ends it, the others may be saving still: what it raises waits until the command ends them all.
    """
    command, ended = multiprocessing.parent_process(), threading.Event()
    if command is None:
        yield
        return

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            if os.getppid() != command.pid:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name="rlx-command", daemon=True).start()
    try:
        with stoppable():
            yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        deadline = time.monotonic() + _SAVE_SECONDS
        while os.getppid() == command.pid and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        raise
    finally:
        ended.set()
        if os.getppid() != command.pid:
            os._exit(exit_status(signal.SIGTERM))  # all is saved; joblib would do what waits in its pipe, and linger


def _end_jobs(sweep: Sweep) -> None:
    """Ask the jobs in processes of this one to stop, and wait until they have saved."""
    children = {child.pid: child for child in multiprocessing.active_children()}
    running = {job.number: children[pid] for job in sweep.jobs() if (pid := _process_of(job)) in children}
    for child in running.values():
        with suppress(ProcessLookupError):
            os.kill(child.pid or 0, signal.SIGTERM)
    deadline = time.monotonic() + _SAVE_SECONDS
    while time.monotonic() < deadline and any(
        child.is_alive() and sweep.job(number).state == RUNNING for number, child in running.items()
    ):
        time.sleep(_POLL_SECONDS)


def _process_of(job: Job) -> Any:
    """Return which process of this machine runs a job, None where none does."""
    newest = job.attempts[-1] if job.attempts else {}
    return newest.get("process") if job.state == RUNNING and newest.get("host") == platform.node() else None

"""How worker processes start: a server that has imported everything once, and forks itself for each worker.

Only the standard library is imported here, so that the command line can start the server in its first milliseconds: it
then imports torch while the command itself does. Plain fork is never used (torch's threads do not survive it).
"""

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

# What a worker needs, imported once by the server. Missing ones are passed over.
_PRELOAD = ["torch", "numpy", "gymnasium", "rlx.batcher.serve", "rlx.env", "rlx.agent"]

_STOPS: Any = {
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
}

_prepared = False


def context() -> multiprocessing.context.BaseContext:
    """Return the multiprocessing context that workers start from: a forkserver where there is one, else spawn."""
    global _prepared
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    if not _prepared:
        forkserver.set_forkserver_preload([*_PRELOAD, *_launchers_own()])
        _prepared = True
    return forkserver


def _launchers_own() -> list[str]:
    """Return the module of this process's own start method, where a launcher (joblib) brought one.

    Each worker is told to make it its own too, and dies where it does not know it.
    """
    method = cast("str | None", multiprocessing.get_start_method(allow_none=True))  # typeshed: never None
    if method is None or method in multiprocessing.get_all_start_methods():
        return []
    return [type(multiprocessing.get_context(method)).__module__]


def prestart() -> None:
    """Start the server now, so that it imports while the caller does something else. Returns at once."""
    if context().get_start_method() == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        resource_tracker.ensure_running()  # which would unblock what is blocked below
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            forkserver.ensure_running()  # the server keeps them blocked
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started() -> multiprocessing.context.BaseContext:
    """Return `context()`, its server running; in a fork of the process whose server it is, one that needs none."""
    try:
        prestart()
    except ChildProcessError:  # multiprocessing looks after a child that is its parent's
        return multiprocessing.get_context("spawn")
    return context()


def main_is_importable() -> bool:
    """Return whether another process can import `__main__`: it is a module or a file, not typed in."""
    main = vars(sys.modules["__main__"])
    return main.get("__spec__") is not None or os.path.exists(main.get("__file__") or "")


@contextmanager
def importable_main() -> Generator[None]:
    """Let a process that is started meanwhile import `__main__` only where that is a file: `python - < FILE` is none.

    multiprocessing takes `<stdin>` for a file name, and the process would end with a traceback.
    """
    main = vars(sys.modules["__main__"])
    if "__file__" not in main or main_is_importable():
        yield
        return
    file = main.pop("__file__")
    try:
        yield
    finally:
        main["__file__"] = file


def outlive_stops() -> None:
    """Let this process, a worker, go on after a signal that asks a run to stop: the learner decides when it ends.

    Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM every process of a job. What the worker's
    environments start for themselves hears these signals as ever.
    """
    worker = os.getpid()

    def pass_over(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != worker:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in _STOPS:
        signal.signal(number, pass_over)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

"""A worker at the other end of a pipe: what runs in a worker process."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from rlx.batcher import wire
from rlx.batcher.failure import Failure
from rlx.batcher.heartbeat import ALIVE, Heartbeat, instances_in
from rlx.batcher.memory import Memory
from rlx.batcher.start import outlive_stops
from rlx.batcher.worker import Worker
from rlx.batcher.worker_options import WorkerOptions
from rlx.errors import UserError


def serve(connection: Connection, parcel: wire.Parcel, beat: Heartbeat) -> None:
    """Run a worker at the other end of `connection` until it is told to close or the parent is gone.

    Messages are `(name of a Worker's method, arguments)`; each is answered by its result or a `Failure`, after which
    the process ends. The worker's specs are sent unasked.

    Args:
        connection: to the batcher.
        parcel: holds the `WorkerOptions`.
        beat: where signs of life are left.
    """
    outlive_stops()
    _die_with_parent()
    _allow_children()
    _wake_politely()
    worker: Worker | None = None
    options: WorkerOptions | None = None
    beat.answer_when_asked(
        lambda: instances_in(None if worker is None else worker.env),
        lambda: 0 if options is None else options.num_envs,
    )
    beat.words[ALIVE] = 1
    torch.set_num_threads(1)
    restarted = False
    try:
        opened: WorkerOptions = _found(parcel.open)
        options, restarted = opened, opened.incarnation > 0
        worker = Worker(opened, beat.words)
        gc.freeze()  # what was imported stays: the collector need not walk through it again and again
        wire.send(connection, worker.specs())
        while True:
            name, arguments = _found(wire.receive, connection)
            if name == "attach":
                arguments = (arguments[0], _receive_memory(connection, arguments[1]), *arguments[2:])
            beat.begin()
            wire.send(connection, getattr(worker, name)(*arguments))
    except wire.ClosedError:
        pass  # the parent is gone, or closed its batcher
    except Exception as error:
        with contextlib.suppress(wire.ClosedError):
            wire.send(connection, Failure.of(error, made=worker is not None, restarted=restarted))
    finally:
        if worker is not None:
            worker.close()
        for child in multiprocessing.active_children():  # this process would wait for those that are no daemons
            child.terminate()


def _found(read: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `read` does.

    Raises:
        UserError: it names what cannot be imported here.
    """
    try:
        return read(*arguments)
    except (AttributeError, ImportError) as error:
        raise UserError(
            f"a worker process cannot import what it is given ({error}): it imports your program as a module, and sees "
            "nothing of what is below `if __name__ == '__main__':`. Define your functions and classes above it or in a "
            "module of their own; or take local workers"
        ) from error


def _receive_memory(connection: Connection, num_bytes: int) -> Memory:
    from multiprocessing.reduction import recv_handle

    return Memory(num_bytes, descriptor=recv_handle(connection))


def _wake_politely() -> None:
    """Let this process not push the batcher's off its core by being woken, before that has woken the other workers.

    A worker computes for milliseconds and waits: a batch process to Linux. Its share of time stays the same. Where
    somebody chose another class for the whole run, that stays.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _allow_children() -> None:
    """Let environments start processes by multiprocessing, which refuses that to daemons such as this process is.

    The refusal is there since a daemon's children would outlive it: `serve` ends them.
    """
    multiprocessing.process.current_process()._config["daemon"] = False  # pyright: ignore


def _die_with_parent() -> None:
    """Make sure that this process ends when its parent does, whatever either is doing at the time.

    On Linux the kernel kills it when the other end of the parent's pipe closes, even inside C code that holds the GIL.
    Elsewhere a thread waits for that.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        import fcntl

        set_signal = 10  # F_SETSIG
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, set_signal, signal.SIGKILL)
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if not parent.is_alive():
            os._exit(1)
    else:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

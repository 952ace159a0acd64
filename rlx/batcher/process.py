"""A worker in a process of its own, behind a pipe; a restart is a new process that maps the same memory."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection
from multiprocessing import current_process
from multiprocessing.connection import wait
from multiprocessing.reduction import send_handle
from pickle import PicklingError
from typing import Any

from rlx.batcher import wire
from rlx.batcher.handles import CLOSE_SECONDS, Command
from rlx.batcher.heartbeat import ALIVE, STOP, Heartbeat, Words
from rlx.batcher.restart import OnFailure, RestartingHandle
from rlx.batcher.serve import serve
from rlx.batcher.start import importable_main, started
from rlx.batcher.worker_options import WorkerOptions
from rlx.errors import RlxError, WorkerError

_ASK_SECONDS = 0.5


class ProcessHandle(RestartingHandle):
    """A worker in a process of its own; see `Handle`. Every wait watches its pipe, its life and its signs of life."""

    def __init__(
        self, options: WorkerOptions, *, on_failure: OnFailure = "restart", step_timeout: float | None = None
    ) -> None:
        """Start the process; see `RestartingHandle`."""
        self._running = False
        super().__init__(options, on_failure=on_failure, step_timeout=step_timeout)

    @staticmethod
    def wait(sources: Collection[Any], seconds: float | None) -> Collection[Any]:
        """Wait for pipes and processes; see `Handle.wait`."""
        return wait(list(sources), seconds)

    @property
    def sources(self) -> list[Any]:
        """Return the pipe and the process: what there is to wait for."""
        return [self._connection, self._process.sentinel]

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._pid

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._running and self._process.is_alive()

    def close(self) -> None:
        """Ask the worker to end: it does so at its next step, or at once when it has nothing to do."""
        self._on_failure = "raise"  # no restart, whoever waits for it still
        if self._running:
            self._beat.words[STOP] = 1
            self._connection.close()

    @property
    def _words(self) -> Words:
        return self._beat.words

    def _start(self) -> None:
        """Start a process; it will send its specs."""
        if current_process().daemon:
            raise WorkerError(
                f"{self._where()} cannot be started: this process is a daemon of multiprocessing, such as those of a "
                "Pool, which may start no processes: use concurrent.futures.ProcessPoolExecutor, or local workers"
            )
        starting: Any = started()
        self._connection, other = starting.Pipe()
        self._beat = Heartbeat()
        self._process = starting.Process(
            target=serve,
            args=(other, wire.Parcel(self.options), self._beat),
            daemon=True,
            name=f"rlx-worker-{self.options.index}",
        )
        problem: Exception | None = None
        try:
            with importable_main():
                self._process.start()
        except (AttributeError, TypeError, ValueError, PicklingError, OSError) as error:
            problem = error
        finally:
            other.close()
            self._beat.seal()
        if problem is not None:
            self._connection.close()
            self._beat.close()
            if isinstance(problem, OSError):
                raise WorkerError(f"{self._where()} cannot be started: {problem}") from problem
            raise wire.no_way_to("a worker process", problem) from problem
        self._running = True
        self._pid: int = self._process.pid
        self._pidfd = _pidfd(self._pid)
        if self._limit is not None:
            wire.limit_time(self._connection, self._limit)

    def _receive(self, ready: Collection[Any]) -> tuple[Any, tuple[RlxError, bool] | None]:
        """Return the next answer, or what is wrong and whether a restart can mend it."""
        try:
            if self._connection not in ready and not self._connection.poll():
                raise wire.ClosedError  # dead, and nothing that it sent before is left
            answer = wire.receive(self._connection)
        except (wire.ClosedError, OSError):
            return None, self._death()
        except wire.StalledError:
            return None, (self._hang(), True)
        except Exception as error:
            return None, (WorkerError(f"{self._where()} sent what cannot be read here: {error!r}"), False)
        return answer, None

    def _transmit(self, command: Command) -> None:
        """Send a command. Where the worker is dead, dying or stuck, `take` and `look` find out."""
        name, arguments = command
        with contextlib.suppress(wire.ClosedError, wire.StalledError, OSError):
            if name != "attach":
                wire.send(self._connection, command)
            else:
                layout, memory, *others = arguments
                wire.send(self._connection, (name, (layout, memory.num_bytes, *others)))
                send_handle(self._connection, memory.descriptor, self._pid)

    def _end(self, seconds: float) -> None:
        """Wait up to `seconds` for the process to end by itself, then make it; harmless when called again."""
        if not self._running:
            return
        self._running = False
        process = self._process
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join(CLOSE_SECONDS)
        if self._pidfd is not None:
            # Where the server that forked the worker was killed, multiprocessing takes the worker for dead, too. It
            # may still write to columns that its successor is about to fill.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                wait([self._pidfd], CLOSE_SECONDS)
            os.close(self._pidfd)
        self._connection.close()
        self._beat.close()
        with contextlib.suppress(ValueError):  # it does not end, though it was killed: stuck in the kernel
            process.close()

    def _death(self) -> tuple[RlxError, bool]:
        """Return the error for a process that died, and whether a restart may help."""
        self._process.join(CLOSE_SECONDS)
        exitcode: int | None = self._process.exitcode
        if exitcode == 1 and not self._beat.words[ALIVE]:
            return WorkerError(
                f"{self._where()} ended before it began (exit status 1; its traceback is above). A program that makes "
                "a Batcher needs `if __name__ == '__main__':` around what it does, since workers import it"
            ), False
        return WorkerError(f"{self._where()} died ({_how_it_died(exitcode)}){self._doing()}"), True

    def _place(self) -> tuple[int | None, str] | str | None:
        found: tuple[int | None, str] | None = None
        if self._beat.ask(self._pid, self._pidfd):
            deadline = time.monotonic() + _ASK_SECONDS
            while found is None and time.monotonic() < deadline:
                self._process.join(0.01)
                found = self._beat.answer()
        if (found is None or found[0] is None) and _is_stopped(self._pid):
            return "the process is stopped (SIGSTOP)"
        return found


def _pidfd(pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is None:
        return "its pipe closed"
    if exitcode < 0:
        try:
            return f"killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"killed by signal {-exitcode}"
    return f"exit status {exitcode}"

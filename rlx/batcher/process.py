"""A worker in a process of its own, which is started again when it dies, hangs or raises what a new start may mend.

The handle keeps every command that is not answered yet. A restart is a new process that maps the same memory, resets
its environments, and is given those commands again: it fills the same columns of the same slots, and the batcher waits
a little longer. What was answered is committed and never written to again; what was not is dropped and counted.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.reduction import send_handle
from pickle import PicklingError
from typing import Any, Literal

from rlx import errors
from rlx.batcher import wire
from rlx.batcher.handles import CLOSE_SECONDS, Command
from rlx.batcher.heartbeat import ALIVE, CALLS, COMMANDS, STOP, Heartbeat
from rlx.batcher.memory import Memory
from rlx.batcher.rollout import PieceReport
from rlx.batcher.sampler import Info
from rlx.batcher.slots import Layout
from rlx.batcher.start import context
from rlx.batcher.worker import Failure, serve
from rlx.batcher.worker_options import WorkerOptions
from rlx.data import EnvSpecs
from rlx.errors import EnvironmentFault, RlxError, SpecError, WorkerError

OnFailure = Literal["restart", "raise"]

MOST_RESTARTS = 3
"""Restarts without an answer in between; the failure after them is raised."""

_LOOKS = 20  # during the time that a step may take
_ASK_SECONDS = 0.5
_START_SECONDS = 120.0  # for Python to start and import what the makers need

_log = logging.getLogger(__name__)


class RemoteTraceback(Exception):  # noqa: N818  (a traceback is what it is)
    """The traceback of what a worker raised, as text: the cause of the error that the batcher raises."""


class ProcessHandle:
    """A worker in a process of its own; see `Handle`. Every wait watches its pipe, its life and its signs of life."""

    def __init__(
        self, options: WorkerOptions, *, on_failure: OnFailure = "restart", step_timeout: float | None = None
    ) -> None:
        """Start the process.

        Args:
            options: what the worker is made from.
            on_failure: `restart` what a restart can mend, or `raise` at once.
            step_timeout: seconds that a step of the environments may take; None or 0 for any time.

        Raises:
            WorkerError: the makers cannot travel to another process.
        """
        self.options = options
        self.answers: deque[Any] = deque()
        self.restarts = 0
        self.dropped_steps = 0
        self._on_failure = on_failure
        self._limit = step_timeout or None
        self.look_every = None if self._limit is None else min(1.0, self._limit / _LOOKS)
        self._unanswered: deque[Command] = deque([("specs", ())])
        self._failures: list[RlxError] = []  # since the last answer
        self._specs: EnvSpecs | None = None
        self._attachment: tuple[Layout, Memory, Info, Info] | None = None  # once it has been answered
        self._finished: set[int] = set()  # in stop mode, the rows whose episode has been handed over
        self._running = False
        self._start()

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

    def send(self, name: str, *arguments: Any) -> None:
        """Give a command; see `Handle.send`."""
        self._unanswered.append((name, arguments))
        if self._booting is None:
            self._transmit((name, arguments))

    def attach(self, layout: Layout, memory: Memory, agent_info: Info, env_info: Info) -> None:
        """Send the command `attach`, memory included."""
        self.send("attach", layout, memory, agent_info, env_info)

    def take(self, ready: Collection[Any]) -> None:
        """Take what the worker sent; see `Handle.take`. A failure that a restart can mend ends in one."""
        answer, problem = self._receive(ready)
        if problem is not None:
            self._fail(*problem)
        elif isinstance(answer, Failure):
            self._fail(self._as_error(answer), answer.mendable, CLOSE_SECONDS)
        elif self._booting is not None:
            self._boot(answer)
        else:
            self._settle(answer)

    def look(self) -> None:
        """Count how long the worker has shown no sign of life, and end it when that is too long."""
        if self._limit is None:
            return
        now, progress = time.monotonic(), self._beat.progress()
        if progress != self._progress:
            self._progress, self._still = progress, 0.0
        else:
            # A look that comes late says nothing about the worker: perhaps all of us were stopped, or nobody asked.
            self._still += min(now - self._looked_at, self._limit / 4)
        self._looked_at = now
        doing = self._unanswered[0][0] if self._booting is None and self._unanswered else self._booting
        # Other commands make or reset every environment, and show no progress in between; so may a piece's beginning.
        stepping = doing == "run" and (self._beat.words[CALLS] or not _begins_anew(self._unanswered[0]))
        limit = self._limit * (1 if stepping else self.options.num_envs)
        if not self._beat.words[ALIVE]:
            limit = max(limit, _START_SECONDS)
        if self._still > limit:
            self._fail(*self._hang())

    def close(self) -> None:
        """Ask the worker to end: it does so at its next step, or at once when it has nothing to do."""
        if self._running:
            self._beat.words[STOP] = 1
            self._connection.close()

    def join(self, deadline: float) -> None:
        """Wait for the worker's end; see `Handle.join`."""
        self._end(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        """Start a process; it will send its specs."""
        starting: Any = context()
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
            raise WorkerError(
                f"make_env and make_agent must be picklable to reach a worker process ({problem}): "
                "use functions or classes of a module, or functools.partial of them; or batcher=local"
            ) from problem
        self._running = True
        self._pid: int = self._process.pid
        self._pidfd = _pidfd(self._pid)
        if self._limit is not None:
            wire.limit_time(self._connection, self._limit)
        self._booting: Literal["specs", "attach"] | None = "specs"
        self._received = 0  # answers of this incarnation, the specs included, which no command asked for
        self._progress = self._beat.progress()
        self._looked()

    def _receive(self, ready: Collection[Any]) -> tuple[Any, tuple[RlxError, bool] | None]:
        """Return the next answer, or what is wrong and whether a restart can mend it."""
        try:
            if self._connection not in ready and not self._connection.poll():
                raise wire.ClosedError  # dead, and nothing that it sent before is left
            answer = wire.receive(self._connection)
        except (wire.ClosedError, OSError):
            return None, self._death()
        except wire.StalledError:
            return None, self._hang()
        except Exception as error:
            return None, (WorkerError(f"{self._where()} sent what cannot be read here: {error!r}"), False)
        self._looked()
        self._received += 1
        return answer, None

    def _looked(self) -> None:
        self._still, self._looked_at = 0.0, time.monotonic()

    def _boot(self, answer: Any) -> None:
        """Go on with what brings a new process to where the last one was."""
        if self._booting == "specs":
            if self._specs is not None and answer != self._specs:
                what = f"{self._where()}: after a restart the environments' specs are {answer}, before {self._specs}"
                self._fail(SpecError(what), False)
            if self._attachment is not None:
                self._booting = "attach"
                self._transmit(("attach", (*self._attachment, sorted(self._finished))))
                return
        self._booting = None
        if self._specs is None:
            self._specs = answer
            self._settle(answer)
        for command in self._unanswered:
            self._transmit(command)

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

    def _settle(self, answer: Any) -> None:
        """Note that the oldest command is answered: what it did is committed, and no restart goes back behind it."""
        name, arguments = self._unanswered.popleft()
        self._failures.clear()
        if name == "attach":
            self._attachment = arguments[:4]
            self._finished.clear()
        elif name in ("reset", "run"):
            assert self._attachment is not None
            layout, memory, agent_info, env_info = self._attachment
            if name == "reset":
                agent_info, env_info = arguments
                self._finished.clear()
            else:
                agent_info = agent_info if arguments[2] is None else arguments[2]
                if _begins_anew((name, arguments)):
                    env_info = arguments[3]
                    self._finished.clear()
            self._attachment = (layout, memory, agent_info, env_info)
            if isinstance(answer, PieceReport) and self.options.stop_at_episode_end:
                self._finished.update(row - self.options.first_row for row, _, _ in answer.episodes)
        self.answers.append(answer)

    def _fail(self, error: RlxError, mendable: bool, seconds: float = 0.0) -> None:
        """End the process, and start another one if that can help.

        Args:
            error: what went wrong.
            mendable: whether a restart can help.
            seconds: how long the process has to end by itself.

        Raises:
            RlxError: `error`, or the first one since the last answer where restarts have not helped.
        """
        # Where it ended between two commands, the calls are those of a piece that was handed over.
        calls = self._beat.words[CALLS] if self._beat.words[COMMANDS] >= self._received else 0
        self._end(seconds)
        self._failures.append(error)
        if not mendable or self._on_failure == "raise":
            raise error
        if len(self._failures) > MOST_RESTARTS:
            first = self._failures[0]
            again = f"\nIt was started again {MOST_RESTARTS} times and never got further. The last failure: {error}"
            raise type(first)(f"{first}{again}") from first.__cause__
        dropped = 0
        if self._booting is None and self._unanswered and self._unanswered[0][0] == "run":
            finished = 0 if _begins_anew(self._unanswered[0]) else len(self._finished)
            dropped = calls * (self.options.num_envs - finished)
        self.restarts += 1
        self.dropped_steps += dropped
        self.options = replace(self.options, incarnation=self.options.incarnation + 1)
        _log.warning("%s. It was started again (restart %d), %d steps are dropped.", error, self.restarts, dropped)
        self._start()

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

    def _hang(self) -> tuple[RlxError, bool]:
        """Return the error for a process that does nothing; it is asked where it is."""
        found: tuple[int | None, str] | None = None
        if self._beat.ask(self._pid):
            deadline = time.monotonic() + _ASK_SECONDS
            while found is None and time.monotonic() < deadline:
                self._process.join(0.01)
                found = self._beat.answer()
        options = self.options
        row = None if found is None else found[0]
        if row is not None:
            place = f": environment {options.first_row + row} (reset seed {options.env_seeds[row]}) hangs"
        elif _is_stopped(self._pid):
            place = ": the process is stopped (SIGSTOP)"
        else:
            place = f"; the reset seeds of its environments are {', '.join(map(str, options.env_seeds))}"
        error = WorkerError(
            f"{self._where()} gave no sign of life for {self._still:.3g} s{self._doing()}{place}. "
            "batcher.step_timeout sets how long a step may take"
        )
        if found is not None:
            error.__cause__ = RemoteTraceback(f"\nWhere it hangs (most recent call last):\n{found[1]}")
        return error, True

    def _doing(self) -> str:
        calls = self._beat.words[CALLS]
        return f" after {calls} steps of its piece" if calls else ""

    def _where(self) -> str:
        first = self.options.first_row
        return f"worker {self.options.index} (environments {first} to {first + self.options.num_envs - 1})"

    def _as_error(self, failure: Failure) -> RlxError:
        kind = getattr(errors, failure.kind, None)
        if isinstance(kind, type) and issubclass(kind, RlxError):
            where = f"{self._where()}: " if kind is EnvironmentFault else ""
            error = kind(f"{where}{failure.message}")
        else:
            error = WorkerError(f"{self._where()} raised {failure.kind}: {failure.message}")
        error.__cause__ = RemoteTraceback(f"\n{failure.trace}")
        return error


def _begins_anew(command: Command) -> bool:
    """Return whether this is a `run` that begins with a reset."""
    name, arguments = command
    return name == "run" and arguments[3] is not None


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

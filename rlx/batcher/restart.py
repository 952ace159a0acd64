"""A worker elsewhere that is started again when it dies, hangs or raises what a new start may mend: the rules.

The handle keeps every command that is not answered yet. A restart is a new worker that resets its environments and is
given those commands again: it fills the same columns of the same slots, and the batcher waits a little longer. What was
answered is committed and never written to again; what was not is dropped and counted.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

import torch

from rlx.batcher.failure import Failure, RemoteTraceback, as_error
from rlx.batcher.handles import CLOSE_SECONDS, Command
from rlx.batcher.heartbeat import ALIVE, CALLS, COMMANDS, RESETS, Words
from rlx.batcher.memory import Memory
from rlx.batcher.rollout import PieceReport
from rlx.batcher.sampler import Info
from rlx.batcher.slots import Layout
from rlx.batcher.worker_options import WorkerOptions
from rlx.data import EnvSpecs
from rlx.errors import RlxError, SpecError, WorkerError

OnFailure = Literal["restart", "raise"]

MOST_RESTARTS = 3
"""Restarts without an answer in between; the failure after them is raised."""

START_SECONDS = 120.0
"""How long Python may take to start and import what the makers need."""

_LOOKS = 20  # during the time that a step may take

_log = logging.getLogger(__name__)


class RestartingHandle(ABC):
    """A worker elsewhere; see `Handle`. What follows says where it runs and how it is reached."""

    def __init__(self, options: WorkerOptions, *, on_failure: OnFailure, step_timeout: float | None) -> None:
        """Start the worker.

        Args:
            options: what the worker is made from.
            on_failure: `restart` what a restart can mend, or `raise` at once.
            step_timeout: seconds that a step of the environments may take; None or 0 for any time.

        Raises:
            WorkerError: the makers cannot travel to the worker.
        """
        self.options = options
        self.answers: deque[Any] = deque()
        self.restarts = 0
        self.device = torch.device("cpu")
        self.dropped_steps = 0
        self._on_failure = on_failure
        self._limit = step_timeout or None
        self.look_every = None if self._limit is None else min(1.0, self._limit / _LOOKS)
        self._unanswered: deque[Command] = deque([("specs", ())])
        self._failures: list[RlxError] = []  # since the last answer
        self._specs: EnvSpecs | None = None
        self._attachment: tuple[Layout, Memory, Info, Info] | None = None  # once it has been answered
        self._finished: set[int] = set()  # in stop mode, the rows whose episode has been handed over
        self._start_anew()

    @property
    @abstractmethod
    def _words(self) -> Words:
        """What is known of the worker's signs of life; see `heartbeat`."""

    @abstractmethod
    def _start(self) -> None:
        """Start a worker of `options`; it will send its specs."""

    @abstractmethod
    def _transmit(self, command: Command) -> None:
        """Send a command. Where the worker is dead, dying or stuck, `take` and `look` find out."""

    @abstractmethod
    def _receive(self, ready: Collection[Any]) -> tuple[Any, tuple[RlxError, bool] | None]:
        """Return the next answer, or what is wrong and whether a restart can mend it."""

    @abstractmethod
    def _end(self, seconds: float) -> None:
        """Wait up to `seconds` for the worker to end by itself, then make it; harmless when called again."""

    @abstractmethod
    def _place(self) -> tuple[int | None, str] | str | None:
        """Return where a worker hangs: which of its environments, if known, and its stack; or what else is known."""

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
            return
        self._still, self._looked_at = 0.0, time.monotonic()
        if isinstance(answer, Failure):  # no answer: what the command had done by then is lost
            self._fail(as_error(answer, self._where()), answer.mendable, CLOSE_SECONDS)
            return
        self._received += 1
        if self._booting is not None:
            self._boot(answer)
        else:
            self._settle(answer)

    def look(self) -> None:
        """Count how long the worker has shown no sign of life, and end it when that is too long."""
        if self._limit is None:
            return
        now, progress = time.monotonic(), self._progress_now()
        if progress != self._progress:
            self._progress, self._still = progress, 0.0
        else:
            # A look that comes late says nothing about the worker: perhaps all of us were stopped, or nobody asked.
            self._still += min(now - self._looked_at, self._limit / 4)
        self._looked_at = now
        doing = self._command_now()
        # Other commands make or reset every environment, and show no progress in between; so may a piece's beginning.
        stepping = doing == "run" and (self._words[CALLS] or not _begins_anew(self._unanswered[0]))
        limit = self._limit * (1 if stepping else self.options.num_envs)
        if not self._words[ALIVE]:
            limit = max(limit, START_SECONDS)
        if self._still > limit:
            self._fail(self._hang(), True)

    def join(self, deadline: float) -> None:
        """Wait for the worker's end; see `Handle.join`."""
        self._end(max(0.0, deadline - time.monotonic()))

    def _start_anew(self) -> None:
        self._booting: Literal["specs", "attach"] | None = "specs"
        self._received = 0  # answers of this incarnation, the specs included, which no command asked for
        self._start()
        self._progress = self._progress_now()
        self._still, self._looked_at = 0.0, time.monotonic()

    def _progress_now(self) -> tuple[int, ...]:
        """Return numbers that stand still only while the worker does."""
        words = self._words
        return words[ALIVE], words[COMMANDS], words[CALLS], words[RESETS]

    def _calls_lost(self) -> int:
        """Return how many steps of each environment the worker had done of the piece that is not answered."""
        # Where it ended between two commands, the calls are those of a piece that was handed over.
        return self._words[CALLS] if self._words[COMMANDS] >= self._received else 0

    def _boot(self, answer: Any) -> None:
        """Go on with what brings a new worker to where the last one was."""
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
                self._finished.update((answer.episodes.rows - self.options.first_row).tolist())
        self.answers.append(answer)

    def _fail(self, error: RlxError, mendable: bool, seconds: float = 0.0) -> None:
        """End the worker, and start another one if that can help.

        Args:
            error: what went wrong.
            mendable: whether a restart can help.
            seconds: how long the worker has to end by itself.

        Raises:
            RlxError: `error`, or the first one since the last answer where restarts have not helped.
        """
        calls = self._calls_lost()
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
        self._start_anew()

    def _hang(self) -> WorkerError:
        """Return the error for a worker that does nothing; it is asked where it is."""
        found = self._place()
        options = self.options
        row = found[0] if isinstance(found, tuple) else None
        if row is not None:
            within = {"specs": " in its constructor", "attach": " in reset", "reset": " in reset"}
            what = f"hangs{within.get(self._command_now() or '', '')}"
            place = f": environment {options.first_row + row} (reset seed {options.env_seeds[row]}) {what}"
        elif isinstance(found, str):
            place = f": {found}"
        else:
            place = f"; the reset seeds of its environments are {', '.join(map(str, options.env_seeds))}"
        error = WorkerError(
            f"{self._where()} gave no sign of life for {self._still:.3g} s{self._doing()}{place}. "
            f"batcher.step_timeout={self._limit:g} sets how long a step may take, and for each environment how long a "
            "worker may take to make or reset all of its own"
        )
        if isinstance(found, tuple):
            error.__cause__ = RemoteTraceback(f"\nWhere it hangs (most recent call last):\n{found[1]}")
        return error

    def _command_now(self) -> str | None:
        """Return the command that the worker has not answered; None where it has nothing to do."""
        return self._unanswered[0][0] if self._booting is None and self._unanswered else self._booting

    def _doing(self) -> str:
        calls = self._words[CALLS]
        return f" after {calls} steps of its piece" if calls else ""

    def _where(self) -> str:
        first, kind = self.options.first_row, "evaluation's worker" if self.options.evaluation else "worker"
        return f"{kind} {self.options.index} (environments {first} to {first + self.options.num_envs - 1})"


def _begins_anew(command: Command) -> bool:
    """Return whether this is a `run` that begins with a reset."""
    name, arguments = command
    return name == "run" and arguments[3] is not None

"""A worker in an actor of Ray, as the batcher sees it; a restart is a new actor, on whichever node has room.

Pieces come through Ray's object store: the actor copies its piece into it, Ray brings it to this node, and from there
it is copied into the learner's block. Weights go the other way: they are put once a version, and Ray fetches them once
a node. A command says which version it is for.
"""

import contextlib
import importlib
import time
from collections import deque
from collections.abc import Collection
from typing import Any

import numpy as np

from rlx import __version__
from rlx.batcher import wire
from rlx.batcher.failure import RemoteTraceback
from rlx.batcher.handles import Command
from rlx.batcher.heartbeat import ALIVE, CALLS, NUM_WORDS, Words
from rlx.batcher.memory import Memory
from rlx.batcher.ray_actor import Bytes, Failed, Piece, RayWorker, bytes_of, slot_extent
from rlx.batcher.ray_cluster import Connection, require_ray
from rlx.batcher.restart import START_SECONDS, OnFailure, RestartingHandle
from rlx.batcher.sampler import Info
from rlx.batcher.slots import NUM_SLOTS, Layout, Slot
from rlx.batcher.worker_options import WorkerOptions
from rlx.errors import ClusterError, RlxError, WorkerError, message_of

ray: Any = require_ray()
_exceptions: Any = importlib.import_module("ray.exceptions")

_ASK_SECONDS = 0.5
_LOOK_SECONDS = 1.0


class RayCrew:
    """What the actors of one batcher share: the connection to Ray, and the weights in its object store."""

    def __init__(self, address: str | None, *, num_workers: int, cpus_per_worker: float | None) -> None:
        """Connect, and wait until there is room for the actors.

        Args:
            address: see `Connection.open`.
            num_workers: how many actors there will be.
            cpus_per_worker: cores that each asks for, None for one; a local Ray of our own gives without counting.

        Raises:
            RlxError: there is no such cluster, or no room in it.
        """
        self.connection = Connection.open(address)
        wanted = 1.0 if cpus_per_worker is None else cpus_per_worker
        self.cpus = 0.0 if self.connection.is_local else wanted
        self._version = -1
        self._weights: Any = None
        try:
            self.connection.wait_for_room(num_workers, self.cpus)
        except BaseException:
            self.connection.close()
            raise

    def start(self, options: WorkerOptions, *, on_failure: OnFailure, step_timeout: float | None) -> "RayHandle":
        """Start one more actor."""
        return RayHandle(options, crew=self, on_failure=on_failure, step_timeout=step_timeout)

    def weights(self, version: int, layout: Layout, memory: Memory) -> Any:
        """Return where the object store has the weights of a version, put there now where they are new."""
        if version != self._version:
            block = layout.weights[version % len(layout.weights)]
            self._weights, self._version = ray.put(memory.tensor(block).numpy()), version
        return self._weights

    def close(self) -> None:
        """Let go of Ray."""
        self._weights = None
        self.connection.close()


class RayHandle(RestartingHandle):
    """A worker in an actor; see `Handle`. Ray tells of its death; while awaited, it is asked for signs of life."""

    def __init__(
        self, options: WorkerOptions, *, crew: RayCrew, on_failure: OnFailure, step_timeout: float | None
    ) -> None:
        """Start the actor; see `RestartingHandle`."""
        self._crew = crew
        self._running = False
        self._copies: list[_Copy] = []
        super().__init__(options, on_failure=on_failure, step_timeout=step_timeout)
        self.look_every = min(_LOOK_SECONDS, self.look_every or _LOOK_SECONDS)

    @staticmethod
    def wait(sources: Collection[Any], seconds: float | None) -> Collection[Any]:
        """Wait for answers of actors; see `Handle.wait`."""
        return ray.wait(list(sources), num_returns=len(sources) if seconds == 0 else 1, timeout=seconds)[0]

    @property
    def sources(self) -> list[Any]:
        """Return where the oldest answer will be: what there is to wait for."""
        return [self._refs[0]] if self._refs else []

    @property
    def actor(self) -> Any:
        """Return the actor."""
        return self._actor

    def attach(self, layout: Layout, memory: Memory, agent_info: Info, env_info: Info) -> None:
        """Send the command `attach`; the memory stays here, and the actor makes its own."""
        columns = self.options.columns
        narrow = layout.narrowed(columns)
        self._narrow = narrow
        self._copies = [_Copy(narrow, index, Slot(layout, memory, index, columns)) for index in range(NUM_SLOTS)]
        super().attach(layout, memory, agent_info, env_info)

    def look(self) -> None:
        """Ask for signs of life, and count how long there were none."""
        if self._question is not None:
            with contextlib.suppress(_exceptions.RayError):  # of a dead actor the answer that is waited for tells
                if ray.wait([self._question], timeout=0)[0]:
                    self._known = ray.get(self._question)
                    self._known[ALIVE] |= bool(self._received)  # it may have been asked before
                    self._question = None
        now = time.monotonic()
        if self._question is None and now - self._asked_at >= (self.look_every or 0.0):  # some look all the time
            self._question, self._asked_at = self._actor.progress.remote(), now
        unborn = not self._received and not self._known[ALIVE]
        if unborn and time.monotonic() - self._started > START_SECONDS:
            self._fail(self._no_room(), False)
        super().look()

    def close(self) -> None:
        """Ask the worker to end: it does so at its next step, or at once when it has nothing to do."""
        self._on_failure = "raise"  # no restart, whoever waits for it still
        if self._running and self._closing is None:
            with contextlib.suppress(_exceptions.RayError):
                self._actor.stop.remote()
                self._closing = self._actor.end.remote()

    @property
    def _words(self) -> Words:
        return self._known

    def _start(self) -> None:
        try:
            options = ray.cloudpickle.dumps(self.options)
        except Exception as error:
            raise wire.no_way_to("an actor of Ray", error) from error
        actor: Any = ray.remote(
            num_cpus=self._crew.cpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            concurrency_groups={"questions": 1},
        )(RayWorker)
        self._actor = actor.remote(options, __version__)
        self._running = True
        self._refs: deque[Any] = deque([self._actor.command.remote("specs", ())])
        self._known: Words = [0] * NUM_WORDS
        self._calls: int | None = None  # steps done when it failed, where it could say so
        self._question: Any = None
        self._asked_at = 0.0
        self._closing: Any = None
        self._started = time.monotonic()
        self._sent = -1  # version of the weights that this actor has been sent

    def _transmit(self, command: Command) -> None:
        name, arguments = command
        weights = None
        if name == "attach":
            arguments = (self._narrow, *arguments[2:])
        elif name == "run":
            version = arguments[1]
            attached = self._attachment
            assert attached is not None
            if version != self._sent:
                weights, self._sent = self._crew.weights(version, *attached[:2]), version
        self._refs.append(self._actor.command.remote(name, arguments, weights))

    def _receive(self, ready: Collection[Any]) -> tuple[Any, tuple[RlxError, bool] | None]:
        del ready  # it is this one that is ready
        try:
            answer = ray.get(self._refs.popleft())
        except _exceptions.RayTaskError as error:
            wrong = WorkerError(f"{self._where()} cannot do what it was sent: {_last_line(error)}")
            wrong.__cause__ = RemoteTraceback(f"\n{message_of(error)}")
            return None, (wrong, False)
        except _exceptions.RayError as error:
            return None, self._death(error)
        self._known[ALIVE], self._known[CALLS] = 1, 0  # what was told of the last command is out of date
        if isinstance(answer, Failed):
            self._calls = answer.calls
            return answer.failure, None
        if isinstance(answer, Piece):
            self._copies[self._unanswered[0][1][0]].write(answer)
            return answer.report, None
        return answer, None

    def _death(self, error: Exception) -> tuple[RlxError, bool]:
        """Return the error for an actor that is gone, or whose answer is, and whether a restart may help."""
        told = message_of(error).strip()
        if getattr(error, "actor_init_failed", False):
            wrong = WorkerError(
                f"{self._where()} cannot begin on its node: {_last_line(error)}. All nodes need the same environment, "
                "with rlx and what make_env and make_agent name importable"
            )
            wrong.__cause__ = RemoteTraceback(f"\n{told}")
            return wrong, False
        if isinstance(error, _exceptions.ActorUnschedulableError):
            return self._no_room(), False
        return WorkerError(f"{self._where()} died ({_how(told)}){self._doing()}"), True

    def _no_room(self) -> ClusterError:
        return ClusterError(
            f"{self._where()} has not begun within {START_SECONDS:.0f} s: {self._crew.connection.room()}"
        )

    def _calls_lost(self) -> int:
        """Return the steps that it had done; nobody knows those of one that is gone: all of the piece's are counted."""
        if self._calls is not None:
            return self._calls
        return 0 if self._attachment is None else self._attachment[0].num_steps

    def _end(self, seconds: float) -> None:
        if not self._running:
            return
        self._running = False
        with contextlib.suppress(_exceptions.RayError):
            if self._closing is not None:
                ray.wait([self._closing], timeout=seconds)
            ray.kill(self._actor, no_restart=True)

    def _place(self) -> tuple[int | None, str] | str | None:
        try:
            found = ray.get(self._actor.place.remote(), timeout=_ASK_SECONDS)
        except _exceptions.GetTimeoutError:
            return "its node or its process does not answer"
        except _exceptions.RayError:
            return None
        self._calls = self._known[CALLS]
        return found


class _Copy:
    """From a piece's bytes to the learner's block: the places, worked out once."""

    def __init__(self, narrow: Layout, index: int, slot: Slot) -> None:
        """Prepare.

        Args:
            narrow: as the actor has it.
            index: of the slot.
            slot: the worker's columns of the learner's block.
        """
        start, _ = slot_extent(narrow, index)
        blocks = narrow.slots[index]
        self._slot = slot
        self._finals = {name: bytes_of(value) for name, value in slot.finals.items()}
        self._places: list[tuple[Bytes, int, int]] = []
        for name, value in slot.fields.items():
            block = blocks[name]
            first = block.offset - start
            self._places.append((bytes_of(value), first, first + block.num_bytes))

    def write(self, piece: Piece) -> None:
        """Copy a piece, each byte once."""
        source = piece.slot
        for target, start, end in self._places:
            np.copyto(target, source[start:end].reshape(target.shape))
        count = piece.report.num_finals
        if count:
            self._slot.reserve_finals(count)
            for name, target in self._finals.items():
                np.copyto(target[:count], piece.finals[name].reshape(target[:count].shape))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in message_of(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _how(told: str) -> str:
    """Return the sentence of Ray's message that says why."""
    for line in told.splitlines():
        if any(word in line for word in ("node has died", "exit", "killed", "unavailable", "dead", "lost")):
            return line.strip().split(". ")[0].removeprefix("The actor died because ")
    return told.splitlines()[0] if told else "no reason given"

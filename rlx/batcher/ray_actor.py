"""A worker in an actor of Ray, on whichever machine: it has a memory of its own, and hands each piece over as bytes."""

import contextlib
import gc
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rlx import __version__
from rlx.batcher.failure import Failure
from rlx.batcher.heartbeat import ALIVE, CALLS, COMMANDS, NUM_WORDS, STOP, Words, instances_in, place_in
from rlx.batcher.memory import Memory
from rlx.batcher.ray_cluster import require_ray
from rlx.batcher.rollout import PieceReport
from rlx.batcher.slots import NUM_SLOTS, Layout, Slot
from rlx.batcher.worker import Worker
from rlx.batcher.worker_options import WorkerOptions
from rlx.errors import UserError

ray: Any = require_ray()

Bytes = NDArray[np.uint8]


class Piece(NamedTuple):
    """A piece on its way to the learner.

    Attributes:
        report: as of any worker.
        slot: all blocks of the slot but the final observations, `[num_bytes]`, as `Layout.narrowed` has them.
        finals: those that there are, by name, `[K, bytes of one]`.
    """

    report: PieceReport
    slot: Bytes
    finals: dict[str, Bytes]


class Failed(NamedTuple):
    """A failure, and how many steps of the piece came before it."""

    failure: Failure
    calls: int


def slot_extent(layout: Layout, index: int) -> tuple[int, int]:
    """Return the bytes at which a slot's blocks begin and end, the final observations left out."""
    blocks = [block for name, block in layout.slots[index].items() if not name.startswith("final/")]
    return blocks[0].offset, max(block.offset + block.num_bytes for block in blocks)


class RayWorker:
    """What runs in the actor. Commands are done one after the other; questions are answered by another thread."""

    def __init__(self, options: bytes, version: str) -> None:
        """Do nothing yet: what goes wrong is told in the answer to the first command.

        Args:
            options: `WorkerOptions`, pickled.
            version: of rlx, where the learner runs.
        """
        self._parcel, self._version = options, version
        self._words: Words = [0] * NUM_WORDS
        self._worker: Worker | None = None
        self._num_envs = 0
        self._restarted = False
        self._memory: Memory | None = None
        self._layout: Layout | None = None
        self._slots: list[Slot] = []
        self._thread = 0

    def command(self, name: str, arguments: Sequence[Any], weights: Bytes | None = None) -> Any:
        """Do what a worker does, and return its answer or a `Failure`.

        Args:
            name: of a method of `Worker`.
            arguments: for it; of `attach`, without the memory.
            weights: `[num_bytes]`, those of the version that a `run` names, where they are new to this actor.
        """
        self._words[CALLS] = 0
        self._words[COMMANDS] += 1
        try:
            return self._do(name, arguments, weights)
        except SystemExit:
            if not self._words[STOP]:
                raise  # the environment's: the actor ends
            return None
        except Exception as error:
            calls = self._words[CALLS]
            failure = Failure.of(error, made=self._worker is not None, restarted=self._restarted)
            with contextlib.suppress(Exception):
                self.end()
            return Failed(failure, calls)

    @ray.method(concurrency_group="questions")
    def progress(self) -> list[int]:
        """Return the words of `heartbeat`."""
        return list(self._words)

    @ray.method(concurrency_group="questions")
    def place(self) -> tuple[int | None, str]:
        """Return which environment's code runs, if that is known, and the stack of the thread that runs it."""
        frame = sys._current_frames().get(self._thread)  # pyright: ignore[reportPrivateUsage]
        env = None if self._worker is None else self._worker.env
        return (None, "") if frame is None else place_in(frame, instances_in(env), self._num_envs)

    @ray.method(concurrency_group="questions")
    def stop(self) -> None:
        """Let what is being done end at its next step."""
        self._words[STOP] = 1

    def end(self) -> None:
        """Close the environments."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _do(self, name: str, arguments: Sequence[Any], weights: Bytes | None) -> Any:
        if name == "specs":
            self._make()
        worker = self._worker
        assert worker is not None, "specs come first"
        if name == "attach":
            layout: Layout = arguments[0]
            self._memory = layout.allocate(torch.device("cpu"))
            self._layout = layout
            columns = worker.options.columns
            self._slots = [Slot(layout, self._memory, index, columns) for index in range(NUM_SLOTS)]
            return worker.attach(layout, self._memory, *arguments[1:])
        if name == "run" and weights is not None:
            assert self._memory is not None
            assert self._layout is not None
            version: int = arguments[1]
            block = self._layout.weights[version % len(self._layout.weights)]
            np.copyto(self._memory.tensor(block).numpy(), weights)
        answer = getattr(worker, name)(*arguments)
        return self._packed(arguments[0], answer) if name == "run" else answer

    def _make(self) -> None:
        """Make the environments; in the thread that will step them."""
        torch.set_num_threads(1)
        self._thread = threading.get_ident()
        if __version__ != self._version:
            raise UserError(
                f"rlx is {__version__} on node {ray.util.get_node_ip_address()}, and {self._version} where the "
                "learner runs: all nodes need the same environment"
            )
        options: WorkerOptions = ray.cloudpickle.loads(self._parcel)
        self._restarted, self._num_envs = options.incarnation > 0, options.num_envs
        self._words[ALIVE] = 1
        self._worker = Worker(options, self._words)
        gc.freeze()  # what was imported stays, Ray's much included: the collector need not walk through it

    def _packed(self, index: int, report: PieceReport) -> Piece:
        """Return a piece as views of the memory; Ray copies them once, into its object store."""
        assert self._memory is not None
        assert self._layout is not None
        start, end = slot_extent(self._layout, index)
        count = report.num_finals
        finals = {
            key: bytes_of(value[:count]).reshape(count, -1) if count else np.empty((0, 0), np.uint8)
            for key, value in self._slots[index].finals.items()
        }
        return Piece(report, self._memory.bytes_between(start, end), finals)


def bytes_of(tensor: torch.Tensor) -> Bytes:
    """Return a tensor as bytes, `[..., item]`: a view, whatever its strides, and whatever NumPy knows of its dtype."""
    return tensor.unsqueeze(-1).view(torch.uint8).numpy()

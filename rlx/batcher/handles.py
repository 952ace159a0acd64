"""How the batcher reaches its workers, in this process or in others, and how it waits for them."""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch

from rlx.batcher.memory import Memory
from rlx.batcher.sampler import Info
from rlx.batcher.slots import Layout
from rlx.batcher.worker import Worker
from rlx.batcher.worker_options import WorkerOptions

CLOSE_SECONDS = 1.0
"""How long workers have to end by themselves."""

Command = tuple[str, tuple[Any, ...]]


class Handle(Protocol):
    """A worker as the batcher sees it: commands are sent, and their answers arrive in the same order.

    Attributes:
        options: what the worker was made from; its first answer, unasked, are its specs.
        answers: what arrived and was not yet fetched, oldest first.
        restarts: how often the worker was started again.
        dropped_steps: steps that were lost with former incarnations of the worker.
        device: where pieces are written: where the environments live, for a worker in this process, or on the CPU.
    """

    options: WorkerOptions
    answers: deque[Any]
    restarts: int
    dropped_steps: int
    device: torch.device

    @property
    def sources(self) -> list[Any]:
        """Return what `wait` can wait for; nothing if `take` never has to wait."""
        ...

    @staticmethod
    def wait(sources: Collection[Any], seconds: float | None) -> Collection[Any]:
        """Wait up to `seconds` (None: no end) for sources of handles of this kind; return some that are ready."""
        ...

    @property
    def look_every(self) -> float | None:
        """Return after how many seconds of waiting `look` wants to be called; None for never."""
        ...

    def send(self, name: str, *arguments: Any) -> None:
        """Give a command, a method of `Worker`."""
        ...

    def take(self, ready: Collection[Any]) -> None:
        """Take what the worker sent into `answers`, or raise what it raised.

        Args:
            ready: which of `sources` are ready: one at least, where there are any.
        """
        ...

    def look(self) -> None:
        """Look whether the worker still does something; called while it is waited for and sends nothing."""
        ...

    def attach(self, layout: Layout, memory: Memory, agent_info: Info, env_info: Info) -> None:
        """Send the command `attach`, memory included."""
        ...

    def close(self) -> None:
        """Ask the worker to end; harmless when called again."""
        ...

    def join(self, deadline: float) -> None:
        """Wait for its end until `deadline` (of `time.monotonic`), then make it end."""
        ...


class LocalHandle:
    """A worker in this process. A command runs when its answer is asked for.

    There is nothing to start again: whatever the environment raises is raised.
    """

    def __init__(self, options: WorkerOptions) -> None:
        """Make the worker."""
        self.options = options
        self.answers: deque[Any] = deque()
        self.restarts = 0
        self.dropped_steps = 0
        self.sources: list[Any] = []
        self.look_every: float | None = None
        self._worker = Worker(options)
        self.device = self._worker.env.device
        self._commands: deque[Command] = deque([("specs", ())])

    @staticmethod
    def wait(sources: Collection[Any], seconds: float | None) -> Collection[Any]:
        """Return: there is nothing to wait for."""
        return sources

    def send(self, name: str, *arguments: Any) -> None:
        """Give a command; see `Handle.send`."""
        self._commands.append((name, arguments))

    def take(self, ready: Collection[Any]) -> None:
        """Run the oldest command."""
        name, arguments = self._commands.popleft()
        self.answers.append(getattr(self._worker, name)(*arguments))

    def look(self) -> None:
        """Do nothing: it always answers."""

    def attach(self, layout: Layout, memory: Memory, agent_info: Info, env_info: Info) -> None:
        """Send the command `attach`, memory included."""
        self.send("attach", layout, memory, agent_info, env_info)

    def close(self) -> None:
        """Ask the worker to end."""
        self._worker.close()

    def join(self, deadline: float) -> None:
        """Wait for the worker's end; see `Handle.join`."""
        del deadline


def all_ready(handles: Sequence[Handle]) -> bool:
    """Return whether `receive_all` would not wait; workers that fail are started again on the way."""
    busy = [handle for handle in handles if handle.sources and not handle.answers]
    _pump(busy, 0.0)
    return all(handle.answers for handle in busy)


def receive_all(handles: Sequence[Handle]) -> list[Any]:
    """Return every worker's oldest answer, in the workers' order; the first failure to arrive is raised."""
    while waiting := [handle for handle in handles if not handle.answers]:
        limits = [handle.look_every for handle in waiting if handle.look_every is not None]
        _pump(waiting, min(limits) if limits else None)
    return [handle.answers.popleft() for handle in handles]


def _pump(handles: Sequence[Handle], seconds: float | None) -> None:
    """Wait up to `seconds` (None: without end) until a worker sends something or dies, and take what there is."""
    sources = [source for handle in handles for source in handle.sources]
    ready = set(handles[0].wait(sources, seconds)) if sources else set[Any]()
    for handle in handles:
        own = handle.sources
        if not own or not ready.isdisjoint(own):
            handle.take(ready)
        else:
            handle.look()

"""How the batcher reaches a worker: in this process, or in another one behind a pipe."""

import contextlib
import time
from collections.abc import Collection, Sequence
from multiprocessing.connection import wait
from typing import Any, Protocol

from rlx import errors
from rlx.batcher.memory import Memory
from rlx.batcher.slots import Layout
from rlx.batcher.start import context
from rlx.batcher.worker import Failure, Worker, WorkerOptions, serve
from rlx.data import DictTensor
from rlx.errors import EnvironmentFault, RlxError, WorkerError

CLOSE_SECONDS = 1.0


class RemoteTraceback(Exception):  # noqa: N818  (a traceback is what it is)
    """The traceback of what a worker raised, as text: the cause of the error that the batcher raises."""


class Handle(Protocol):
    """A worker as the batcher sees it: a command is sent, and its answer taken later.

    Attributes:
        options: what the worker was made from.
        sources: what `multiprocessing.connection.wait` can wait for until there is an answer; none if there always is.
    """

    options: WorkerOptions
    sources: list[Any]

    def send(self, name: str, *arguments: Any) -> None:
        """Give a command, a method of `Worker`."""
        ...

    def take(self, ready: Collection[Any]) -> Any:
        """Return the answer to the oldest command, or raise what the worker raised.

        Args:
            ready: which of `sources` are ready: one at least, where there are any.
        """
        ...

    def attach(self, layout: Layout, memory: Memory, agent_info: DictTensor, env_info: DictTensor) -> None:
        """Send the command `attach`, memory included."""
        ...

    def close(self) -> None:
        """Ask the worker to end; harmless when called again."""
        ...

    def join(self, deadline: float) -> None:
        """Wait for its end until `deadline` (of `time.monotonic`), then make it end."""
        ...


class LocalHandle:
    """A worker in this process. A command runs when its answer is asked for."""

    def __init__(self, options: WorkerOptions) -> None:
        """Make the worker."""
        self.options = options
        self.sources: list[Any] = []
        self._worker = Worker(options)
        self._commands: list[tuple[str, tuple[Any, ...]]] = [("specs", ())]

    def send(self, name: str, *arguments: Any) -> None:
        """Give a command; see `Handle.send`."""
        self._commands.append((name, arguments))

    def take(self, ready: Collection[Any]) -> Any:
        """Run the oldest command, and return its answer."""
        name, arguments = self._commands.pop(0)
        return getattr(self._worker, name)(*arguments)

    def attach(self, layout: Layout, memory: Memory, agent_info: DictTensor, env_info: DictTensor) -> None:
        """Send the command `attach`, memory included."""
        self.send("attach", layout, memory, agent_info, env_info)

    def close(self) -> None:
        """Ask the worker to end."""
        self._worker.close()

    def join(self, deadline: float) -> None:
        """Wait for the worker's end; see `Handle.join`."""
        del deadline


class ProcessHandle:
    """A worker in a process of its own. Every wait watches its pipe and its life together."""

    def __init__(self, options: WorkerOptions) -> None:
        """Start the process; its first answer is the specs.

        Raises:
            WorkerError: the makers cannot travel to another process.
        """
        self.options = options
        starting: Any = context()
        self._connection, other = starting.Pipe()
        self._process = starting.Process(
            target=serve, args=(other, options), daemon=True, name=f"rlx-worker-{options.index}"
        )
        try:
            self._process.start()
        except (AttributeError, TypeError, ValueError) as error:
            raise WorkerError(
                f"make_env and make_agent must be picklable to reach a worker process ({error}): "
                "use functions or classes of a module, or functools.partial of them; or batcher=local"
            ) from error
        finally:
            other.close()
        self.sources: list[Any] = [self._connection, self._process.sentinel]

    def send(self, name: str, *arguments: Any) -> None:
        """Give a command; see `Handle.send`."""
        with contextlib.suppress(ConnectionError, OSError):  # dead or dying: take() tells what it said last
            self._connection.send((name, arguments))

    def take(self, ready: Collection[Any]) -> Any:
        """Return the answer to the oldest command; see `Handle.take`."""
        try:
            if self._connection not in ready and not self._connection.poll():
                raise EOFError  # dead, and nothing that it sent before is left
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(CLOSE_SECONDS)
            raise WorkerError(f"worker {self._where()} died ({_how_it_died(self._process.exitcode)})") from None
        if isinstance(answer, Failure):
            raise self._as_error(answer) from RemoteTraceback(f"\n{answer.trace}")
        return answer

    def attach(self, layout: Layout, memory: Memory, agent_info: DictTensor, env_info: DictTensor) -> None:
        """Send the command `attach`, memory included."""
        from multiprocessing.reduction import send_handle

        self.send("attach", layout, memory.num_bytes, agent_info, env_info)
        with contextlib.suppress(ConnectionError, OSError):
            send_handle(self._connection, memory.descriptor, self._process.pid)

    def close(self) -> None:
        """Ask the worker to end."""
        if self._process.is_alive():
            self.send("close")

    def join(self, deadline: float) -> None:
        """Wait for the worker's end; see `Handle.join`."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _where(self) -> str:
        first = self.options.first_row
        return f"{self.options.index} (environments {first} to {first + self.options.num_envs - 1})"

    def _as_error(self, failure: Failure) -> RlxError:
        kind = getattr(errors, failure.kind, None)
        if isinstance(kind, type) and issubclass(kind, RlxError):
            where = f"worker {self._where()}: " if kind is EnvironmentFault else ""
            return kind(f"{where}{failure.message}")
        return WorkerError(f"worker {self._where()} raised {failure.kind}: {failure.message}")


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is None:
        return "its pipe closed"
    if exitcode < 0:
        import signal

        try:
            return f"killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"killed by signal {-exitcode}"
    return f"exit status {exitcode}"


def all_ready(handles: Sequence[Handle]) -> bool:
    """Return whether `receive_all` would not wait."""
    sources = [source for handle in handles for source in handle.sources]
    ready = set(wait(sources, 0)) if sources else set[Any]()
    return all(not handle.sources or not ready.isdisjoint(handle.sources) for handle in handles)


def receive_all(handles: Sequence[Handle]) -> list[Any]:
    """Return every worker's answer, in the workers' order; the first failure to arrive is raised."""
    answers: dict[int, Any] = {}
    waiting = dict(enumerate(handles))
    while waiting:
        sources = [source for handle in waiting.values() for source in handle.sources]
        ready = set(wait(sources)) if sources else set[Any]()
        for index, handle in list(waiting.items()):
            if not handle.sources or not ready.isdisjoint(handle.sources):
                answers[index] = handle.take(ready)
                del waiting[index]
    return [answers[index] for index in range(len(handles))]

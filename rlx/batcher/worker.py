"""What a worker is: some environments, an agent, and the commands that the batcher gives them.

A `Worker` lives in the batcher's own process (`local`) or behind a pipe in another one (`serve`).
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch import Tensor

from rlx.agent.agent import AgentMaker
from rlx.batcher.memory import Memory
from rlx.batcher.rollout import PieceReport, Rollout
from rlx.batcher.slots import NUM_SLOTS, Layout, Slot
from rlx.batcher.weights import WeightsLayout, copy_all
from rlx.data import DictTensor, EnvSpecs
from rlx.env.vec_env import VecEnv
from rlx.seeding import derive, env_seed


class EnvMaker(Protocol):
    """How a batcher makes its environments: `make_env(num_envs=B)`, picklable."""

    def __call__(self, *, num_envs: int) -> VecEnv:
        """Return `num_envs` new environments, stepped together."""
        ...


@dataclass(frozen=True)
class WorkerOptions:
    """All that a worker is made from; it travels to another process once.

    Attributes:
        index: which of the batcher's workers.
        first_row: index of its first environment among all workers'.
        num_envs: how many environments it has.
        make_env: see `EnvMaker`.
        make_agent: see `AgentMaker`.
        seed: the run's seed.
        evaluation: whether environment seeds come from the evaluation half.
        stop_at_episode_end: see `Rollout`.
        check_finite: see `Rollout`.
    """

    index: int
    first_row: int
    num_envs: int
    make_env: EnvMaker
    make_agent: AgentMaker
    seed: int
    evaluation: bool
    stop_at_episode_end: bool
    check_finite: bool

    @property
    def columns(self) -> slice:
        """Return which of all environments are this worker's."""
        return slice(self.first_row, self.first_row + self.num_envs)


class Worker:
    """Some environments and an agent, which write pieces of experience into shared slots when told to."""

    def __init__(self, options: WorkerOptions) -> None:
        """Make the environments.

        Raises:
            EnvironmentFault: an environment's constructor raised.
        """
        self.options = options
        self.env = options.make_env(num_envs=options.num_envs)
        self._rollout: Rollout | None = None
        self._version = -1
        self._weights: list[list[Tensor]] = []
        self._entries: list[Tensor] = []

    def specs(self) -> EnvSpecs:
        """Return what the environments show and take."""
        return self.env.specs

    def attach(self, layout: Layout, memory: Memory, agent_info: DictTensor, env_info: DictTensor) -> None:
        """Make the agent and the rollout over `memory`, and begin the first episodes."""
        options = self.options
        slots = [Slot(layout, memory, index, options.columns) for index in range(NUM_SLOTS)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(options.seed, "agent"))
            agent = options.make_agent(self.env.specs)
        weights = WeightsLayout.of(agent)
        self._weights = [weights.tensors(memory.tensor(block)) for block in layout.weights]
        self._entries = weights.entries(agent)
        rows = range(options.first_row, options.first_row + options.num_envs)
        self._rollout = Rollout(
            self.env,
            agent.actor(),
            slots,
            first_row=options.first_row,
            seeds=[env_seed(options.seed, row, evaluation=options.evaluation) for row in rows],
            generator=torch.Generator().manual_seed(
                derive(options.seed, "evaluation" if options.evaluation else "act", options.index)
            ),
            agent_info=agent_info,
            env_info=env_info,
            stop_at_episode_end=options.stop_at_episode_end,
            check_finite=options.check_finite,
        )
        self._rollout.reset()

    def reset(self, agent_info: DictTensor, env_info: DictTensor) -> None:
        """Begin new episodes, with these rows of information."""
        rollout = self._attached()
        rollout.agent_info, rollout.env_info = agent_info, env_info
        rollout.reset()

    def run(self, slot: int, version: int, agent_info: DictTensor | None) -> PieceReport:
        """Write one piece into `slot` with the weights of `version`."""
        rollout = self._attached()
        if version != self._version:
            copy_all(self._entries, self._weights[version % len(self._weights)])
            self._version = version
        if agent_info is not None:
            rollout.agent_info = agent_info
        return rollout.run(slot)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return `function(worker, *args)`: a way to look into a worker, or to measure inside it."""
        return function(self, *args)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _attached(self) -> Rollout:
        assert self._rollout is not None, "attach() comes first"
        return self._rollout


@dataclass(frozen=True)
class Failure:
    """An exception on its way from a worker: plain text, so that any exception can travel.

    Attributes:
        kind: name of the exception's class.
        message: its text.
        trace: its traceback, printed, causes included.
    """

    kind: str
    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Return what is to be told about `error`, which may not even be printable."""
        try:
            message = str(error)
        except Exception:
            message = "(its message cannot be printed)"
        return cls(type(error).__name__, message, "".join(traceback.format_exception(error)))


def serve(connection: Connection, options: WorkerOptions) -> None:
    """Run a worker at the other end of `connection` until it is told to close or the parent is gone.

    Messages are `(name of a Worker's method, arguments)`; each is answered by its result or a `Failure`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    torch.set_num_threads(1)
    worker: Worker | None = None
    try:
        worker = Worker(options)
        connection.send(worker.specs())
        while True:
            name, arguments = connection.recv()
            if name == "close":
                break
            if name == "attach":
                arguments = (arguments[0], _receive_memory(connection, arguments[1]), *arguments[2:])
            connection.send(getattr(worker, name)(*arguments))
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except Exception as error:
        with contextlib.suppress(ConnectionError, OSError):
            connection.send(Failure.of(error))
    finally:
        if worker is not None:
            worker.close()


def _receive_memory(connection: Connection, num_bytes: int) -> Memory:
    from multiprocessing.reduction import recv_handle

    return Memory(num_bytes, descriptor=recv_handle(connection))


def _die_with_parent() -> None:
    """Make sure that this process ends when its parent does, whatever either is doing at the time.

    On Linux the kernel kills it when the other end of the parent's pipe closes, even inside C code that holds the GIL.
    Elsewhere a thread waits for that.
    """
    import multiprocessing

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

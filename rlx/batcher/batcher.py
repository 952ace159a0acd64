"""The batcher: many agents in many environments, over processes, handed back as Trajectories."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Annotated, Any, Self

from torch import nn

from rlx.agent.agent import AgentMaker
from rlx.batcher.assemble import HANDED_BACK, SlotReader
from rlx.batcher.crew import Crew, WorkerKind
from rlx.batcher.episode_log import EpisodeLog
from rlx.batcher.handles import Handle, all_ready, receive_all
from rlx.batcher.memory import Memory
from rlx.batcher.plan import plan_memory
from rlx.batcher.probe import agreed_specs
from rlx.batcher.restart import OnFailure
from rlx.batcher.rollout import PieceReport
from rlx.batcher.sampler import Info, columns_of, fitting
from rlx.batcher.slots import NUM_SLOTS, Layout, Slot
from rlx.batcher.state import get_state, handles_state, set_handles_state
from rlx.batcher.weights import copy_all
from rlx.batcher.worker import Worker
from rlx.batcher.worker_options import EnvMaker, WorkerOptions, check_least_room
from rlx.data import DictTensor, Trajectories
from rlx.errors import UserError
from rlx.validate import Range


class Batcher:
    """Steps environments with an agent in workers, and returns pieces of `num_steps` steps of all of them.

    Two slots of shared memory take turns: while the learner reads one piece, the workers may write the next. A piece's
    Trajectories are views of its slot, valid until the next `get`. Use it in a `with` statement.

    Attributes:
        specs: what the environments show and take.
        num_envs: B, over all workers.
        envs_per_worker: of each.
        make_env: makes environments like those of the workers.
        episodes: the training episodes that ended, since somebody last cleared them, in order of time.
        collect_seconds: time the caller has spent waiting in `get`.
        cpu_seconds: CPU time that the workers have spent on the pieces handed over.
        workers: `process`, `local` or `ray`.
        device: where the pieces lie: on the CPU; with local workers, where the environments live.
        waiting: whether a `get` is waiting for workers, or was when something interrupted it.
    """

    def __init__(
        self,
        make_agent: AgentMaker,
        make_env: EnvMaker,
        *,
        num_workers: Annotated[int, Range(1)],
        envs_per_worker: Annotated[int, Range(1)],
        num_steps: int,
        seed: int,
        workers: WorkerKind = "process",
        evaluation: bool = False,
        stop_at_episode_end: bool = False,
        check_finite: bool = True,
        on_failure: OnFailure = "restart",
        step_timeout: Annotated[float, Range(0)] | None = None,
        asynchronous: bool = False,
        agent_info: Info | None = None,
        env_info: Info | None = None,
        address: str | None = None,
        cpus_per_worker: Annotated[float, Range(0)] | None = None,
        rank: int = 0,
    ) -> None:
        """Start the workers and wait until they have made their environments.

        Args:
            make_agent: makes an agent from specs, in each worker.
            make_env: makes `num_envs` environments, in each worker.
            num_workers: number of workers, >= 1; with processes, best the number of cores.
            envs_per_worker: environments of each worker, usually 4 to 64.
            num_steps: steps of each environment a piece, T, usually 5 to 2048.
            seed: the run's seed; environment i begins from `env_seed(seed, i)`.
            workers: `process`; `local` for workers in this process, one after the other (debugging); or `ray` for
                actors of Ray, on whichever machine of its cluster.
            evaluation: take environment seeds from the half that training never uses.
            stop_at_episode_end: each environment does one episode and waits for `reset`; lengths then differ.
            check_finite: check observations and rewards for NaN and infinity, once a piece.
            on_failure: what to do about a worker process that dies, hangs, or whose environment raises: `restart` it
                (an error after three restarts without an answer), or `raise` at once. Local workers always raise.
            step_timeout: seconds that one step of a worker process's environments may take, before it counts as hung;
                making or resetting them all may take that for each. None or 0: any time.
            asynchronous: let `collect` order the next piece before it returns one: the workers run ahead by one piece,
                with the weights that they have, while the learner computes. Steps then carry `agent/policy_version`.
            agent_info: for every `reset` that is given none; rows `[num_envs]`, or a `Sampler`.
            env_info: likewise.
            address: of the cluster, for `ray`: None for a local one, `auto` for the one on this machine, `host:port`.
            cpus_per_worker: cores that each actor of `ray` asks the cluster for; None for one.
            rank: of several learners that each have a batcher like this one: seeds go on where those of the ranks
                before end, so that all together play what one batcher with all their workers would.

        Raises:
            ClusterError: the cluster cannot be reached, is of another version, or has no room.
            EnvironmentFault: an environment could not be made.
            SpecError: the workers' environments differ in their specs, or there is no room for so many.
        """
        self._closed, self._ended_by = False, ""
        check_least_room(workers, num_workers=num_workers, envs_per_worker=envs_per_worker, num_steps=num_steps)
        self.num_envs, self.envs_per_worker, self.num_steps = num_workers * envs_per_worker, envs_per_worker, num_steps
        self.episodes = EpisodeLog()
        self.collect_seconds = self.cpu_seconds = 0.0
        self.workers: WorkerKind = workers
        self.asynchronous, self.waiting = asynchronous, False
        self._resets_first = False  # the next piece begins with new episodes
        self._make_agent, self.make_env = make_agent, make_env
        self._crew = Crew(
            workers,
            num_workers=num_workers,
            on_failure=on_failure,
            step_timeout=step_timeout,
            address=address,
            cpus_per_worker=cpus_per_worker,
        )
        self._handles: list[Handle] = self._crew.handles
        self._layout: Layout | None = None
        self._memory: Memory | None = None
        self._in_flight: list[int] = []
        self._next_slot = self._versions_before = 0  # weights that the run used before it was resumed
        self._version = self._version_executed = -1
        self._current: Trajectories | None = None
        try:
            for index in range(num_workers):
                options = WorkerOptions(
                    index=index,
                    first_row=index * envs_per_worker,
                    num_envs=envs_per_worker,
                    make_env=make_env,
                    make_agent=make_agent,
                    seed=seed,
                    evaluation=evaluation,
                    stop_at_episode_end=stop_at_episode_end,
                    check_finite=check_finite,
                    workers_before=rank * num_workers,
                    envs_before=rank * self.num_envs,
                )
                self._crew.add(options)
            self.specs = agreed_specs(receive_all(self._handles))
            self.device = self._handles[0].device
        except BaseException:
            self._close_after_error()
            raise
        self._standing = {"agent_info": agent_info, "env_info": env_info}
        self._agent_info: Info = DictTensor.empty(self.num_envs)
        self._env_info: Info = self._agent_info

    def reset(self, agent_info: Info | None = None, env_info: Info | None = None, *, wait: bool = True) -> None:
        """Begin new episodes in all environments.

        Either kind of information may be a `Sampler` instead of rows: it is called in the worker, before each episode,
        and what it draws is kept with each step, as `steps["agent_info/..."]` and `steps["env_info/..."]`. It has to be
        there from the first reset on, before weights are published.

        Args:
            agent_info: `[num_envs]`, reaches the agent at every call: which kind of policy each row is. None for what
                the batcher was made with.
            env_info: `[num_envs]`, reaches every reset of its environment: task, goal, level. None likewise.
            wait: wait until the environments are reset; otherwise the workers reset them as the next piece begins, and
                what an environment raises then is raised by `get`. The first reset of all is always waited for.

        Raises:
            AgentError: the agent's outputs do not fit the environments.
            UserError: a piece is being collected, rows are missing, or a sampler comes too late.
        """
        self._usable()
        if self._in_flight and self.asynchronous:
            counted = len(self.episodes)
            self.get()  # what the workers ran ahead with is of the old episodes, and goes
            self.episodes.drop(counted)
        if self._in_flight:
            raise UserError("reset() while a piece is being collected: call get() first")
        self._agent_info, self._env_info = self._rows_of("agent_info", agent_info), self._rows_of("env_info", env_info)
        if self._layout is None:
            self._attach()
            return
        self._resets_first = not wait
        if wait:
            for handle in self._handles:
                handle.send("reset", *self._given_to(handle))
            self._receive()

    def publish(self, agent: nn.Module) -> None:
        """Give the workers this agent's weights; they use them from their next piece on.

        Raises:
            AgentError: its parameters are not those of `make_agent(specs)`.
        """
        self._usable()
        if self._layout is None:
            self.reset()
        # The block that a piece in flight reads is never written to, however often weights are published meanwhile.
        version = self._version_executed + 1
        copy_all(self._weight_views[version % 2], self._weights.entries(agent))
        self._version = version

    def execute(self, agent_info: DictTensor | None = None) -> None:
        """Let the workers collect a piece; returns at once.

        Args:
            agent_info: `[num_envs]`, replaces what `reset` was given, also for episodes that go on.

        Raises:
            UserError: a piece is being collected already, or there are no weights to collect it with.
        """
        self._usable()
        if self._in_flight:
            raise UserError("execute() while a piece is being collected: call get() first")
        if self._layout is None:
            self.reset()
        if self._version < 0:
            if self._weights.blocks:
                raise UserError("the workers have no weights yet: call publish(agent) before execute()")
            self._version = 0
        if agent_info is not None:
            if not isinstance(self._agent_info, DictTensor):
                raise UserError("execute(agent_info): it is drawn by a sampler for each episode; see reset()")
            self._agent_info = self._rows_of("agent_info", agent_info)
        slot = self._next_slot
        anew, given = self._resets_first, self._resets_first or agent_info is not None
        for handle in self._handles:
            info, env_info = self._given_to(handle) if given else (None, None)
            handle.send("run", slot, self._version, info, env_info if anew else None)
        self._resets_first = False
        self._in_flight.append(slot)
        self._version_executed, self._next_slot = self._version, (slot + 1) % NUM_SLOTS

    def get(self, blocking: bool = True) -> tuple[Trajectories, int] | None:
        """Return the piece that `execute` asked for, and how many environments still run their episode.

        The Trajectories of the `get` before are handed back: using them afterwards raises `DataRevokedError`.

        Args:
            blocking: wait for the piece; otherwise return None while it is being collected.

        Raises:
            UserError: `execute` was not called.
            EnvironmentFault: an environment raised, and restarts were not asked for or did not help.
            WorkerError: a worker died or hung, likewise.
        """
        self._usable()
        if not self._in_flight:
            raise UserError("get() without execute(): nothing is being collected")
        if not blocking and not self._or_close(all_ready):
            return None
        started = time.perf_counter()
        if self._current is not None:
            self._current.revoke(HANDED_BACK)
        self.waiting = True
        reports: list[PieceReport] = self._receive()
        self.waiting = False
        self.collect_seconds += time.perf_counter() - started
        for report in reports:
            self.episodes.extend(report.episodes)
            self.cpu_seconds += report.cpu_seconds
        version = self._versions_before + self._version_executed if self.asynchronous else None
        self._current = self._readers[self._in_flight.pop(0)].read(reports, self._agent_info, self._env_info, version)
        return self._current, sum(report.num_running for report in reports)

    def collect(self, agent_info: DictTensor | None = None) -> Trajectories:
        """Collect one piece and return it: `execute`, then `get`.

        With `asynchronous`, the next one is ordered at once. Its steps are taken while the learner computes, with the
        weights published so far: `agent/policy_version` `[B, T]` int64 is their number, counted from 0 on over the
        weights that the run has used, one less than the newest's from the second piece on. Nothing depends on timing.

        Args:
            agent_info: as for `execute`: for the piece that is ordered by this call.
        """
        if not self._in_flight:
            self.execute(agent_info)
        elif agent_info is not None and not self.asynchronous:
            raise UserError("collect(agent_info): a piece is being collected already; give it to execute()")
        piece = self.get()
        assert piece is not None
        if self.asynchronous:
            self.execute(agent_info)
        return piece[0]

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return `function(worker, *args)` of each worker, in order, between pieces; the function must be picklable."""
        self._usable()
        if self._in_flight:
            raise UserError("call() while a piece is being collected: call get() first")
        for handle in self._handles:
            handle.send("call", function, *args)
        return self._receive()

    def state_dict(self, *, between_pieces: bool = True) -> dict[str, Any]:
        """Return where everything is; views of it change. Little, of workers that run ahead or are inside a piece."""
        if self._resets_first and between_pieces:  # the episodes that go on are those that it begins
            self.reset(self._agent_info, self._env_info)
        workers = self.call(get_state) if between_pieces and not (self.asynchronous or self._in_flight) else []
        versions = self._versions_before + self._version_executed + 1
        return {"workers": workers, **handles_state(self._handles, self._agent_info, self._env_info, versions)}

    def load_state_dict(self, state: dict[str, Any] | None, number: int = 0) -> list[str]:
        """Go on, once weights are published, where another batcher of the same make was; return what begins anew.

        All begins anew where `state` is None; `number`, the steps that the run has done, tells its seeds from others.
        """
        if state is not None:
            self._versions_before, self._resets_first = state["versions"], False
            self._agent_info, self._env_info = set_handles_state(self._handles, state, self._agent_info, self._env_info)
            if state["workers"]:
                return [problem for problem in self._receive() if problem is not None]
        self.call(Worker.begin_apart, number)
        why = "workers ran ahead" if self.asynchronous else "a piece was in the making"
        return [f"{why}, and its environments begin new episodes"]

    def close(self) -> None:
        """End the workers and give the memory back; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        if self._current is not None:
            self._current.revoke("the batcher was closed; keep trajectories.clone() to use them longer")
        with ExitStack() as closing:  # all of it, in reverse order, even where an environment's close() raises
            if self._memory is not None:
                closing.callback(self._memory.close)
            closing.callback(self._crew.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def restarts(self) -> int:
        """Return how often workers were started again."""
        return sum(handle.restarts for handle in self._handles)

    @property
    def dropped_steps(self) -> int:
        """Return how many steps of unfinished pieces were lost with workers that were started again."""
        return sum(handle.dropped_steps for handle in self._handles)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of shared memory."""
        return 0 if self._layout is None else self._layout.num_bytes

    @property
    def bytes_by_block(self) -> dict[str, int]:
        """Return what `num_bytes` is made of; see `Layout.bytes_by_block`."""
        return {} if self._layout is None else self._layout.bytes_by_block()

    def _attach(self) -> None:
        """Lay out the memory for what the agent puts out, and have the workers map it."""
        layout, self._weights = plan_memory(
            self._make_agent,
            self.specs,
            {"agent_info": self._agent_info, "env_info": self._env_info},
            num_envs=self.num_envs,
            num_steps=self.num_steps,
            travels=self.workers != "local",
        )
        self._memory = memory = layout.allocate(self.device)
        self._weight_views = [self._weights.tensors(memory.tensor(block)) for block in layout.weights]
        columns = [handle.options.columns for handle in self._handles]
        self._readers = [SlotReader(Slot(layout, memory, index), columns) for index in range(NUM_SLOTS)]
        self._layout = layout
        for handle in self._handles:
            handle.attach(layout, memory, *self._given_to(handle))
        self._receive()

    def _given_to(self, handle: Handle) -> tuple[Info, Info]:
        own = handle.options.columns
        return columns_of(self._agent_info, own), columns_of(self._env_info, own)

    def _receive(self) -> list[Any]:
        return self._or_close(receive_all)

    def _or_close(self, wait: Callable[[list[Handle]], Any]) -> Any:
        """Return what `wait` finds out about the workers; whatever it raises ends them all."""
        with self._crew.served():
            try:
                return wait(self._handles)
            except BaseException as error:
                self._ended_by = f": {type(error).__name__} ended it while it waited for its workers"
                self._close_after_error()
                raise

    def _close_after_error(self) -> None:
        with suppress(Exception):  # what is wrong is told already
            self.close()

    def _rows_of(self, name: str, info: Info | None) -> Info:
        planned, travels = None if self._layout is None else self._layout.sampled, self.workers != "local"
        return fitting(name, info, self._standing[name], self.num_envs, planned, travels=travels, device=self.device)

    def _usable(self) -> None:
        if self._closed:
            raise UserError(f"the batcher is closed{self._ended_by}")

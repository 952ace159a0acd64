"""What a worker is: some environments, an agent, and the commands that the batcher gives them.

A `Worker` lives in the batcher's own process (`local`), behind a pipe in another one (`serve`), or in an actor of Ray
(`ray_actor`).
"""

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from rlx.batcher.check import PieceCheck, check_outputs
from rlx.batcher.heartbeat import CALLS, NUM_WORDS, Words
from rlx.batcher.journal import Journal
from rlx.batcher.memory import Memory
from rlx.batcher.on_device import DeviceRollout
from rlx.batcher.rollout import PieceReport, Rollout
from rlx.batcher.sampler import Drawn, Info
from rlx.batcher.slots import NUM_SLOTS, Layout, Slot
from rlx.batcher.weights import WeightsLayout, copy_all
from rlx.batcher.worker_options import WorkerOptions, check_env
from rlx.data import DictTensor, EnvSpecs
from rlx.env.fault import asked
from rlx.env.on_host import on_host
from rlx.env.registry import register
from rlx.errors import AgentError, ConfigError, EnvironmentFault, RlxError
from rlx.seeding import derive, env_seed

_log = logging.getLogger(__name__)


class Worker:
    """Some environments and an agent, which write pieces of experience into shared slots when told to.

    Attributes:
        options: what it was made from.
        env: its environments.
        piece_check: what looks at its pieces; None where nothing does.
        apart: see `begin_apart`; None where it never was.
    """

    def __init__(self, options: WorkerOptions, words: Words | None = None) -> None:
        """Make the environments.

        Args:
            options: what it is made from.
            words: where its environments' calls are counted; see `heartbeat`.

        Raises:
            EnvironmentFault: an environment's constructor raised.
            UserError: `make_env` does not make what it has to.
        """
        self.options = options
        self.apart: int | None = None
        if options.registered:
            register(options.registered)
        self.env = check_env(options.make_env(num_envs=options.num_envs), options)
        self._words: Words = [0] * NUM_WORDS if words is None else words
        self.piece_check: PieceCheck | None = None
        self._rollout: Rollout | None = None
        self._version = -1
        self._weights: list[list[Tensor]] = []
        self._entries: list[Tensor] = []

    def specs(self) -> EnvSpecs:
        """Return what the environments show and take."""
        return self.env.specs

    def attach(
        self,
        layout: Layout,
        memory: Memory,
        agent_info: Info,
        env_info: Info,
        finished: Collection[int] = (),
    ) -> None:
        """Make the agent and the rollout over `memory`, and begin the first episodes.

        Args:
            layout: what lies where in `memory`.
            memory: shared with the batcher, or this worker's own (`Layout.narrowed`); the agent goes where it lies.
            agent_info: `[B]`, or what draws it for each episode.
            env_info: likewise.
            finished: in stop mode, the rows whose one episode a former incarnation has handed over already.
        """
        options, is_on_host = self.options, memory.device.type == "cpu"
        self._check_env_info(env_info)
        if is_on_host:
            self.env = on_host(self.env)
        slots = [Slot(layout, memory, index, options.columns) for index in range(NUM_SLOTS)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(options.seed, "agent"))
            agent = options.make_agent(self.env.specs).to(memory.device).eval()  # no dropout, no batch's statistics
        weights = WeightsLayout.of(agent)
        self._weights = [weights.tensors(memory.tensor(block)) for block in layout.weights]
        self._entries = weights.entries(agent)
        actor, seeds = agent.actor(), options.seeds_of(self.root)
        if options.check_finite:
            check_outputs(actor, layout.outputs, options.num_envs, options.first_row)
            self.piece_check = PieceCheck(
                self.env, slots, first_row=options.first_row, seeds=seeds, stop=options.stop_at_episode_end
            )
        self._rollout = (Rollout if is_on_host else DeviceRollout)(
            self.env,
            actor,
            slots,
            first_row=options.first_row,
            seeds=seeds,
            generator=torch.Generator(memory.device).manual_seed(options.act_seed(self.root)),
            agent_info=agent_info if isinstance(agent_info, DictTensor) else DictTensor.empty(options.num_envs),
            env_info=env_info if isinstance(env_info, DictTensor) else DictTensor.empty(options.num_envs),
            agent_drawn=self._drawn("agent_info", agent_info, layout, memory.device),
            env_drawn=self._drawn("env_info", env_info, layout, memory.device),
            journal=self._journal() if is_on_host else None,
            stop_at_episode_end=options.stop_at_episode_end,
            words=self._words,
        )
        self._begin_episodes(self._rollout)
        self._rollout.leave_out(finished)

    def reset(self, agent_info: Info, env_info: Info) -> None:
        """Begin new episodes, with these rows of information, or what draws them."""
        rollout = self._attached()
        self._check_env_info(env_info)
        if isinstance(agent_info, DictTensor):
            rollout.agent_info = agent_info
        elif rollout.agent_drawn is not None:
            rollout.agent_drawn.sampler = agent_info
        if isinstance(env_info, DictTensor):
            rollout.env_info = env_info
        elif rollout.env_drawn is not None:
            rollout.env_drawn.sampler = env_info
        self._begin_episodes(rollout)

    def run(self, slot: int, version: int, agent_info: Info | None, env_info: Info | None) -> PieceReport:
        """Write one piece into `slot`.

        Args:
            slot: where to.
            version: of the weights to act with.
            agent_info: `[B]`, replaces the rows so far; None: these go on.
            env_info: `[B]`, to begin new episodes with, along with `agent_info`; None: episodes go on.
        """
        began = time.process_time()
        rollout = self._attached()
        if version != self._version:
            copy_all(self._entries, self._weights[version % len(self._weights)])
            self._version = version
            rollout.agent_changed()
        if agent_info is not None and env_info is not None:
            self.reset(agent_info, env_info)
        elif isinstance(agent_info, DictTensor):
            rollout.agent_info = agent_info
            rollout.agent_changed()
        self._words[CALLS] = 0
        report = self._checked_run(rollout, slot)
        report.cpu_seconds = time.process_time() - began
        return report

    def _checked_run(self, rollout: Rollout, slot: int) -> PieceReport:
        if self.piece_check is None:
            return rollout.run(slot)
        try:
            report = rollout.run(slot)
        except (AgentError, EnvironmentFault):
            self.piece_check.blame(slot, self._words[CALLS])
            raise
        self.piece_check.check(slot, report)
        return report

    @property
    def rollout(self) -> Rollout:
        """Return what steps the environments; there is none before `attach`."""
        return self._attached()

    @property
    def root(self) -> int:
        """Return the seed from which those of environments and draws derive."""
        return self.options.root if self.apart is None else derive(self.options.root, "resumed", self.apart)

    def seed_again(self) -> None:
        """Let the next reset begin as the first one of all did, whoever has died since: the same seeds and draws."""
        if self._rollout is not None:
            self._seed(self._rollout, self.options.seed)  # the first incarnation's root

    def begin_apart(self, number: int, *, draws: bool = True) -> None:
        """Begin new episodes with seeds of their own, so that nothing is played twice.

        Args:
            number: what tells these seeds from others: the steps at which a run was taken up again.
            draws: whether the agent and samplers draw anew, too; else theirs go on.
        """
        self.apart, rollout = number, self._attached()
        self._seed(rollout, self.root, draws=draws)
        self._begin_episodes(rollout)

    def _seed(self, rollout: Rollout, root: int, *, draws: bool = True) -> None:
        options = self.options
        seeds = options.seeds_of(root)
        rollout.seed_again(seeds, (options.act_seed(root), options.info_seed(root)) if draws else None)
        if self.piece_check is not None:
            self.piece_check.seed_again(seeds)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return `function(worker, *args)`: a way to look into a worker, or to measure inside it."""
        return function(self, *args)

    def close(self) -> None:
        """Close the environments and let go of the memory; one that raises is told of, in this process as in others."""
        self._rollout, self._weights = None, []  # its journal asks this object for seeds: a circle of references
        try:
            asked(self.env, "close")
        except RlxError as error:
            _log.warning("%s", error)

    def _check_env_info(self, env_info: Info) -> None:
        """Refuse what would stand beside each step and never reach the environment."""
        given = not isinstance(env_info, DictTensor) or not env_info.is_empty
        if given and not self.env.env_info:
            raise ConfigError(f"environment '{self.env.name}': env_info was given, and it takes none")

    def _drawn(self, name: str, info: Info, layout: Layout, device: torch.device) -> Drawn | None:
        """Return what draws `info` for each episode; None where it is given."""
        if isinstance(info, DictTensor):
            return None
        options, prefix = self.options, f"{name}/"
        specs = {key.removeprefix(prefix): spec for key, spec in layout.sampled.items() if key.startswith(prefix)}
        places = {"first_row": options.places.start, "num_rows": options.num_envs}
        return Drawn(name, info, specs, **places, seed=options.info_seed(self.root), device=device)

    def _journal(self) -> Journal | None:
        """Return what keeps the environments' ways for a checkpoint: where one is made of them, and they need it."""
        options = self.options
        if options.evaluation or not Journal.serves(self.env) or self.env.own_state:
            return None

        def seed_of(row: int, number: int) -> int:
            return env_seed(derive(self.root, "again", number), options.places[row])

        return Journal(options.num_envs, self.env.specs.action, seed_of)

    def _begin_episodes(self, rollout: Rollout) -> None:
        rollout.reset()
        if self.piece_check is not None:
            self.piece_check.begin_episodes()

    def _attached(self) -> Rollout:
        assert self._rollout is not None, "attach() comes first"
        return self._rollout

"""The episode batcher: whole episodes, exactly those asked for."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

import torch
from torch import Tensor

from rlx.agent.agent import AgentMaker
from rlx.batcher.batcher import Batcher
from rlx.batcher.crew import WorkerKind
from rlx.batcher.episode_log import EpisodeLog
from rlx.batcher.restart import OnFailure
from rlx.batcher.sampler import Info
from rlx.batcher.worker_options import EnvMaker, check_sizes
from rlx.data import DictTensor, Lazy, TemporalDictTensor, Trajectories
from rlx.data.storage import check_room
from rlx.errors import EnvironmentFault, UserError
from rlx.validate import Range

MOST_EPISODE_STEPS = 1_000_000
"""Steps after which an episode is taken for one that never ends."""


def check_end(running: int, num_steps: int) -> None:
    """Refuse to wait any longer for episodes that have gone on for `num_steps` steps.

    Raises:
        EnvironmentFault: these are a million or more.
    """
    if num_steps >= MOST_EPISODE_STEPS:
        raise EnvironmentFault(
            f"{running} episodes have not ended after {num_steps:,} steps each; expected episodes that end: "
            "env.max_episode_steps=N (rlx eval: --max-episode-steps N) ends them after N"
        )


class EpisodeBatcher(Batcher):
    """A `Batcher` that returns whole episodes, one a sequence, padded to the longest.

    Which episodes count is settled before they begin: each environment plays one, or, for more, one after the other in
    rounds; of the last round the first environments' are taken. None is left out because it took long, so short ones
    are not overrated as they are where the first N to finish are counted. Every `execute` begins new episodes, all of
    them played with one set of weights. An episode that never ends is never returned: limit it by
    `env.max_episode_steps`.

    The Trajectories own their memory: they are not taken back by a later `get`.
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
        num_episodes: Annotated[int, Range(1)] | None = None,
        workers: WorkerKind = "process",
        evaluation: bool = False,
        check_finite: bool = True,
        on_failure: OnFailure = "restart",
        step_timeout: Annotated[float, Range(0)] | None = None,
        agent_info: Info | None = None,
        env_info: Info | None = None,
        address: str | None = None,
        cpus_per_worker: Annotated[float, Range(0)] | None = None,
        rank: int = 0,
    ) -> None:
        """Start the workers and wait until they have made their environments.

        Args:
            make_agent: as for `Batcher`, like all that follows but these two.
            make_env: see there.
            num_workers: see there.
            envs_per_worker: see there.
            num_steps: length of the pieces in which episodes are collected, usually 32 to 256.
            seed: see there.
            num_episodes: how many episodes each `get` returns; None for one of each environment.
            workers: see there.
            evaluation: see there.
            check_finite: see there.
            on_failure: see there; the episodes that a worker had not finished begin anew.
            step_timeout: see there.
            agent_info: see there.
            env_info: see there.
            address: see there.
            cpus_per_worker: see there.
            rank: see there.

        Raises:
            ClusterError: see there.
            EnvironmentFault: an environment could not be made.
            SpecError: the workers' environments differ in their specs.
        """
        check_sizes(num_episodes=num_episodes)
        super().__init__(
            make_agent,
            make_env,
            num_workers=num_workers,
            envs_per_worker=envs_per_worker,
            num_steps=num_steps,
            seed=seed,
            workers=workers,
            evaluation=evaluation,
            stop_at_episode_end=True,
            check_finite=check_finite,
            on_failure=on_failure,
            step_timeout=step_timeout,
            agent_info=agent_info,
            env_info=env_info,
            address=address,
            cpus_per_worker=cpus_per_worker,
            rank=rank,
        )
        self.num_episodes = self.num_envs if num_episodes is None else num_episodes
        self._rounds: list[_Round] = []
        self._given: tuple[Info | None, Info | None] = None, None

    def reset(self, agent_info: Info | None = None, env_info: Info | None = None, *, wait: bool = True) -> None:
        """Settle what the next episodes are played with; they begin at `execute`.

        Args:
            agent_info: `[num_envs]`, reaches the agent at every call.
            env_info: `[num_envs]`, reaches every reset of its environment.
            wait: as for `Batcher`.

        Raises:
            AgentError: the agent's outputs do not fit the environments.
            UserError: episodes are being collected.
        """
        super().reset(agent_info, env_info, wait=wait)
        self._given, self._resets_first = (agent_info, env_info), False  # each round begins with a reset of its own

    def execute(self, agent_info: DictTensor | None = None) -> None:
        """Let the workers play the episodes; returns as soon as these have begun.

        Args:
            agent_info: `[num_envs]`, replaces what `reset` was given.

        Raises:
            UserError: episodes are being collected already, or there are no weights to play them with.
        """
        if self._rounds:
            raise UserError("execute() while episodes are being collected: call get() first")
        if agent_info is not None:
            self._given = self._rows_of("agent_info", agent_info), self._given[1]
        self._begin_round()

    def get(self, blocking: bool = True) -> tuple[Trajectories, int] | None:
        """Return the episodes, `[num_episodes]` sequences, and 0: none is running any more.

        Args:
            blocking: wait for the last one to end; otherwise return None while one is running. The pieces that are
                ready are taken in, and the next ones begun, at each such call.

        Raises:
            UserError: `execute` was not called.
            EnvironmentFault: an environment raised, or an episode does not end.
            SpecError: there is no room for episodes as long as these.
            WorkerError: a worker died.
        """
        while True:
            counted = len(self.episodes)
            piece = super().get(blocking)
            if piece is None:
                return None
            self._rounds[-1].episodes.extend(self.episodes.drop(counted))  # told of with the batch they belong to
            self._rounds[-1].add(piece[0])
            if not self._rounds[-1].done.all():
                check_end(piece[1], self._rounds[-1].num_steps)
                super().execute()
            elif len(self._rounds) * self.num_envs < self.num_episodes:
                self._begin_round()
            else:
                return self._joined(), 0

    def load_state_dict(self, state: dict[str, Any] | None, number: int = 0) -> list[str]:
        """Go on where another batcher was, as `Batcher` does, with the rows of information that it had."""
        told = super().load_state_dict(state, number)
        now, before = (self._agent_info, self._env_info), self._given
        agent_info, env_info = (
            new if isinstance(new, DictTensor) else old for new, old in zip(now, before, strict=True)
        )
        self._given = agent_info, env_info
        return told

    def _begin_round(self) -> None:
        super().reset(*self._given, wait=False)
        super().execute()
        self._rounds.append(_Round(self.num_envs, self.device))

    def _joined(self) -> Trajectories:
        rounds, self._rounds = self._rounds, []
        for number, played in enumerate(rounds):
            wanted = self.num_episodes - number * self.num_envs
            self.episodes.extend(played.episodes[played.episodes.rows < wanted])
        chosen = slice(0, self.num_episodes)
        info = DictTensor.cat([cast(DictTensor, played.info) for played in rounds])[chosen]
        steps = TemporalDictTensor.cat([played.steps() for played in rounds])[chosen]
        finals = DictTensor.cat([DictTensor.trusted(played.finals, self.num_envs) for played in rounds])[chosen]
        steps = steps.slice_time(0, max(1, int(steps.lengths.max())))
        return _trajectories(info, steps, finals, list(self.specs.action), self._context())

    def _context(self) -> TemporalDictTensor:
        """Return the context `[num_episodes, C]` of whole episodes: no step, and room for those of parts of them."""
        assert self._layout is not None, "episodes were collected"
        size, longest, device = self.num_episodes, self._layout.history_length, self.device
        room = {
            key: Lazy(lambda spec=spec: spec.zeros(size, longest, device=device))
            for key, spec in self._layout.context.items()
        }
        lengths = torch.zeros(size, dtype=torch.int64, device=device)
        return TemporalDictTensor.trusted(room, lengths, longest)


class _Round:
    """One episode of every environment, as far as it has come.

    Attributes:
        done: `[B]` bool, whose episode has ended.
        info: `[B]`, what each episode began with.
        finals: the final observations `[B, ...]`.
        episodes: those that ended.
        num_steps: of the pieces so far.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.done = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.info: DictTensor | None = None
        self.finals: dict[str, Tensor] = {}
        self.episodes = EpisodeLog()
        self.num_steps = 0
        self._lengths = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._fields: dict[str, Tensor] = {}
        self._capacity = 0

    def add(self, piece: Trajectories) -> None:
        """Copy what a piece has of the episodes that go on."""
        steps = piece.steps
        self.num_steps += steps.max_length
        observed = [key.removeprefix("env/") for key in steps if key.split("/")[:2] == ["env", "obs"]]
        if self.info is None:
            self.info = piece.info.clone()
            for key in observed:
                self.finals[key] = torch.zeros_like(steps[f"env/{key}"][:, 0])
        rows = (~self.done & (steps.lengths > 0)).nonzero().squeeze(1)
        if not len(rows):
            return
        # A worker that was restarted begins its episodes anew: what it had of the old ones is dropped.
        again = rows[steps["env/is_first"][rows, 0]]
        self._lengths[again] = 0
        self.info.copy_rows_(piece.info, again, again)
        counts = steps.lengths[rows]
        self._reserve(int((self._lengths[rows] + counts).max()), steps, observed)
        inside = torch.arange(int(counts.max()), device=counts.device) < counts.unsqueeze(1)
        place, time = inside.nonzero(as_tuple=True)
        row = rows[place]
        target = self._lengths[row] + time
        for key, field in self._fields.items():
            field[row, target] = steps[key][row, time]
        self._lengths[rows] += counts
        last = counts - 1
        over = steps["next/terminated"][rows, last] | steps["next/truncated"][rows, last]
        if over.any():
            ended, when = rows[over], last[over]
            self.done[ended] = True
            for key in observed:
                self.finals[key][ended] = steps[f"next/{key}"][ended, when]

    def steps(self) -> TemporalDictTensor:
        """Return the episodes, `[B, longest]`."""
        longest = int(self._lengths.max())
        fields = {key: field[:, :longest] for key, field in self._fields.items()}
        return TemporalDictTensor.trusted(fields, self._lengths, longest)

    def _reserve(self, length: int, steps: TemporalDictTensor, observed: Sequence[str]) -> None:
        if length <= self._capacity:
            return
        self._capacity = max(length, 2 * self._capacity)
        kept = ("agent/", "agent_info/", "env_info/")
        stored = [f"env/{key}" for key in observed] + [key for key in steps if key.startswith(kept)]
        patterns = {key: steps[key] for key in [*stored, "next/reward", "next/terminated", "next/truncated"]}
        if self.done.is_cpu:
            num_bytes = self._capacity * sum(pattern[:, 0].nbytes for pattern in patterns.values())
            what = f"a batch of {len(self.done)} episodes that go on after {length:,} steps"
            check_room(num_bytes, what, advice="env.max_episode_steps=N ends them after N")
        for key, pattern in patterns.items():
            larger = pattern.new_zeros(pattern.shape[0], self._capacity, *pattern.shape[2:])
            if key in self._fields:
                larger[:, : self._fields[key].shape[1]] = self._fields[key]
            self._fields[key] = larger


def _trajectories(
    info: DictTensor,
    steps: TemporalDictTensor,
    finals: DictTensor,
    actions: Sequence[str],
    context: TemporalDictTensor,
) -> Trajectories:
    """Return whole episodes with the fields that follow from the others, built when they are asked for."""
    rows = torch.arange(steps.batch_size, device=steps.device)
    last = steps.lengths - 1

    def following(key: str) -> Tensor:
        seen = steps[f"env/{key}"]
        moved = torch.cat([seen[:, 1:], torch.zeros_like(seen[:, :1])], dim=1)
        moved[rows, last] = finals[key]
        return moved

    def before(key: str) -> Tensor:
        value = steps[key]
        moved = torch.cat([torch.zeros_like(value[:, :1]), value[:, :-1]], dim=1)
        return moved.masked_fill_(~steps.mask().view(*moved.shape[:2], *[1] * (moved.dim() - 2)), 0)

    def is_first() -> Tensor:
        first = torch.zeros(steps.batch_size, steps.max_length, dtype=torch.bool, device=steps.device)
        first[:, 0] = True
        return first

    def bootstrap() -> DictTensor:
        row = rows[steps["next/truncated"][rows, last] & ~steps["next/terminated"][rows, last]]
        time = last[row]
        fields = {"row": row, "time": time, **{key: finals[key][row] for key in finals}}
        fields["is_first"] = torch.zeros(len(row), dtype=torch.bool, device=steps.device)
        fields["prev_reward"] = steps["next/reward"][row, time]
        fields |= {f"prev_{key}": steps[f"agent/{key}"][row, time] for key in actions}
        return DictTensor.trusted(fields, len(row))

    derived: dict[str, Any] = {f"next/{key}": Lazy(lambda key=key: following(key)) for key in finals}
    derived["env/is_first"] = Lazy(is_first)
    derived["env/prev_reward"] = Lazy(lambda: before("next/reward"))
    derived |= {f"env/prev_{key}": Lazy(lambda key=key: before(f"agent/{key}")) for key in actions}
    whole = steps | TemporalDictTensor.trusted(derived, steps.lengths, steps.max_length)
    return Trajectories(info, whole, bootstrap, context)

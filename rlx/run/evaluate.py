"""Evaluation: exactly N whole episodes with fixed weights, during a run or from a checkpoint."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from rlx.agent import MixtureAgent
from rlx.agent.agent import AgentMaker
from rlx.batcher.batcher import Batcher
from rlx.batcher.crew import WorkerKind
from rlx.batcher.episodes import check_end
from rlx.batcher.sampler import Info, Sampler
from rlx.batcher.worker import Worker
from rlx.batcher.worker_options import EnvMaker, check_sizes
from rlx.data import DictTensor, EnvSpecs, MissingFieldError, Trajectories
from rlx.errors import AgentError
from rlx.run.agent_info import dealt, settled, with_fields
from rlx.run.policy import load_policy

MOST_ENVS = 128
"""Environments that play at once, at most."""

_PIECE_STEPS = 64, 1024
_PIECE_BYTES = 1 << 26


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        returns: of each episode, undiscounted, on the bare environment's rewards.
        lengths: steps of each episode.
        env_steps: environment steps that the weights were trained for; None where that is not known.
        seed: where the environments' seeds grew from.
        deterministic: whether the policy's mode was taken instead of a draw.
        policies: of a population, which member played each episode, as `agent_info["policy"]` counts them; else None.
        members: its members' names; None where the agent is one policy.
        environments: of `env=mixed`, in which of its environments each episode was played, as `env.members` counts;
            else None.
        environment_names: their ids; None where there is one environment.
    """

    returns: list[float]
    lengths: list[int]
    env_steps: int | None
    seed: int
    deterministic: bool
    policies: list[int] | None = None
    members: list[str] | None = None
    environments: list[int] | None = None
    environment_names: list[str] | None = None

    @property
    def mean(self) -> float:
        """Return the mean return."""
        return sum(self.returns) / len(self.returns)

    @property
    def std(self) -> float:
        """Return the standard deviation of the returns (of these episodes; divided by N)."""
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.returns) / len(self.returns))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {
            "episodes": len(self.returns),
            "mean": self.mean,
            "std": self.std,
            "returns": self.returns,
            "lengths": self.lengths,
            "env_steps": self.env_steps,
            "seed": self.seed,
            "deterministic": self.deterministic,
            "policies": self.policies,
            "members": self.members,
            "environments": self.environments,
            "environment_names": self.environment_names,
        }


class Evaluator:
    """Plays whole episodes with an agent, in workers of its own that start at the first evaluation.

    Which episodes count is settled beforehand: each environment plays the same number of them, one after the other, and
    of the last round the first environments' are taken, of `env=mixed` as many of one kind as of another. None is left
    out because it took long, so long ones are not underrated as they are where the first N to finish are counted.
    """

    def __init__(
        self,
        make_agent: AgentMaker,
        make_env: EnvMaker,
        *,
        episodes: int,
        seed: int,
        deterministic: bool = True,
        num_workers: int = 2,
        workers: WorkerKind = "process",
        address: str | None = None,
        agent_info: Sampler | None = None,
        env_info: Sampler | None = None,
        kinds: Sequence[str] = (),
        check_finite: bool = True,
        step_timeout: float | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            make_agent: makes the agent from specs.
            make_env: makes environments.
            episodes: how many episodes each evaluation plays.
            seed: where seeds grow from; training with the same seed uses other environment seeds.
            deterministic: take the policy's mode instead of a draw.
            num_workers: number of workers.
            workers: `process`, `local` or `ray`; actors of Ray ask for no cores of their own.
            address: of Ray's cluster; see `Batcher`.
            agent_info: draws which kind of policy plays each episode, beside `deterministic`; None for nothing.
            env_info: draws each episode's task; None for nothing.
            kinds: the different environments in one batch, see `kinds_of`; none where all are alike.
            check_finite: see `Batcher`.
            step_timeout: likewise.
            report: told after each piece how many of the episodes have ended, and how many steps were played.

        Raises:
            UserError: a number is below 1.
        """
        check_sizes(episodes=episodes, num_workers=num_workers)
        self._makers = make_agent, make_env
        self._episodes = episodes
        self._seed = seed
        self._deterministic = deterministic
        self._samplers = agent_info, env_info
        self._names, self._kinds = list(kinds), max(1, len(kinds))
        self._watched: dict[str, Any] = {"check_finite": check_finite, "step_timeout": step_timeout}
        self._report = report
        self._num_workers = 1 if workers == "local" else min(num_workers, episodes)
        self._kind: WorkerKind = workers
        self._address = address
        self._batcher: Batcher | None = None
        self._learner: Batcher | None = None
        self._members: list[str] | None = None  # of a population
        self._told: Info = DictTensor.empty(0)  # what the agent is told at each reset
        self._policies: list[int] = []  # of this round's episodes, by row; empty where the agent is one policy
        # Return, length, policy and environment of each episode; None: idle.
        self._found: list[tuple[float, int, int, int]] | None = None
        self._round_steps = 0  # of each environment, since the round of episodes began
        self._steps = 0  # of all of them, since the evaluation began; counted for a report only
        self._result: EvaluationResult | None = None
        self._spent = 0.0, 0.0

    def start(self, specs: EnvSpecs | None = None) -> Batcher:
        """Return the batcher that plays, started now where it was not.

        Args:
            specs: what the environments show, where that is known already: pieces are then as long as memory allows,
                since workers rest between a piece's end and the next `poll`.
        """
        if self._batcher is None:
            each = math.ceil(min(self._episodes, MOST_ENVS) / self._num_workers)
            each = math.ceil(each / self._kinds) * self._kinds  # as many of one as of another
            steps, most = _PIECE_STEPS
            if specs is not None:
                num_bytes = sum(spec.zeros(1).nbytes for spec in specs.observation.values())
                steps = max(steps, min(most, _PIECE_BYTES // max(1, num_bytes * each * self._num_workers)))
            self._batcher = Batcher(
                *self._makers,
                num_workers=self._num_workers,
                envs_per_worker=each,
                env_info=self._samplers[1],
                num_steps=steps,
                seed=self._seed,
                workers=self._kind,
                address=self._address,
                cpus_per_worker=0.0,
                evaluation=True,
                stop_at_episode_end=True,
                **self._watched,
            )
        return self._batcher

    def play(self, agent: nn.Module, env_steps: int | None = None) -> EvaluationResult:
        """Play the episodes with these weights.

        Args:
            agent: made by `make_agent`, with the weights to play with.
            env_steps: environment steps that they were trained for.

        Raises:
            AgentError: it needs to be told more than it is told here.
            EnvironmentFault: the environment raised, or an episode does not end.
        """
        self._begin(agent, self.start())
        result = self._advance(blocking=True)
        assert result is not None
        return replace(result, env_steps=env_steps)

    def begin(self, agent: nn.Module, learner: Batcher) -> None:
        """Begin an evaluation with the weights of now, and return at once: only the first one starts the workers.

        Args:
            agent: made by `make_agent`; its weights are copied.
            learner: the batcher that trains, whose environments are like these.
        """
        self._learner = learner
        self._begin(agent, self.start(learner.specs))
        self._spent = self._cpu_seconds()

    def poll(self) -> None:
        """Take in what the workers have done, and let them go on; waits for nothing (but for local workers' work)."""
        if self._result is None and self._found is not None:
            self._result = self._advance(blocking=False)

    def finish(self) -> dict[str, float]:
        """Wait for the end of the evaluation that was begun, and return what it found.

        Returns:
            `eval/return` (mean), `eval/return_std`, `eval/length` (mean), and `eval/cpu_share`: the part of the CPU
            time of learner and workers, since the evaluation began, that its steps took. Of `env=mixed` also
            `eval/return/0` and so on, the mean of each of its environments that was played; of a population
            `eval/return/NAME`, that of each member.

        Raises:
            EnvironmentFault: the environment raised, or an episode does not end.
        """
        result = self._result or self._advance(blocking=True)
        assert result is not None
        self._result = None
        own, all_of_us = (now - then for now, then in zip(self._cpu_seconds(), self._spent, strict=True))
        means = {str(number): mean for number, _, mean in shares(result.returns, result.environments or ())}
        names, policies = result.members or [], shares(result.returns, result.policies or ())
        means |= {names[number]: mean for number, _, mean in policies}
        return {
            "eval/return": result.mean,
            **{f"eval/return/{name}": mean for name, mean in means.items()},
            "eval/return_std": result.std,
            "eval/length": sum(result.lengths) / len(result.lengths),
            "eval/cpu_share": own / max(all_of_us, 1e-9),
        }

    def _begin(self, agent: nn.Module, batcher: Batcher) -> None:
        assert self._found is None, "an evaluation is under way"
        self._found, self._round_steps, self._steps = [], 0, 0
        self._members = list(agent.members) if isinstance(agent, MixtureAgent) else None
        mode, size = torch.tensor(self._deterministic), batcher.num_envs
        # By the place among one environment's rows, so that each member of a population plays in each of `env=mixed`.
        drawn = dealt(agent, self._samplers[0], partial(_place, batcher.envs_per_worker, self._kinds))
        alike = DictTensor({"deterministic": mode.expand(size)}, size)
        self._told = alike if drawn is None else partial(with_fields, drawn, {"deterministic": mode})
        batcher.call(Worker.seed_again)  # every evaluation plays the same seeds, whatever was played before
        try:
            batcher.reset(self._told, wait=False)  # each environment begins an episode with the next piece
        except MissingFieldError as error:
            raise AgentError(
                f"evaluation: {error} All that an agent is told there is 'deterministic' and what batcher.agent_info "
                "draws (or rlx eval --agent-info says), not what an algorithm gives to reset() or execute(): expected "
                "one that acts without it"
            ) from error
        batcher.publish(agent)
        batcher.execute()

    def _advance(self, *, blocking: bool) -> EvaluationResult | None:
        """Return the result once all episodes are played; None where that would mean to wait."""
        batcher, found = self.start(), self._found
        assert found is not None, "begin() comes first"
        while len(found) < self._episodes:
            piece = batcher.get(blocking)
            if piece is None:
                return None
            if self._members is not None and not self._round_steps:
                self._policies = first_policies(piece[0])
            self._round_steps += batcher.num_steps
            if self._report is not None:
                self._steps += piece[0].num_steps
                self._report(min(len(found) + len(batcher.episodes), self._episodes), self._steps)
            if not piece[1]:  # the round is over
                self._round_steps = 0
                ended, of = sorted(batcher.episodes, key=lambda episode: self._turn(episode[0])), self._policies
                found.extend((value, length, of[row] if of else 0, self._turn(row)[1]) for row, value, length in ended)
                batcher.episodes.clear()
                if len(found) >= self._episodes:
                    break
                batcher.reset(self._told, wait=False)
            else:
                check_end(piece[1], self._round_steps)
            batcher.execute()
        self._found = None
        returns, lengths, policies, environments = map(list, zip(*found[: self._episodes], strict=True))
        result = EvaluationResult(returns, lengths, None, self._seed, self._deterministic)
        if self._members is not None:
            result = replace(result, policies=policies, members=self._members)
        if self._names:
            result = replace(result, environments=environments, environment_names=self._names)
        return result

    def _turn(self, row: int) -> tuple[int, int]:
        """Return what rows are counted by: the different environments of a batch in turn, each in its own order."""
        size = self.start().envs_per_worker
        return _place(size, self._kinds, row), row % size // (size // self._kinds)

    def _cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time of the evaluation's steps, and that of learner and workers together."""
        batchers = [batcher for batcher in (self._batcher, self._learner) if batcher is not None]
        remote = sum(batcher.cpu_seconds for batcher in batchers if batcher.workers != "local")
        return self.start().cpu_seconds, time.process_time() + remote

    def close(self) -> None:
        """End the workers; harmless when called again."""
        if self._batcher is not None:
            self._batcher.close()
            self._batcher = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _place(envs_per_worker: int, kinds: int, row: int) -> int:
    """Return a row's place among those of its own environment, in all workers."""
    worker, own = divmod(row, envs_per_worker)
    share = envs_per_worker // kinds
    return worker * share + own % share


def kinds_of(env: Mapping[str, Any]) -> list[str]:
    """Return the ids of the environments that the group `env` puts into one batch; none where that is one."""
    names = [str(member["id"]) for member in env["members"]] if env.get("_target_") == "rlx.env.make_mixed" else []
    return names if len(names) > 1 else []


def shares(returns: Sequence[float], of: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return for each policy, or environment, that played its number, its episodes, and their mean return.

    Args:
        returns: of each episode.
        of: whose each episode was; empty where all are of the same.
    """
    own = {
        number: [value for value, each in zip(returns, of, strict=True) if each == number] for number in sorted({*of})
    }
    return [(number, len(values), sum(values) / len(values)) for number, values in own.items()]


def first_policies(piece: Trajectories) -> list[int]:
    """Return which member of a population each row's episode belongs to, of the piece in which the episodes begin."""
    return [int(number) for number in piece.steps["agent/policy"][:, 0]]


def evaluate_path(
    path: Path | str,
    *,
    episodes: int = 100,
    seed: int = 0,
    stochastic: bool = False,
    agent_info: Sequence[str] = (),
    trust: bool = False,
    config_dir: Path | str | None = None,
    num_workers: int = 2,
    max_episode_steps: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Play episodes with the policy of a run or of one of its checkpoints; the checkpoint carries what that takes.

    Args:
        path: a run directory (its newest whole checkpoint) or a checkpoint.
        episodes: how many, exactly.
        seed: where seeds grow from.
        stochastic: draw actions instead of taking the policy's mode.
        agent_info: `KEY=VALUE`: which policy plays, where the agent is several; without, the members of a population
            are dealt to the environments in turn.
        trust: import whatever code the checkpoint names.
        config_dir: a user's configuration directory, whose names are trusted.
        num_workers: worker processes.
        max_episode_steps: steps after which an episode ends; None for what the policy was trained with.
        report: told after each piece how many of the episodes have ended, and how many steps were played.

    Raises:
        CheckpointError: it is missing, damaged, or does not fit the environment; or it names code that is not trusted.
        ConfigError: the environment takes no `max_episode_steps`, or `agent_info` is wrong.
        EnvironmentFault: the environment raised, or an episode does not end.
    """
    policy = load_policy(path, trust=trust, config_dir=config_dir, max_episode_steps=max_episode_steps)
    policy = settled(policy, agent_info, deterministic=not stochastic)
    options: dict[str, Any] = {"episodes": episodes, "seed": seed, "deterministic": not stochastic}
    options |= {"kinds": kinds_of(policy.env), "report": report, **policy.samplers, **policy.watched}
    with Evaluator(policy.make_agent, policy.make_env, num_workers=num_workers, **options) as evaluator:
        policy.check_specs(evaluator.start().specs)
        return evaluator.play(policy.agent, env_steps=policy.env_steps)

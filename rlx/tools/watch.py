"""`rlx eval --video` and `--render human`: evaluation's episodes, one after the other, to be seen."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gymnasium.error import DependencyNotInstalled
from torch import Tensor

from rlx.agent import MixtureAgent
from rlx.batcher.batcher import Batcher
from rlx.batcher.sampler import first_draw
from rlx.data import DictTensor
from rlx.env.vec_env import StepBuffer, VecEnv
from rlx.errors import ConfigError, EnvironmentFault, UserError
from rlx.run.agent_info import dealt, settled
from rlx.run.build import maker
from rlx.run.evaluate import EvaluationResult, first_policies, kinds_of
from rlx.run.files import check_output, expanded, reason_of
from rlx.run.policy import Policy, load_policy
from rlx.run.signals import StopSignals
from rlx.seeding import derive, env_seed
from rlx.tools.film import Film, libraries
from rlx.tools.rendering import RenderMode, drawing, frames_per_second, picture
from rlx.tools.screen import drawing_without_screen, explained, require_screen

_PIECE_STEPS = 64
_OTHER_FORMATS = {".avi", ".gif", ".mkv", ".mov", ".webm"}


@dataclass(frozen=True)
class Seen:
    """What was played.

    Attributes:
        result: of the evaluation.
        files: the videos, one an episode; none where it was watched.
    """

    result: EvaluationResult
    files: list[Path]


def watch(
    path: Path | str,
    *,
    video: Path | str | None,
    episodes: int = 1,
    seed: int = 0,
    stochastic: bool = False,
    agent_info: Sequence[str] = (),
    trust: bool = False,
    config_dir: Path | str | None = None,
    max_episode_steps: int | None = None,
) -> Seen:
    """Play the first episodes of an evaluation, each to a video, or in a window.

    Episode i is played in the environment with the seed that it has in an evaluation by `seed`.

    Args:
        path: a run directory (its newest whole checkpoint) or a checkpoint.
        video: a file `.mp4`, for one episode, or a folder, in which each gets a file; None for a window.
        episodes: how many.
        seed: where seeds grow from.
        stochastic: draw actions instead of taking the policy's mode.
        agent_info: as for `rlx.run.evaluate.evaluate_path`.
        trust: import whatever code the checkpoint names.
        config_dir: a user's configuration directory, whose names are trusted.
        max_episode_steps: steps after which an episode ends; None for what the policy was trained with.

    Raises:
        CheckpointError: it is missing, damaged, does not fit the environment, or names code that is not trusted.
        ConfigError: the environment takes no `max_episode_steps`, or `agent_info` is wrong.
        MissingPackageError: what writes videos is not installed.
        UserError: the environment cannot draw, there is no screen for a window, or the file cannot be written.
        EnvironmentFault: the environment raised.
        StopRequested: a signal ended it; of the episode that was played then nothing is left.
    """
    if video is None:
        require_screen()
    else:
        libraries()  # before anything is made in vain
    place = None if video is None else _Place(Path(video), episodes)
    policy = load_policy(path, trust=trust, config_dir=config_dir, max_episode_steps=max_episode_steps)
    policy = settled(policy, agent_info, deterministic=not stochastic)
    kinds = kinds_of(policy.env)  # which take turns, see `drawing`; each with every member
    sampler = dealt(policy.agent, policy.samplers.get("agent_info"), lambda row: row // max(1, len(kinds)))
    if sampler is not None:
        policy = replace(policy, samplers={**policy.samplers, "agent_info": sampler})
    members = list(policy.agent.members) if isinstance(policy.agent, MixtureAgent) else None
    returns, lengths, policies, files = list[float](), list[int](), list[int](), list[Path]()
    with StopSignals() as stop:  # its own handlers: SDL, which pygame draws with, would take SIGTERM and drop it
        stop.at_once = True
        for row in range(episodes):
            number = env_seed(seed, row, evaluation=True)
            with ExitStack() as stack:
                film: Film | None = None

                def show(env: VecEnv, out: StepBuffer, total: float, step: int, stack: ExitStack = stack) -> None:
                    nonlocal film
                    if place is None:
                        return  # the window draws itself
                    if film is None:
                        film = stack.enter_context(Film(place.folder, frames_per_second(env)))
                    film.add(picture(env, out), f"return {total:.2f}   step {step}")

                mode: RenderMode = "human" if place is None else "rgb_array"
                stack.enter_context(drawing_without_screen())
                value, length, member = _play(policy, mode, row, number, seed, stochastic, show)
                returns.append(value)
                lengths.append(length)
                policies += member
                if place is not None and film is not None:
                    files.append(film.finish(place.of(number, value)))
    result = EvaluationResult(returns, lengths, policy.env_steps, seed, not stochastic)
    if members is not None:
        result = replace(result, policies=policies, members=members)
    if kinds:
        turns = [row % len(kinds) for row in range(episodes)]
        result = replace(result, environments=turns, environment_names=kinds)
    return Seen(result, files)


Show = Callable[[VecEnv, StepBuffer, float, int], None]


def _play(
    policy: Policy, mode: RenderMode, row: int, number: int, seed: int, stochastic: bool, show: Show
) -> tuple[float, int, list[int]]:
    """Play one episode in an environment of its own; return its return, length and, of a population, whose it is."""
    info = DictTensor({"deterministic": torch.tensor([not stochastic])})
    given = {
        kind: first_draw(kind, sampler, row, derive(seed, "evaluation")) for kind, sampler in policy.samplers.items()
    }
    try:
        make_env = maker("env", drawing(policy.env, mode, row))
    except ConfigError as error:
        raise UserError(f"'{policy.path}' cannot be seen: {error}") from error

    def make_watched(*, num_envs: int) -> VecEnv:
        return _Watched(make_env(num_envs=num_envs), number, show)

    try:
        with Batcher(
            policy.make_agent,
            make_watched,
            num_workers=1,
            envs_per_worker=1,
            num_steps=_PIECE_STEPS,
            seed=derive(seed, "watch", row),  # of the agent's draws; the environment has its own
            workers="local",
            evaluation=True,
            stop_at_episode_end=True,
            agent_info=info | given.get("agent_info", DictTensor.empty(1)),
            env_info=given.get("env_info"),
        ) as batcher:
            policy.check_specs(batcher.specs)
            batcher.publish(policy.agent)
            running, member = 1, list[int]()
            while running:
                batcher.execute()
                piece = batcher.get()
                assert piece is not None
                trajectories, running = piece
                if isinstance(policy.agent, MixtureAgent) and not member:
                    member = first_policies(trajectories)
            ((_, value, length),) = batcher.episodes
    except EnvironmentFault as fault:
        if isinstance(fault.__cause__, DependencyNotInstalled):
            raise UserError(f"'{policy.env_name}' cannot draw: {fault.__cause__}") from None
        told = explained(fault, policy.env_name)
        if told is fault:
            raise
        raise told from None
    return value, length, member


class _Watched(VecEnv):
    """One environment that is shown after its reset and after each step, until its episode ends."""

    def __init__(self, env: VecEnv, number: int, show: Show) -> None:
        """Watch `env`, which begins from the seed `number`; it is closed with this one."""
        self._env, self._number, self._show = env, number, show
        for name in ("name", "num_envs", "specs", "device", "autoreset", "row_step", "row_reset", "row_seeds"):
            setattr(self, name, getattr(env, name))
        self.env_info, self.raw_reward = env.env_info, env.raw_reward
        self._total, self._steps, self._over = 0.0, 0, False

    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: DictTensor | None = None,
    ) -> None:
        """Begin the episode from the seed that it has in an evaluation."""
        self._env.reset(out, rows, None if seeds is None else [self._number], env_info)
        if not self._over:
            self._show(self._env, out, 0.0, 0)

    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step and show it."""
        self._env.step(action, out, rows)
        if self._over:
            return
        self._total += float(out.reward[0] if out.raw_reward_np is None else out.raw_reward_np[0])
        self._steps += 1
        self._over = bool(out.terminated[0] | out.truncated[0])
        self._show(self._env, out, self._total, self._steps)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


class _Place:
    """Where videos go: into one file, or into a folder by name."""

    def __init__(self, path: Path, episodes: int) -> None:
        """Make the folder.

        Raises:
            UserError: it is no place for so many videos.
        """
        if path.suffix.lower() in _OTHER_FORMATS:
            raise UserError(f"--video: got '{path.suffix}', expected a file .mp4, or a folder")
        path = expanded(path)
        try:
            self._file = path if path.suffix.lower() == ".mp4" and not path.is_dir() else None
            if self._file is None:
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--video: cannot make the folder '{path}': {reason_of(error)}") from error
        self.folder = path if self._file is None else path.parent
        if self._file is None:
            return
        if episodes > 1:
            raise UserError(f"--video: got one file for {episodes} episodes, expected a folder: --video '{path.stem}'")
        check_output(self._file, "--video")

    def of(self, number: int, value: float) -> Path:
        """Return the file of an episode, by the environment's seed and its return."""
        return self._file or self.folder / f"seed-{number}-return-{value:.2f}.mp4"

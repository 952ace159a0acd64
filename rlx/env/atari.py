"""Atari games through ALE's own vector environment: emulated, preprocessed and stacked by its threads."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from rlx.data.spec import EnvSpecs
from rlx.env.actions import ActionReader
from rlx.env.fault import environment_fault, raised
from rlx.env.native_gym_vec_env import NativeGymVecEnv
from rlx.env.signature import check_keywords
from rlx.errors import ConfigError, did_you_mean
from rlx.validate import Range

# ALE ends the whole process where it is asked for a game that has no mode for a single player.
_FOR_TWO = frozenset({"combat", "joust", "maze_craze", "warlords"})

# Keywords of `AtariVectorEnv` that would break what a VecEnv promises, and what to do instead.
_REFUSED = {
    "batch_size": "all rows are stepped together",
    "life_loss_info": "it reports the end of an episode that goes on",
    "reward_clipping": "set env.clip_reward: it clips what the agent learns from, and leaves episode returns whole",
}


def make_atari(
    num_envs: Annotated[int, Range(1)],
    *,
    game: str,
    autoreset: Literal["next_step", "same_step"],
    num_threads: Annotated[int, Range(0)],
    frameskip: Annotated[int, Range(1)],
    stack_num: Annotated[int, Range(1)],
    noop_max: Annotated[int, Range(0)],
    repeat_action_probability: Annotated[float, Range(0, 1)],
    clip_reward: bool,
    max_num_frames_per_episode: Annotated[int, Range(1)],
    kwargs: Mapping[str, Any],
) -> "AtariVecEnv":
    """Build an Atari game, preprocessed as is usual: 84 x 84 grey, frames skipped, pooled and stacked.

    Observations are uint8 `[stack_num, 84, 84]`, the newest frame last. The games come with the package `ale-py`.

    Args:
        num_envs: number of environments, >= 1.
        game: `Pong`, `SpaceInvaders` (or `space_invaders`).
        autoreset: `next_step` or `same_step`, see `Autoreset`.
        num_threads: threads that emulate, of each worker; 1 where there are as many workers as cores; 0 for as many as
            there are cores.
        frameskip: frames that one action lasts, usually 4; an observation is the maximum of the last two.
        stack_num: frames in one observation, usually 4.
        noop_max: most frames of doing nothing with which an episode begins, usually 30.
        repeat_action_probability: of the console repeating the last action instead: 0 in most published results up to
            2018, 0.25 in `ALE/...-v5` (Machado et al. 2018).
        clip_reward: clip what the agent learns from to [-1, 1]. Episode returns are counted without it.
        max_num_frames_per_episode: frames (not steps) after which an episode is truncated; 108000 are half an hour.
        kwargs: other keyword arguments of `ale_py.AtariVectorEnv`: `grayscale`, `img_height`, `episodic_life`, ...

    Raises:
        ConfigError: no such game or keyword, or ale-py is not installed.
        EnvironmentFault: ALE refused to build it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from ale_py.vector_env import AtariVectorEnv
        except ImportError as error:
            package = (error.name or "ale_py").partition(".")[0]
            raise ConfigError(
                f"env: Atari games need the package '{package}', which is not installed; "
                "install it with: pip install 'rlx[atari]'"
            ) from None
    rom = find_game(game)
    keywords = dict(kwargs)
    for name, why in _REFUSED.items():
        if name in keywords:
            raise ConfigError(f"env.kwargs.{name}: rlx's Atari does not take it: {why}")
    check_keywords(AtariVectorEnv, keywords, "env.kwargs", given=2)
    given = {
        "autoreset_mode": "NextStep" if autoreset == "next_step" else "SameStep",
        "num_threads": num_threads,
        "frameskip": frameskip,
        "stack_num": stack_num,
        "noop_max": noop_max,
        "repeat_action_probability": repeat_action_probability,
        "max_num_frames_per_episode": max_num_frames_per_episode,
    }
    twice = sorted(given.keys() & keywords.keys())
    if twice:
        raise ConfigError(f"env.kwargs.{twice[0]}: it has a key of its own, env.{twice[0].removesuffix('_mode')}")
    try:
        env = AtariVectorEnv(rom, num_envs, reward_clipping=False, **given, **keywords)
    except Exception as error:
        raise environment_fault(game, raised("its constructor", error)) from error
    return AtariVecEnv(env, name=game, clip_reward=clip_reward)


def _step(ale: Any, paddle_strength: Any, actions: Any) -> Any:
    """Do what `AtariVectorEnv.step` does, less its checks of what an `ActionReader` made."""
    ale.send(actions, paddle_strength)
    return ale.recv()


def find_game(game: str) -> str:
    """Return ALE's own name of a game: `SpaceInvaders` is `space_invaders`.

    Raises:
        ConfigError: there is no such game; names the nearest.
    """
    from ale_py import roms

    names = {rom.title().replace("_", ""): rom for rom in roms.get_all_rom_ids() if rom not in _FOR_TWO}
    by_letters = {name.lower(): rom for name, rom in names.items()}
    rom = by_letters.get(game.replace("_", "").lower())
    if rom is not None:
        return rom
    # A name as Gymnasium has it, ALE/Pong-v5 or PongNoFrameskip-v4, is near to none: ask for what it begins with.
    bare = game.rpartition("/")[2].partition("-v")[0].removesuffix("NoFrameskip")
    raise ConfigError(
        f"env.game: there is no Atari game '{game}'.{did_you_mean(bare, names)} There are: {', '.join(sorted(names))}"
    )


class AtariVecEnv(NativeGymVecEnv):
    """ALE's vector environment as a VecEnv: each row takes its own seed, and frames are declared as stacked.

    Args:
        env: an `ale_py.AtariVectorEnv`; it is closed with this one.
        name: what messages call the environment: the game.
        clip_reward: whether rewards are clipped to [-1, 1]; raw rewards are not.
    """

    def __init__(self, env: Any, *, name: str, clip_reward: bool) -> None:
        super().__init__(env, name=name, clip_reward=clip_reward)
        self.row_seeds = True
        self._reader = ActionReader(env.single_action_space, env.num_envs, strict=True)
        if not env.continuous:
            self._env_step = partial(_step, env.ale, np.ones(env.num_envs, np.float32))
        observation = {
            key: dataclasses.replace(spec, frame_stack_axis=0) for key, spec in self.specs.observation.items()
        }
        self.specs = EnvSpecs(observation=observation, action=self.specs.action)

    def _seed_argument(self, rows: Sequence[int] | None, seeds: Sequence[int | None] | None) -> Any:
        if seeds is None:
            return None
        given = [seed for seed in seeds if seed is not None]
        self._seed = given[0] if given else self._seed
        return np.array([-1 if seed is None else seed for seed in seeds])  # -1: go on from where the row's seed led

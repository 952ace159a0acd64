"""EnvPool: environments in C++, stepped together by the threads of one pool."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlx.data.spec import EnvSpecs, Spec
from rlx.env.factory import check_numbers
from rlx.env.fault import environment_fault, raised
from rlx.env.native_gym_vec_env import NativeGymVecEnv
from rlx.errors import ConfigError, RlxError, did_you_mean
from rlx.validate import Range

# Keywords of `envpool.make` that have a key of their own or would break what a VecEnv promises.
_REFUSED = {
    "num_envs": "set batcher.envs_per_worker",
    "batch_size": "all rows are stepped together",
    "num_threads": "set env.num_threads",
    "max_episode_steps": "set env.max_episode_steps",
    "max_num_players": "a row has one player",
    "seed": "rows are seeded by rlx",
    "env_seed": "rows are seeded by rlx",
    "reward_clip": "set env.clip_reward: it clips what the agent learns from, and leaves episode returns whole",
    "gym_reset_return_info": "rlx reads no other form",
}
# Counts and sizes for which EnvPool takes 0 and less at its word, where it does not end the whole process.
_COUNTS = frozenset(
    (
        *("action_history_len", "agent_view_size", "frame_skip", "frame_stack", "height", "img_height", "img_width"),
        *("mission_bytes", "noop_max", "obs_history_len", "observation_vehicles_count", "physics_steps_per_frame"),
        *("policy_frequency", "simulation_frequency", "size", "stack_num", "width"),
    )
)
# Those that `envpool.make` takes for itself, before the environment's own.
_DRAWING = ("from_pixels", "render_camera_id", "render_height", "render_mode", "render_width")


def make_envpool(
    id: str,
    num_envs: Annotated[int, Range(1)],
    *,
    num_threads: Annotated[int, Range(0)],
    kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: Annotated[int, Range(1)] | None = None,
    clip_reward: bool = False,
    reward_scale: float = 1.0,
) -> "EnvPoolVecEnv":
    """Build a pool of EnvPool's environments.

    Args:
        id: what EnvPool has registered, `CartPole-v1`.
        num_envs: number of environments, >= 1.
        num_threads: threads that step them, of each worker; 1 where there are as many workers as cores; 0 for as many
            as there are cores.
        kwargs: other keyword arguments of `envpool.make`, those of the environment.
        max_episode_steps: steps after which an episode is truncated; None for what is registered.
        clip_reward: clip what the agent learns from to [-1, 1]. Episode returns are counted without it.
        reward_scale: what rewards are multiplied with. Episode returns are counted without it.

    Raises:
        ConfigError: no such id or keyword, or EnvPool is not installed.
        UnsupportedSpaceError: rlx has no layout for one of the spaces.
        EnvironmentFault: EnvPool refused to build it.
    """
    check_numbers(num_envs, max_episode_steps, reward_scale)
    envpool = _import_envpool()
    known: list[str] = envpool.list_all_envs()
    if id not in known:
        raise ConfigError(f"env.id: EnvPool has no environment '{id}'.{did_you_mean(id, known)}")
    keywords = dict(kwargs or {})
    for name, why in _REFUSED.items():
        if name in keywords:
            raise ConfigError(f"env.kwargs.{name}: rlx's EnvPool does not take it: {why}")
    if max_episode_steps is not None:
        keywords["max_episode_steps"] = max_episode_steps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its bounds lose precision in float32
            spec = envpool.make_spec(id)
            _check_players(spec, id)
            _check_keywords(spec, keywords)
            pool = SeededPool(envpool, id, num_envs, num_threads=num_threads, **keywords)
    except RlxError:
        raise
    except Exception as error:
        raise environment_fault(id, raised("its constructor", error)) from error
    return EnvPoolVecEnv(pool, name=id, clip_reward=clip_reward, reward_scale=reward_scale)


class SeededPool(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A pool that takes seeds when it is reset.

    EnvPool's own seeds are fixed when a pool is built, and 42 where none are given. So this one is built by the first
    reset, and anew by each that brings seeds.
    """

    def __init__(self, envpool: ModuleType, id: str, num_envs: int, **keywords: Any) -> None:
        """Find out what the environment shows and takes; no pool is built.

        Args:
            envpool: the package.
            id: what EnvPool has registered.
            num_envs: number of environments.
            keywords: others of `envpool.make`.
        """
        self._envpool, self._id, self._keywords = envpool, id, keywords
        spec = envpool.make_spec(id, num_envs=num_envs, **keywords)
        self.num_envs = num_envs
        self.stack_num: int = getattr(spec.config, "stack_num", 1)
        self.single_observation_space = _unbounded(spec.gymnasium_observation_space)
        self.single_action_space = spec.gymnasium_action_space
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = keywords.get("render_mode")
        self._pool: Any = None
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._order = _order(spec)

    @property
    def pool(self) -> Any:
        """Return EnvPool's own object, None before the first reset."""
        return self._pool

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every row, seeded where `seed` has one for each of them."""
        del options
        if seed is not None or self._pool is None:
            self._pool = self._build(seed)
        return self._pool.reset()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Do one step in every row; one that ended begins its next episode instead.

        The info is empty. Where an observation is one array, this is the pool's own `step` without the names that it
        gives to all else that it tells, which take a twentieth of the time of 256 CartPoles.
        """
        if self._order is None:
            return *self._pool.step(actions)[:4], {}
        places, dtype = self._order
        self._pool._send([self._ids, self._ids, actions.astype(dtype, order="C")])
        told = self._pool._recv()
        obs, reward, done, truncated = (told[place] for place in places)
        return obs, reward, done & ~truncated, truncated, {}

    def render(self) -> Any:
        """Return a picture of every row, or None where none are drawn."""
        if self.render_mode is None or self._pool is None:
            return None
        return self._pool.render(np.arange(self.num_envs))

    def close(self, **_: Any) -> None:
        """End the pool's threads; harmless when called again."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _build(self, seeds: Any) -> Any:
        self.close()
        if seeds is None:
            seeds = np.random.SeedSequence().generate_state(self.num_envs).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pool = self._envpool.make(
                self._id,
                env_type="gymnasium",
                num_envs=self.num_envs,
                seed=[seed % 2**31 for seed in seeds],
                **self._keywords,
            )
            # Made and kept at the first call, with a warning for bounds that lose precision in float32.
            _ = pool.observation_space, pool.action_space
        mode = pool.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.NEXT_STEP:
            raise ConfigError(f"environment '{self._id}': EnvPool's autoreset mode is {mode!r}; expected NEXT_STEP")
        return pool


class EnvPoolVecEnv(NativeGymVecEnv):
    """A pool of EnvPool's as a VecEnv: each row takes its own seed, and stacked frames are declared as such.

    Args:
        pool: the pool; it is closed with this one.
        name: what messages call the environment: its id.
        clip_reward: whether rewards are clipped to [-1, 1], before they are scaled; raw rewards are not.
        reward_scale: what rewards are multiplied with.
    """

    def __init__(self, pool: SeededPool, *, name: str, clip_reward: bool, reward_scale: float) -> None:
        super().__init__(pool, name=name, clip_reward=clip_reward, reward_scale=reward_scale)
        self.row_seeds = True
        observation = {
            key: dataclasses.replace(spec, frame_stack_axis=0) if _is_stack(spec, pool.stack_num) else spec
            for key, spec in self.specs.observation.items()
        }
        self.specs = EnvSpecs(observation=observation, action=self.specs.action)

    def _seed_argument(self, rows: Sequence[int] | None, seeds: Sequence[int | None] | None) -> Any:
        given = [seed for seed in seeds or () if seed is not None]
        if not given:
            return None
        if len(given) != self.num_envs:
            raise ConfigError(
                f"environment '{self.name}': got seeds for {len(given)} of {self.num_envs} rows; "
                "EnvPool takes one for each row or none"
            )
        self._seed = given[0]
        return given


def _import_envpool() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import envpool
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"env: env=envpool needs the package '{error.name or 'envpool'}', which is not installed; "
            "install it with: pip install 'rlx[envpool]'"
        ) from None
    return cast(ModuleType, envpool)


def _order(spec: Any) -> tuple[list[int], Any] | None:
    """Return the places of observation, reward, end and truncation in what a pool tells, and the type of its actions.

    None where an observation or an action is more than one array.
    """
    told, taken = list(spec._state_keys), list(spec._action_keys)
    if "obs" not in told or taken[:-1] != ["env_id", "players.env_id"]:
        return None
    return [told.index(key) for key in ("obs", "reward", "done", "trunc")], spec._action_spec[-1][0]


def _check_players(spec: Any, id: str) -> None:
    players: int = spec.config.max_num_players
    if players > 1:
        raise ConfigError(
            f"env.id: '{id}' has {players} players, each with observations and rewards of its own; expected one "
            "with a single player, since a row has one"
        )


def _check_keywords(spec: Any, keywords: Mapping[str, Any]) -> None:
    names = sorted({*spec.config._fields, *_DRAWING} - _REFUSED.keys())
    for name, value in keywords.items():
        if name not in names and name not in _REFUSED:
            raise ConfigError(
                f"env.kwargs.{name}: there is no such key.{did_you_mean(name, names)} There are: {', '.join(names)}"
            )
        if name in _COUNTS and isinstance(value, int | float) and value < 1:
            raise ConfigError(f"env.kwargs.{name}: got {value}; expected an integer >= 1")


def _unbounded(given: Any) -> Any:
    """Return a space of observations without the bounds that stand for none.

    DeepMind Control's are given from the least positive number to the greatest, and are below and above zero.
    """
    space: Any = given  # Gymnasium's spaces are generic since 1.2: their parameters stay out of this
    if isinstance(given, spaces.Dict):
        return spaces.Dict({key: _unbounded(part) for key, part in space.spaces.items()})
    if not isinstance(given, spaces.Box) or space.dtype.kind != "f":
        return space
    limits = np.finfo(space.dtype)
    low = np.where((space.low == limits.tiny) | (space.low == limits.min), -np.inf, space.low)
    high = np.where(space.high == limits.max, np.inf, space.high)
    return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), space.shape, space.dtype.type)


def _is_stack(spec: Spec, stack_num: int) -> bool:
    return spec.dtype == torch.uint8 and len(spec.shape) == 3 and spec.shape[0] == stack_num > 1

"""`make`: from the keys of conf/env/*.yaml to a VecEnv."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from rlx.env.fault import environment_fault, raised
from rlx.env.gym_vec_env import GymEnv, GymVecEnv
from rlx.env.info_mask import InfoMask
from rlx.env.mujoco_warnings import hear_mujoco
from rlx.env.native_gym_vec_env import NativeGymVecEnv
from rlx.env.raw_reward import RawReward
from rlx.env.registry import find, missing_dependency
from rlx.env.signature import check_keywords
from rlx.env.vec_env import VecEnv
from rlx.env.wrappers import Wrap, find_wrappers
from rlx.errors import ConfigError, RlxError, did_you_mean
from rlx.validate import Range

Vectorization = Literal["per_instance", "native"]


def make(
    id: str,
    num_envs: Annotated[int, Range(1)],
    *,
    vectorization: Vectorization = "per_instance",
    kwargs: dict[str, Any] | None = None,
    wrappers: list[Any] | None = None,
    max_episode_steps: Annotated[int, Range(1)] | None = None,
    reward_scale: float = 1.0,
    action_mask: bool = False,
) -> VecEnv:
    """Build environments that are stepped together.

    Args:
        id: what Gymnasium has registered, `CartPole-v1`; or `package.module:Name-v0`, which imports the module first.
        num_envs: number of environments, >= 1.
        vectorization: `per_instance` for one instance a row; `native` for an environment that Gymnasium registers
            with a vector entry point, usually several times as fast.
        kwargs: keyword arguments of the environment's constructor.
        wrappers: Gymnasium wrappers of each instance, the innermost first: a name, or `{name: keyword arguments}`.
            Names are those of `gymnasium.wrappers`, or dotted paths. Only for `per_instance`.
        max_episode_steps: steps after which an episode is truncated; None for what is registered.
        reward_scale: what rewards are multiplied with. Episode returns are counted without it, and without wrappers.
        action_mask: whether to take `info["action_mask"]`, which actions are allowed now, into the observation, as its
            key `action_mask`; an observation that is no Dict becomes the key `observation`.

    Raises:
        ConfigError: an id, a keyword or a wrapper that does not exist, or a package that is not installed.
        UnsupportedSpaceError: rlx has no layout for one of the spaces.
        EnvironmentFault: the environment's constructor raised.
    """
    check_numbers(num_envs, max_episode_steps, reward_scale)
    entry = find(id)
    keywords = dict(kwargs or {})
    if vectorization == "native":
        if wrappers:
            raise ConfigError("env.wrappers: got wrappers and env.vectorization=native; they need per_instance")
        env = _make_native(id, entry, num_envs, keywords, max_episode_steps)
        return NativeGymVecEnv(env, name=id, reward_scale=reward_scale, action_mask=action_mask)
    if vectorization != "per_instance":
        choices = ("per_instance", "native")
        raise ConfigError(
            f"env.vectorization: got {vectorization!r}; expected one of {', '.join(choices)}."
            f"{did_you_mean(str(vectorization), choices)}"
        )
    make_env = _instance_maker(id, entry, keywords, find_wrappers(wrappers), max_episode_steps, action_mask)
    return GymVecEnv(make_env, num_envs, name=id, reward_scale=reward_scale)


def check_numbers(num_envs: int, max_episode_steps: int | None, reward_scale: float) -> None:
    """Refuse numbers out of range, by key.

    Raises:
        ConfigError: one is.
    """
    if num_envs < 1:
        raise ConfigError(f"env.num_envs: got {num_envs}; expected an integer >= 1")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ConfigError(f"env.max_episode_steps: got {max_episode_steps}; expected an integer >= 1, or null")
    if not math.isfinite(reward_scale) or reward_scale == 0:
        raise ConfigError(f"env.reward_scale: got {reward_scale}; expected a finite number other than 0")


def _instance_maker(
    env_id: str,
    entry: EnvSpec,
    kwargs: dict[str, Any],
    wraps: list[tuple[str, Wrap]],
    max_episode_steps: int | None,
    action_mask: bool,
) -> Callable[[], GymEnv]:
    """Return what builds one row's environment.

    Gymnasium's own time limit stays. Its two checking wrappers go: rlx checks observations while it writes them and
    resets before it steps, and the wrappers cost as much as a small environment's step.
    """
    if entry.entry_point is None:
        raise ConfigError(f"env.vectorization: '{env_id}' exists as a native vector environment only; expected native")
    _check_kwargs(env_id, entry, entry.entry_point, kwargs)
    entry = copy.copy(entry)
    entry.order_enforce = False

    def make_env() -> GymEnv:
        try:
            env: GymEnv = gymnasium.make(entry, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
        except gymnasium.error.DependencyNotInstalled as error:
            raise missing_dependency(env_id, entry, error) from None
        return wrapped(env, wraps, env_id, action_mask=action_mask)

    return make_env


def wrapped(env: GymEnv, wraps: list[tuple[str, Wrap]], env_id: str, *, action_mask: bool) -> GymEnv:
    """Return an instance within the user's wrappers, beneath which the bare environment's reward is kept.

    Raises:
        EnvironmentFault: a wrapper raised; the instance is closed.
        ConfigError: a wrapper needs a package that is not installed; or the info's mask was asked for, and the
            observation has one already or the actions cannot have one.
    """
    if wraps:
        env = RawReward(env)
    for name, wrap in wraps:
        try:
            env = wrap(env)
        except RlxError:  # of rlx's own wrappers, which name the key
            env.close()
            raise
        except gymnasium.error.DependencyNotInstalled as error:
            env.close()
            raise ConfigError(f"env.wrappers: '{name}' needs a package that is not installed: {error}") from None
        except Exception as error:
            env.close()
            raise environment_fault(env_id, raised(f"the wrapper '{name}'", error)) from error
    if not action_mask:
        return env
    try:
        return InfoMask(env, env_id)
    except RlxError:
        env.close()
        raise


def _make_native(
    env_id: str, entry: EnvSpec, num_envs: int, kwargs: dict[str, Any], max_episode_steps: int | None
) -> "gymnasium.vector.VectorEnv[Any, Any, Any]":
    if entry.vector_entry_point is None:
        raise ConfigError(
            f"env.vectorization: '{env_id}' has no native vector environment; expected per_instance. "
            f"There are: {', '.join(_native_ids())}"
        )
    if max_episode_steps is not None:
        kwargs = {**kwargs, "max_episode_steps": max_episode_steps}
    _check_kwargs(env_id, entry, entry.vector_entry_point, kwargs)
    try:
        with warnings.catch_warnings():
            # A mode that is missing or unknown is an error here, and the adapter raises it.
            warnings.filterwarnings("ignore", message=".*[Aa]utoreset", category=UserWarning)
            return gymnasium.make_vec(entry, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    except Exception as error:
        raise environment_fault(env_id, raised("its constructor", error)) from error


def _native_ids() -> list[str]:
    return [name for name, entry in gymnasium.registry.items() if entry.vector_entry_point is not None]


def _check_kwargs(env_id: str, entry: EnvSpec, creator: Any, kwargs: dict[str, Any]) -> None:
    """Load what builds the environment, and hold the keyword arguments against its signature."""
    if isinstance(creator, str):
        try:
            with warnings.catch_warnings():
                # Where warnings are errors, what SWIG's types warn of would end the process while Box2D is imported.
                warnings.filterwarnings("ignore", message="builtin type [Ss]wig", category=DeprecationWarning)
                creator = load_env_creator(creator)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            if creator.startswith("gymnasium."):
                raise missing_dependency(env_id, entry, error) from None
            raise environment_fault(env_id, raised("importing it", error)) from error
        except Exception as error:
            raise environment_fault(env_id, raised("importing it", error)) from error
    hear_mujoco()
    check_keywords(creator, kwargs, "env.kwargs", allowed=("render_mode",))

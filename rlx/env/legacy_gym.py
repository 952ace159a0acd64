"""Environments of the old package `gym`, in any of the forms that its calls have had, as Gymnasium's."""

import contextlib
import io
import warnings
from types import ModuleType
from typing import Annotated, Any, cast

import gymnasium
from gymnasium import spaces

from rlx.env.factory import GymEnv, GymVecEnv, check_numbers, wrapped
from rlx.env.fault import environment_fault, raised
from rlx.env.wrappers import find_wrappers
from rlx.errors import ConfigError, UnsupportedSpaceError, did_you_mean
from rlx.validate import Range


def make_legacy_gym(
    id: str,
    num_envs: Annotated[int, Range(1)],
    *,
    kwargs: dict[str, Any] | None = None,
    wrappers: list[Any] | None = None,
    max_episode_steps: Annotated[int, Range(1)] | None = None,
    reward_scale: float = 1.0,
    action_mask: bool = False,
) -> GymVecEnv:
    """Build environments that are registered with the old `gym`, one instance a row.

    Args:
        id: what gym has registered, `CartPole-v1`; or `package.module:Name-v0`, which imports the module first.
        num_envs: number of environments, >= 1.
        kwargs: keyword arguments of the environment's constructor.
        wrappers: Gymnasium wrappers of each instance, as for `make`.
        max_episode_steps: steps after which an episode is truncated; None for what is registered.
        reward_scale: what rewards are multiplied with. Episode returns are counted without it, and without wrappers.
        action_mask: whether to take `info["action_mask"]` into the observation, as for `make`.

    Raises:
        ConfigError: gym is not installed, or knows no such id.
        UnsupportedSpaceError: rlx has no layout for one of the spaces.
        EnvironmentFault: the environment's constructor raised.
    """
    check_numbers(num_envs, max_episode_steps, reward_scale)
    gym, wraps = import_gym(), find_wrappers(wrappers)
    keywords = dict(kwargs or {})
    if max_episode_steps is not None:
        keywords["max_episode_steps"] = max_episode_steps

    def make_env() -> GymEnv:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of its own age
            try:
                # Its checker stumbles over NumPy 2; rlx checks what environments answer itself.
                env = gym.make(id, disable_env_checker=True, **keywords)
            except gym.error.DependencyNotInstalled as error:
                raise ConfigError(f"env.id: '{id}' needs a package that is not installed; gym says: {error}") from None
            except (gym.error.Error, ModuleNotFoundError) as error:
                raise ConfigError(f"env.id: gym has no environment '{id}'.{_hint(gym, id, error)}") from None
            except Exception as error:
                raise environment_fault(id, raised("its constructor", error)) from error
        return wrapped(LegacyGymEnv(env, gym), wraps, id, action_mask=action_mask)

    return GymVecEnv(make_env, num_envs, name=id, reward_scale=reward_scale)


class LegacyGymEnv(gymnasium.Env[Any, Any]):
    """An environment of gym's as one of Gymnasium's.

    `step` may give four values (up to 0.25: one flag for both ends, told apart by `TimeLimit.truncated` in the info) or
    five; `reset` an observation or also an info. The seed goes to `reset`, or, before 0.22, to `seed`.
    """

    def __init__(self, env: Any, gym: ModuleType) -> None:
        """Take over an environment.

        Args:
            env: made by `gym.make`; closed with this one.
            gym: the package.

        Raises:
            UnsupportedSpaceError: a space has no counterpart.
        """
        self.env = env
        numbers = [int(part) for part in str(gym.__version__).split(".")[:2]]
        self._seeds_at_reset = numbers >= [0, 22]
        self._renders_by_mode = numbers < [0, 26] and getattr(env, "render_mode", None) is None
        self.observation_space = convert_space(env.observation_space)
        self.action_space = convert_space(env.action_space)
        self.metadata = dict(getattr(env, "metadata", {}))
        self.render_mode = None if self._renders_by_mode else getattr(env, "render_mode", None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; options reach environments whose `reset` takes them (0.26)."""
        keywords: dict[str, Any] = {}
        if seed is not None and self._seeds_at_reset:
            keywords["seed"] = seed
        elif seed is not None:
            self.env.seed(seed)
        if options is not None:
            keywords["options"] = options
        answer: Any = self.env.reset(**keywords)
        # An observation may be a tuple of two itself, but hardly one whose second part is a dictionary.
        parts = cast("tuple[Any, ...]", answer) if isinstance(answer, tuple) else ()
        if len(parts) == 2 and isinstance(parts[1], dict):
            return parts[0], cast("dict[str, Any]", parts[1])
        return cast(Any, answer), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do one step."""
        answer = self.env.step(action)
        if len(answer) != 4:
            return answer
        observation, reward, done, info = answer
        truncated = bool(done) and bool(info.get("TimeLimit.truncated", False))
        return observation, reward, bool(done) and not truncated, truncated, info

    def render(self) -> Any:
        """Return a picture of the environment, or None; of the pictures that gym 0.25 collects, the newest."""
        picture: Any = self.env.render(mode="rgb_array") if self._renders_by_mode else self.env.render()
        if isinstance(picture, list):
            return cast("list[Any]", picture)[-1] if picture else None
        return picture

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def import_gym() -> ModuleType:
    """Return the package `gym`, without the notice that it prints.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import gym  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "gym":
            raise
        raise ConfigError(
            "env: env=legacy_gym needs the package 'gym', which is not installed; install it with: "
            "pip install 'rlx[gym]'. Gymnasium's environments need none of that: env=gym env.id=ID"
        ) from None
    return gym  # pyright: ignore[reportUnknownVariableType]


def convert_space(space: Any) -> spaces.Space[Any]:
    """Return Gymnasium's counterpart of a space of gym's.

    Raises:
        UnsupportedSpaceError: there is none that rlx could store.
    """
    kind = type(space).__name__
    if kind == "Box":
        return spaces.Box(space.low, space.high, space.shape, space.dtype)
    if kind == "Discrete":
        return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(space.nvec)
    if kind == "MultiBinary":
        return spaces.MultiBinary(space.n)
    if kind == "Dict":
        return spaces.Dict({key: convert_space(part) for key, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([convert_space(part) for part in space.spaces])
    raise UnsupportedSpaceError(
        f"gym's space {space!r} is not supported; expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    )


def _hint(gym: Any, env_id: str, error: Exception) -> str:
    """Return the nearest id, or what gym says."""
    registry: Any = gym.envs.registry
    known: list[str] = [spec.id for spec in (registry.all() if hasattr(registry, "all") else registry.values())]
    return did_you_mean(env_id, known) or f" It says: {error}"

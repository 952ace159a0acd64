"""What a Gymnasium environment is in the middle of, where it can tell: for runs that are resumed.

Gymnasium has no call for it. An environment of a user's own may have two methods, `get_state() -> dict` and
`set_state(state)`: all that decides its future, its generator included (see `VecEnv.get_state`).
"""

from collections.abc import Mapping
from copy import copy
from typing import Any, cast

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from rlx.env.raw_reward import RawReward

_STATELESS = (OrderEnforcing, PassiveEnvChecker, RawReward)  # none that would matter between two steps
_CARTPOLE = ("state", "steps", "prev_done", "steps_beyond_terminated", "low", "high")


def instance_tells(env: "gymnasium.Env[Any, Any]") -> bool:
    """Return whether an instance has a state to give, and its wrappers none that would be missing.

    Args:
        env: with its wrappers.
    """
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        if not isinstance(layer, (TimeLimit, *_STATELESS)):
            return False
        layer = cast(Any, layer).env
    return _tells(layer)


def instance_state(env: "gymnasium.Env[Any, Any]") -> dict[str, Any]:
    """Return an instance's state, and its time limits'."""
    limits = [limit._elapsed_steps for limit in _limits(env)]
    return {"env": cast(Any, env.unwrapped).get_state(), "elapsed": limits}


def set_instance_state(env: "gymnasium.Env[Any, Any]", state: Mapping[str, Any]) -> None:
    """Bring an instance to where `instance_state` found another one."""
    for limit, elapsed in zip(_limits(env), state["elapsed"], strict=True):
        limit._elapsed_steps = elapsed
    cast(Any, env.unwrapped).set_state(state["env"])


def native_tells(env: Any) -> bool:
    """Return whether a vector environment has a state to give: by itself, or because it is Gymnasium's own CartPole."""
    return _tells(env) or type(env).__module__ == "gymnasium.envs.classic_control.cartpole"


def native_state(env: Any) -> dict[str, Any]:
    """Return the state of a vector environment."""
    if _tells(env):
        return env.get_state()
    return {**{name: copy(getattr(env, name)) for name in _CARTPOLE}, "generator": env.np_random.bit_generator.state}


def set_native_state(env: Any, state: Mapping[str, Any]) -> None:
    """Bring a vector environment to where `native_state` found another one."""
    if _tells(env):
        env.set_state(state)
        return
    for name in _CARTPOLE:
        setattr(env, name, copy(state[name]))
    env.np_random.bit_generator.state = state["generator"]


def _limits(env: Any) -> list[Any]:
    found: list[Any] = []
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TimeLimit):
            found.append(layer)
        layer = cast(Any, layer).env
    return found


def _tells(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))

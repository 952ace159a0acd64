"""What a Gymnasium environment with goals says of them: Gymnasium-Robotics' `GoalEnv`, by its methods alone.

Its observation is a Dict of `observation`, `achieved_goal` and `desired_goal`; `compute_reward(achieved_goal,
desired_goal, info)` and `compute_terminated(achieved_goal, desired_goal, info)` say what a step was worth and whether
it ended the episode. Nothing need be derived from a common class.
"""

from collections.abc import Callable
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.env.fault import environment_fault, raised
from rlx.env.spaces import leaves
from rlx.errors import ConfigError

Array = NDArray[Any]

_METHODS = ("compute_reward", "compute_terminated")


def goal_outcome(env: gymnasium.Env[Any, Any], achieved: Tensor, desired: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the rewards `[N]` float32 and terminations `[N]` bool that an environment gives for goals.

    No `info` is kept of past steps, so that `{}` is passed. A method that takes one pair at a time is called N times.

    Args:
        env: the environment, wrappers included.
        achieved: `[N, ...]`, as stored.
        desired: `[N, ...]`, as stored.
        name: what messages call it.

    Raises:
        ConfigError: it lacks one of the two methods.
        EnvironmentFault: a method raised, or did not answer with one number.
    """
    missing = [method for method in _METHODS if not _has(env, method)]
    if missing:
        raise ConfigError(
            f"environment '{name}' has no {' and no '.join(missing)}; expected both {' and '.join(_METHODS)}, of "
            "(achieved_goal, desired_goal, info), as Gymnasium-Robotics' GoalEnv has them"
        )
    only = leaves(cast(Any, env.observation_space)["achieved_goal"], "obs/achieved_goal")[0]
    pair = tuple(goal.numpy().astype(only.dtype) + np.asarray(only.start, only.dtype) for goal in (achieved, desired))
    found: list[Array] = []
    for method in _METHODS:
        try:
            found.append(_each(env.get_wrapper_attr(method), *pair))
        except Exception as error:
            raise environment_fault(name, raised(method, error)) from error
    return torch.from_numpy(found[0].astype(np.float32)), torch.from_numpy(found[1].astype(np.bool_))


def _has(env: gymnasium.Env[Any, Any], method: str) -> bool:
    return env.has_wrapper_attr(method) and callable(env.get_wrapper_attr(method))


def _each(method: Callable[[Any, Any, Any], Any], achieved: Array, desired: Array) -> Array:
    """Return what a method says of each pair, `[N]`, by one call where it takes them all at once."""
    # One that takes a single pair, and finds pairs in the place of numbers, may answer with as many as a goal has.
    rows = len(achieved)
    while rows in achieved.shape[1:]:
        rows += 1
    asked = np.arange(rows).clip(max=len(achieved) - 1)
    try:
        answers = np.asarray(method(achieved[asked], desired[asked], {}))
    except Exception:  # as one that takes a single pair would; if it is not that, it says so below
        answers = np.empty(0)
    if answers.shape == (rows,):
        return answers[: len(achieved)]
    answers = np.asarray([method(one, other, {}) for one, other in zip(achieved, desired, strict=True)])
    if answers.shape != (len(achieved),):
        raise TypeError(f"expected one number for one pair of goals, got {answers.shape[1:]}")
    return answers

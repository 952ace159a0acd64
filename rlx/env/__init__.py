"""Floor 2: the VecEnv contract, its adapters, and the factory that builds them.

Names are imported when they are asked for, so that the contract alone costs no import of Gymnasium.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.env.atari import make_atari
    from rlx.env.batched import BatchedEnv, GoalVecEnv
    from rlx.env.bit_flip import BitFlip
    from rlx.env.envpool import make_envpool
    from rlx.env.errand import Errand
    from rlx.env.factory import make
    from rlx.env.gym_vec_env import GymVecEnv
    from rlx.env.legacy_gym import make_legacy_gym
    from rlx.env.mixed import MixedVecEnv, make_mixed
    from rlx.env.native_gym_vec_env import NativeGymVecEnv
    from rlx.env.point_reach import PointReach
    from rlx.env.registry import list_ids, user_modules
    from rlx.env.select import SelectObservation
    from rlx.env.spaces import to_specs
    from rlx.env.torch_cartpole import TorchCartPole
    from rlx.env.trials import Trials
    from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv

__all__ = [
    "Autoreset",
    "BatchedEnv",
    "BitFlip",
    "Errand",
    "GoalVecEnv",
    "GymVecEnv",
    "MixedVecEnv",
    "NativeGymVecEnv",
    "PointReach",
    "SelectObservation",
    "StepBuffer",
    "TorchCartPole",
    "Trials",
    "VecEnv",
    "list_ids",
    "make",
    "make_atari",
    "make_envpool",
    "make_legacy_gym",
    "make_mixed",
    "to_specs",
    "user_modules",
]

_MODULES = {
    "Autoreset": "vec_env",
    "BatchedEnv": "batched",
    "BitFlip": "bit_flip",
    "Errand": "errand",
    "GoalVecEnv": "batched",
    "GymVecEnv": "gym_vec_env",
    "MixedVecEnv": "mixed",
    "NativeGymVecEnv": "native_gym_vec_env",
    "PointReach": "point_reach",
    "SelectObservation": "select",
    "StepBuffer": "vec_env",
    "TorchCartPole": "torch_cartpole",
    "Trials": "trials",
    "VecEnv": "vec_env",
    "list_ids": "registry",
    "make": "factory",
    "make_atari": "atari",
    "make_envpool": "envpool",
    "make_legacy_gym": "legacy_gym",
    "make_mixed": "mixed",
    "to_specs": "spaces",
    "user_modules": "registry",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)

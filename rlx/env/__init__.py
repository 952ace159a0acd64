"""Floor 2: the VecEnv contract, its adapters, and the factory that builds them."""

from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv

__all__ = ["Autoreset", "StepBuffer", "VecEnv"]

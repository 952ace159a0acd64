"""An environment that cannot be made."""

import gymnasium
from gymnasium import spaces


class Broken(gymnasium.Env):
    """Raises in its constructor."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        raise RuntimeError("no licence")


gymnasium.register("Broken-v0", entry_point=Broken)

"""Tasks of which only a part is seen."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlx.errors import ConfigError


class SelectObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows some numbers of a vector only: CartPole without its velocities is `{keep: [0, 2]}`, a task for a memory.

    From YAML: `env.wrappers=[{rlx.env.SelectObservation: {keep: [0, 2]}}]`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], keep: Sequence[int]) -> None:
        """Wrap an environment that shows a Box of one dimension.

        Args:
            env: the environment.
            keep: places of the numbers that are shown, in this order.

        Raises:
            ConfigError: it shows something else, or has no such place.
        """
        super().__init__(env)
        space: Any = env.observation_space
        if not isinstance(env.observation_space, spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"SelectObservation: expected a Box of one dimension, the environment shows {space}")
        wrong = [place for place in keep if not 0 <= place < space.shape[0]]
        if wrong or not keep:
            raise ConfigError(
                f"SelectObservation.keep: got {list(keep)}, expected places from 0 to {space.shape[0] - 1}"
            )
        self._keep = np.array(keep)
        self.observation_space = spaces.Box(space.low[self._keep], space.high[self._keep], dtype=space.dtype.type)

    def observation(self, observation: Any) -> Any:
        """Return the numbers that are shown."""
        return observation[self._keep]

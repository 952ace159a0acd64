"""Which actions are allowed now, told in Gymnasium's `info`: taken into the observation, where agents look for it."""

from collections.abc import Mapping
from typing import Any, SupportsFloat, cast

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from rlx.data.action_mask import ACTION_MASK, masked_action
from rlx.env.spaces import leaves
from rlx.errors import ConfigError, SpecError, UnsupportedSpaceError

Array = NDArray[Any]


class MaskedSpace:
    """An observation space with the mask in it: the keys of a Dict and `action_mask`; others become `observation`.

    Attributes:
        space: what is shown, a Dict.
        size: length of the mask: the actions of a Discrete space, the sum of those of a MultiDiscrete one.
        name: what messages call the environment.
    """

    def __init__(self, observation_space: Space[Any], action_space: Space[Any], name: str) -> None:
        """Add the mask.

        Raises:
            ConfigError: the observation has one already, or the actions cannot be masked.
        """
        self.name = name
        try:
            action = {leaf.key: leaf.spec for leaf in leaves(action_space, "action")}
            self.size = sum(action[masked_action(action)].nvec)
        except UnsupportedSpaceError as error:
            raise UnsupportedSpaceError(f"environment '{name}': {error}") from None
        except SpecError as error:
            raise ConfigError(f"env.action_mask: '{name}': {error}") from None
        parts: dict[str, Space[Any]] = {"observation": observation_space}
        self._nested = isinstance(observation_space, spaces.Dict)
        if self._nested:
            parts = dict(cast("Mapping[str, Space[Any]]", cast(Any, observation_space).spaces))
        if ACTION_MASK in parts:
            raise ConfigError(
                f"env.action_mask: '{name}' shows '{ACTION_MASK}' in its observation already, and that is used; "
                "expected false"
            )
        self.space = spaces.Dict({**parts, ACTION_MASK: spaces.MultiBinary(self.size)})

    def join(self, observation: Any, mask: Array | None) -> dict[str, Any]:
        """Return an observation, of one environment or of several, with the mask in it; without, where it is None."""
        joined = dict(observation) if self._nested else {"observation": observation}
        return joined if mask is None else {**joined, ACTION_MASK: mask}

    def nothing_told(self, info: Mapping[str, Any]) -> ConfigError:
        """Return the error for an environment whose first info tells no mask."""
        told = ", ".join(f"'{key}'" for key in info if not key.startswith("_")) or "nothing"
        return ConfigError(
            f"env.action_mask: got true, expected false: '{self.name}' does not tell '{ACTION_MASK}' in the info of "
            f"its reset, which holds {told}"
        )


class InfoMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows `info["action_mask"]` in the observation; it is the outermost wrapper, so that any other may provide it.

    A mask is zeros and ones, bool or an integer type: one for each action, or for each choice of a MultiDiscrete space
    after the other. The tuple of masks that `MultiDiscrete.sample` takes is joined. A step that terminates the episode
    need tell none: nothing is left to decide, and zeros are shown.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        """Wrap an environment.

        Args:
            env: whose info holds the mask.
            name: what messages call it.

        Raises:
            ConfigError: its observation has a mask already, or its actions cannot be masked.
        """
        super().__init__(env)
        self._masked = MaskedSpace(env.observation_space, env.action_space, name)
        self.observation_space = self._masked.space
        self._nothing = np.zeros(self._masked.size, np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            ConfigError: the info tells no mask.
        """
        answer: Any = self.env.reset(seed=seed, options=options)
        if not isinstance(answer, tuple) or len(cast("tuple[Any, ...]", answer)) != 2:
            return cast(Any, answer)  # what the adapter will refuse
        observation, info = cast("tuple[Any, Any]", answer)
        mask = _mask(info)
        if mask is None:
            raise self._masked.nothing_told(info)
        return self._masked.join(observation, mask), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Do one step."""
        answer: Any = self.env.step(action)
        if not isinstance(answer, tuple) or len(cast("tuple[Any, ...]", answer)) != 5:
            return cast(Any, answer)
        observation, reward, terminated, truncated, info = cast("tuple[Any, ...]", answer)
        mask = _mask(info)
        if mask is None and terminated:
            mask = self._nothing
        return self._masked.join(observation, mask), reward, terminated, truncated, info


def _mask(info: Mapping[str, Any]) -> Array | None:
    mask = info.get(ACTION_MASK)
    if isinstance(mask, tuple):
        return np.concatenate([np.ravel(part) for part in cast("tuple[Any, ...]", mask)])
    return None if mask is None else np.asarray(mask)

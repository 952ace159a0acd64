"""The bare environment's rewards, read below the user's wrappers."""

from typing import Any, SupportsFloat

import gymnasium


class RawReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds up what the environment below paid since `take` was last called.

    It sits between the environment and the user's wrappers, so that episode returns do not depend on reward wrappers;
    where a wrapper repeats an action, the rewards of all its repeats belong to the one step.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._sum = 0.0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment below and note its reward."""
        answer = self.env.step(action)
        self._sum += float(answer[1])
        return answer

    def take(self) -> float:
        """Return the rewards since the last call, and begin again."""
        total, self._sum = self._sum, 0.0
        return total

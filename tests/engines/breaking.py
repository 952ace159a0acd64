"""An environment that breaks in one place of a run with seed 3 and four environments: the last."""

from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

from rlx.seeding import env_seed


class BreaksLast(CartPoleEnv):
    """CartPole, which raises at the third step where it was seeded as environment 3."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.last, self.count = seed == env_seed(3, 3), 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.count += 1
        if self.last and self.count == 3:
            raise RuntimeError("it is the last one")
        return super().step(action)


gymnasium.register("BreaksLast-v0", BreaksLast, max_episode_steps=500)

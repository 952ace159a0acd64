"""Several episodes of one task as one: what learning to learn trains on."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlx.errors import ConfigError


class Trials(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An episode that is a trial: `num_episodes` episodes of the same task, one after the other.

    An agent with a memory that sees its previous action and reward can find out within a trial what the task is, and do
    better in its later episodes (RL^2, Duan et al. 2016; Wang et al. 2016). The task comes with the trial's reset, as
    `env_info`, and each episode in it begins with the same. Where one ends inside a trial, the next one's first
    observation is what follows, so that its last observation is not shown; the trial terminates with its last episode.

    Observations are `obs` (the environment's) and `begins`, `[1]` int8: 1 where an episode of the trial begins, else 0.
    On the command line: `env.wrappers='[{rlx.env.Trials: {num_episodes: 3}}]'`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], num_episodes: int, same_seed: bool = False) -> None:
        """Wrap an environment.

        Args:
            env: makes the episodes.
            num_episodes: of each trial, >= 1, usually 2 to 10.
            same_seed: reset each episode of a trial with the same seed, drawn for the trial: for environments whose
                task, such as a level, follows from their seed.

        Raises:
            ConfigError: fewer than one episode.
        """
        if num_episodes < 1:
            raise ConfigError(f"Trials.num_episodes: got {num_episodes}, expected 1 or more")
        super().__init__(env)
        self.observation_space = spaces.Dict({"obs": env.observation_space, "begins": spaces.MultiBinary(1)})
        self._num_episodes, self._left = num_episodes, num_episodes
        self._options: dict[str, Any] | None = None
        self._same_seed, self._seed = same_seed, 0
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a trial; `options` hold for all of its episodes."""
        self._left, self._options = self._num_episodes, options
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        if self._same_seed:
            self._seed = seed = int(self._generator.integers(2**31))
        observation, info = self.env.reset(seed=seed, options=options)
        return _shown(observation, True), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Do one step; an episode that ends inside the trial is followed by the next."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = bool(terminated or truncated)
        self._left -= over
        if over and self._left:
            observation, info = self.env.reset(seed=self._seed if self._same_seed else None, options=self._options)
        return _shown(observation, over and self._left > 0), reward, over and not self._left, False, info


def _shown(observation: Any, begins: bool) -> dict[str, Any]:
    return {"obs": observation, "begins": np.array([begins], np.int8)}

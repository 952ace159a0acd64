"""An environment that writes down what happens, agents that look back, and what a row of experience must be."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlx.agent import Agent
from rlx.data import DictTensor, EnvSpecs

ID = "tests.batcher.ledger:Ledger-v0"
VECTOR_ID = "tests.batcher.ledger:LedgerVector-v0"


def episode_length(seed: int, episode: int) -> int:
    """Return how long an episode is: from 1 to 7 steps."""
    return 1 + (3 * episode + seed) % 7


class Ledger(gymnasium.Env[np.ndarray, int]):
    """Shows (seed, episode, step); pays 10 * step + action; even episodes terminate, odd ones are truncated.

    Every fifth episode ends with both flags at once.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, break_at: int = -1, how: str = "raise") -> None:
        self._seed, self._episode, self._step = 0, -1, 0
        self._break_at, self._how, self._calls = break_at, how, 0

    def _seen(self) -> np.ndarray:
        return np.array([self._seed % 1000, self._episode, self._step], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self._seed, self._episode = seed, -1
        self._episode += 1
        self._step = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._calls += 1
        reward = 10.0 * self._step + float(action)
        self._step += 1
        seen = self._seen()
        if self._calls == self._break_at:
            if self._how == "raise":
                raise RuntimeError("the ledger tore")
            if self._how == "die":
                import os

                os._exit(7)
            seen = np.full(3, np.nan, np.float32)
        over = self._step >= episode_length(self._seed % 1000, self._episode)
        both = self._episode % 5 == 4
        return seen, reward, over and (both or self._episode % 2 == 0), over and (both or self._episode % 2 == 1), {}


def make_vector(
    num_envs: int, mode: str = "NextStep", break_at: int = -1, how: str = "raise"
) -> gymnasium.vector.VectorEnv:
    """Return ledgers that Gymnasium resets by itself."""
    return gymnasium.vector.SyncVectorEnv(
        [partial(Ledger, break_at, how)] * num_envs,
        autoreset_mode=gymnasium.vector.AutoresetMode(mode),
        observation_mode="same",
    )


gymnasium.register("Ledger-v0", entry_point=Ledger)
gymnasium.register("LedgerVector-v0", entry_point=Ledger, vector_entry_point=make_vector)


def policy(episode: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return the action that both agents below take."""
    return ((episode + step).nan_to_num() % 2).long()


class Parity(Agent):
    """Stateless, without parameters: acts by what it sees."""

    def __init__(self, specs: EnvSpecs) -> None:
        super().__init__()

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"seen": observation["obs"]}), state

    def act(self, outputs, agent_info, generator):
        seen = outputs["seen"]
        return DictTensor({"action": policy(seen[:, 1], seen[:, 2]), "seen": seen})


class Counter(Parity):
    """Counts the steps of its episode in its state, and puts out all that it saw."""

    inputs = ("obs", "prev_action", "prev_reward", "is_first")

    def initial_state(self, agent_info, batch_size):
        return DictTensor({"count": torch.zeros(batch_size)})

    def forward(self, observation, state, agent_info, taken=None):
        fields = {key: observation[key] for key in ("prev_action", "prev_reward", "is_first")}
        outputs = DictTensor({"seen": observation["obs"], "count": state["count"], **fields})
        return outputs, DictTensor({"count": state["count"] + 1})

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.exclude("seen")


def expected_steps(seed: int, count: int) -> list[dict[str, Any]]:
    """Return the first steps of a row as a plain loop over a bare environment gives them."""
    env = Ledger()
    seen, _ = env.reset(seed=seed)
    steps: list[dict[str, Any]] = []
    first, prev_action, prev_reward, number = True, 0, 0.0, 0
    while len(steps) < count:
        action = int(policy(torch.tensor(seen[1]), torch.tensor(seen[2])))
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append(
            {
                "env/obs": seen.tolist(),
                "env/is_first": first,
                "env/prev_action": prev_action,
                "env/prev_reward": prev_reward,
                "agent/action": action,
                "next/obs": following.tolist(),
                "next/reward": reward,
                "next/terminated": terminated,
                "next/truncated": truncated,
                "count": number,
            }
        )
        first = terminated or truncated
        prev_action, prev_reward, number = (0, 0.0, 0) if first else (action, reward, number + 1)
        seen = env.reset()[0] if first else following
    return steps

"""Tasks and skills that are drawn for each episode; environments and agents that show theirs."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlx.data import DictTensor
from tests.batcher.ledger import Parity


class Told(gymnasium.Env[np.ndarray, int]):
    """Shows its goal and its level, as `env_info` told them; an episode takes 1 + level steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        assert options is not None
        self._seen = np.array([*options["goal"], options["level"]], np.float32)
        self._left = 1 + options["level"]
        return self._seen, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._left -= 1
        return self._seen, 1.0, self._left <= 0, False, {}


gymnasium.register("Told-v0", entry_point=Told)
ID = "tests.batcher.tasks:Told-v0"


class Bandit(gymnasium.Env[np.ndarray, int]):
    """Two arms, one step an episode; the task is which arm pays."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._arm = int(self.np_random.integers(2)) if options is None else options["arm"]
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), float(action == self._arm), True, False, {}


gymnasium.register("Bandit-v0", entry_point=Bandit)


def sample_task(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "goal": torch.rand(2, generator=generator) + row,
        "level": torch.randint(0, 4, (), generator=generator),
    }


def sample_arm(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"arm": torch.randint(0, 2, (), generator=generator)}


def sample_skill(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"skill": torch.randint(0, 1_000_000, (), generator=generator)}


def sample_growing(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Break the rule that every draw has the same form."""
    size = int(torch.randint(1, 5, (), generator=generator)) if generator.initial_seed() else 1
    return {"skill": torch.zeros(size)}


class Skilled(Parity):
    """Puts out its skill."""

    def forward(self, observation, state, agent_info, taken=None):
        outputs, state = super().forward(observation, state, agent_info)
        return outputs | DictTensor({"skill": agent_info["skill"]}), state

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.select("skill")


class SkilledWithMemory(Skilled):
    """Its episodes begin with their skill for a state; each step adds one."""

    def initial_state(self, agent_info, batch_size):
        return DictTensor({"sum": agent_info["skill"].double()})

    def forward(self, observation, state, agent_info, taken=None):
        outputs, _ = super().forward(observation, state, agent_info)
        return outputs | DictTensor({"sum": state["sum"]}), DictTensor({"sum": state["sum"] + 1})

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.select("sum")

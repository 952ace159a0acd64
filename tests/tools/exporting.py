"""An environment in which every number has to be put right for a policy outside rlx; agents that are hard to write."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.agent import ActorCritic, Agent, MixtureAgent
from rlx.data import DictTensor, EnvSpecs


class Odd(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """Dict observations and actions in float64, counted from anywhere; pays by its action, and refuses a wrong one."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
            "level": spaces.Discrete(3, start=5),
            "picture": spaces.Box(0, 255, (2, 3), np.uint8),
            "cards": spaces.MultiDiscrete([2, 3], start=[1, -1]),
            "switches": spaces.MultiBinary(3),
        }
    )
    action_space = spaces.Dict(
        {
            "move": spaces.Discrete(3, start=-1),
            "push": spaces.Box(np.array([-2.0, 0.1]), np.array([0.5, 0.3]), dtype=np.float64),
            "count": spaces.Box(-3, 9, (2,), np.int16),
            "pick": spaces.MultiDiscrete([2, 4], start=[1, -2]),
            "press": spaces.MultiBinary(2),
        }
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        self._left = 20
        return self._seen(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self._left -= 1
        paid = sum(float(np.sum(part)) * weight for weight, part in enumerate(action.values(), 1))
        return self._seen(), paid, self._left == 0, False, {}

    def _seen(self) -> dict[str, Any]:
        draw = self.np_random
        return {
            "place": draw.normal(size=(2, 2)),
            "level": draw.integers(5, 8),
            "picture": draw.integers(0, 256, (2, 3), np.uint8),
            "cards": np.array([draw.integers(1, 3), draw.integers(-1, 2)]),
            "switches": draw.integers(0, 2, 3, np.int8),
        }


class Checked(ActorCritic):
    """Makes its outputs as a user does, with the checks."""

    def actor(self) -> Agent:
        return self

    def forward(self, *arguments: Any) -> tuple[DictTensor, DictTensor]:
        outputs, state = super().forward(*arguments)
        return DictTensor(outputs.to_dict()), state


class Fickle(ActorCritic):
    """Draws its action, whatever it is asked for."""

    def actor(self) -> Agent:
        return self

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return super().act(outputs, DictTensor.empty(outputs.batch_size), generator)


class Counted(ActorCritic):
    """Takes its rows by their number, which a file has for good."""

    def actor(self) -> Agent:
        return self

    def forward(self, *arguments: Any) -> tuple[DictTensor, DictTensor]:
        outputs, state = super().forward(*arguments)
        logits: Tensor = outputs["logits"]
        every = torch.arange(len(logits)).unsqueeze(1)
        return outputs.exclude("logits") | DictTensor({"logits": logits[every, logits.argsort(-1).argsort(-1)]}), state


class Moody(ActorCritic):
    """Decides by a value in which way it computes."""

    def actor(self) -> Agent:
        return self

    def forward(self, observation: DictTensor, *others: Any) -> tuple[DictTensor, DictTensor]:
        outputs, state = super().forward(observation, *others)
        logits: Tensor = outputs["logits"]
        turned = -logits if bool(observation["obs"][0, 0] > 0) else logits
        return outputs.exclude("logits") | DictTensor({"logits": turned}), state


class Tasked(ActorCritic):
    """Turns round what it would do where its task is 1; one that is told no task has task 0."""

    def __init__(self, specs: EnvSpecs) -> None:
        super().__init__(specs, hidden_sizes=[8], activation="tanh", log_std_init=0.0)

    def actor(self) -> Agent:
        return self

    def forward(
        self, observation: DictTensor, state: DictTensor, agent_info: DictTensor, *others: Any
    ) -> tuple[DictTensor, DictTensor]:
        outputs, state = super().forward(observation, state, agent_info, *others)
        if "task" not in agent_info:
            return outputs, state
        logits = outputs["logits"] * (1 - 2 * agent_info["task"].unsqueeze(-1))
        return outputs.exclude("logits") | DictTensor({"logits": logits}), state


def two_tasked(specs: EnvSpecs) -> MixtureAgent:
    """Return a population of them."""
    return MixtureAgent(specs, members={"first": Tasked, "second": Tasked})


gymnasium.register("Odd-v0", "tests.tools.exporting:Odd")

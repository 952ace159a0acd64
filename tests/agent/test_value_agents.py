"""Agents of action values, with memories and images: replay gives what acting gave, and who trains what."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from rlx.agent import Agent, ConvQNetwork, QNetwork, RecurrentQNetwork, RecurrentSoftActorCritic, replay, state_specs
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError
from tests.agent.agents import SPECS
from tests.agent.test_acting_and_replay import pieces_of, resets_and_borders

SEEN = {"prev_action": True, "prev_reward": True}
Q = {"hidden_sizes": [16], "activation": "tanh", "state_size": 8, "head_size": 8, "dueling": True, "num_quantiles": 0}
SAC = {"memory_hidden_sizes": [16], "state_size": 8, "hidden_sizes": [8], "activation": "tanh", "temperature_init": 1.0}
MAKERS = {
    "gru q": (partial(RecurrentQNetwork, **Q, **SEEN, cell="gru"), "discrete", "q"),
    "lstm q": (partial(RecurrentQNetwork, **Q, **SEEN, cell="lstm"), "discrete", "q"),
    "gru q, quantiles": (partial(RecurrentQNetwork, **Q | {"num_quantiles": 3}, **SEEN, cell="gru"), "discrete", "q"),
    "gru sac": (partial(RecurrentSoftActorCritic, **SAC, **SEEN, cell="gru"), "box", "mean"),
    "lstm sac": (partial(RecurrentSoftActorCritic, **SAC, **SEEN, cell="lstm"), "box", "mean"),
}
ACTION = {"action": Spec((2,), torch.float32, low=(-1.0, -1.0), high=(1.0, 1.0))}


def keeping(make_agent: Callable[[EnvSpecs], Agent], key: str, specs: EnvSpecs) -> Agent:
    """Return the agent, which stores this output with each step."""
    agent = make_agent(specs)
    kind = type(agent)

    class Kept(kind):
        def act(self, outputs, agent_info, generator):
            return super().act(outputs, agent_info, generator) | outputs.select(key)

        def actor(self):
            return self

    agent.__class__ = Kept
    return agent


@pytest.mark.parametrize("name", MAKERS)
def test_replay_gives_what_acting_gave(name: str) -> None:
    make_agent, action, key = MAKERS[name]
    agent, pieces = pieces_of(partial(keeping, make_agent, key), action)
    assert resets_and_borders(pieces) == (True, True)
    for piece in pieces:
        mask = piece.steps.mask()
        torch.testing.assert_close(replay(agent, piece)[key][mask], piece.steps[f"agent/{key}"][mask])


def test_the_critics_train_the_memory_and_the_policy_does_not() -> None:
    specs = EnvSpecs({"obs": Spec((3,), torch.float32)}, ACTION)
    agent = RecurrentSoftActorCritic(specs, **SAC, prev_action=False, prev_reward=False, cell="gru")
    empty, seen = DictTensor.empty(4), DictTensor({"obs": torch.randn(4, 3)})
    memory = list(agent.critics.memory.parameters())
    outputs, _ = agent.forward(seen, agent.initial_state(empty, 4), empty)
    outputs["mean"].sum().backward()
    assert all(parameter.grad is None for parameter in memory)
    known, _ = agent.critics.forward(seen, agent.initial_state(empty, 4), empty)
    agent.critics.q(known["features"], torch.zeros(4, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in memory)


def test_the_state_is_told_beforehand() -> None:
    agent = RecurrentQNetwork(SPECS, **Q, cell="lstm", prev_action=False, prev_reward=False)
    assert {key: spec.shape for key, spec in state_specs(agent).items()} == {"hidden": (8,), "cell": (8,)}
    network = QNetwork(SPECS, hidden_sizes=[8], activation="relu", dueling=False, num_quantiles=0)
    assert state_specs(network) == {}


def test_a_cell_that_there_is_not_is_refused() -> None:
    with pytest.raises(AgentError, match=r"agent\.cell: got 'lsmt', expected one of gru, lstm.*'lstm'"):
        RecurrentQNetwork(SPECS, **Q, cell="lsmt", prev_action=False, prev_reward=False)


CONVOLUTIONS = {"filters": [4], "kernel_sizes": [4], "strides": [2], "hidden_size": 16, "activation": "relu"}


@pytest.mark.parametrize("quantiles", [0, 3])
def test_values_of_images(quantiles: int) -> None:
    image = Spec((12, 12, 3), torch.uint8)
    specs = EnvSpecs({"obs/camera": image, "obs/speed": Spec((2,), torch.float32)}, SPECS.action)
    agent = ConvQNetwork(specs, **CONVOLUTIONS, dueling=True, num_quantiles=quantiles)
    seen = {"obs/camera": torch.randint(256, (5, 12, 12, 3), dtype=torch.uint8), "obs/speed": torch.randn(5, 2)}
    empty = DictTensor.empty(5)
    q = agent.forward(DictTensor(seen), empty, empty)[0]["q"]
    assert q.shape == (5, 4)
    for key, other in (("obs/camera", seen["obs/camera"].flip(0)), ("obs/speed", seen["obs/speed"] + 1)):
        assert not torch.equal(agent.forward(DictTensor(seen | {key: other}), empty, empty)[0]["q"], q)


def test_values_of_images_need_images() -> None:
    with pytest.raises(AgentError, match=r"looks at images.*agent=q_network"):
        ConvQNetwork(SPECS, **CONVOLUTIONS, dueling=True, num_quantiles=0)
    boxes = EnvSpecs({"obs": Spec((12, 12), torch.uint8)}, ACTION)
    with pytest.raises(AgentError, match=r"chooses one of n actions.*algo=sac"):
        ConvQNetwork(boxes, **CONVOLUTIONS, dueling=True, num_quantiles=0)

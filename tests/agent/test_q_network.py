"""Q-networks: dueling, quantiles, exploration by row."""

import pytest
import torch

from rlx.agent import QHead, QNetwork
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError
from tests.agent.agents import SPECS


def network(**changes) -> QNetwork:
    return QNetwork(
        SPECS, **({"hidden_sizes": [8, 8], "activation": "relu", "dueling": True, "num_quantiles": 0} | changes)
    )


def q_of(agent: QNetwork, rows: int) -> DictTensor:
    empty = DictTensor.empty(rows)
    return agent.forward(DictTensor({"obs": torch.randn(rows, 3)}), empty, empty)[0]


@pytest.mark.parametrize("quantiles", [0, 7])
def test_dueling_values_are_value_plus_advantage_minus_its_mean(quantiles: int) -> None:
    head = QHead(5, 4, hidden_size=6, activation="tanh", dueling=True, num_quantiles=quantiles)
    features = torch.randn(3, 5)
    hidden = torch.tanh(features @ head.hidden.weight.T + head.hidden.bias)
    value = hidden[:, :6] @ head.value.weight.T + head.value.bias
    advantage = (hidden[:, 6:] @ head.advantage.weight.T + head.advantage.bias).view(3, 4, max(1, quantiles))
    expected = value[:, None] + advantage - advantage.mean(1, keepdim=True)
    found = head(features)
    torch.testing.assert_close(found["q"], expected.mean(-1))
    assert ("quantiles" in found) == bool(quantiles)
    if quantiles:
        torch.testing.assert_close(found["quantiles"], expected)


@pytest.mark.parametrize("hidden_sizes", [[8], [8, 8, 8], []])
@pytest.mark.parametrize("dueling", [False, True])
def test_shapes(hidden_sizes: list[int], dueling: bool) -> None:
    assert q_of(network(hidden_sizes=hidden_sizes, dueling=dueling), 6)["q"].shape == (6, 4)


def test_each_row_explores_with_its_own_epsilon() -> None:
    agent, generator = network(), torch.Generator().manual_seed(0)
    outputs = q_of(agent, 3000)
    best = outputs["q"].argmax(-1)
    epsilon = torch.tensor([0.0, 0.4, 1.0]).repeat(1000)
    taken = agent.act(outputs, DictTensor({"epsilon": epsilon}), generator)["action"]
    assert set(taken.tolist()) == {0, 1, 2, 3}
    for value, expected in ((0.0, 1.0), (0.4, 0.7), (1.0, 0.25)):
        rows = epsilon == value
        assert (taken[rows] == best[rows]).float().mean().item() == pytest.approx(expected, abs=0.06)


def test_without_an_epsilon_and_where_it_is_to_be_deterministic_the_best_action_is_taken() -> None:
    agent, generator = network(), torch.Generator().manual_seed(0)
    outputs = q_of(agent, 200)
    best = outputs["q"].argmax(-1)
    assert torch.equal(agent.act(outputs, DictTensor.empty(200), generator)["action"], best)
    half = torch.arange(200) < 100
    info = DictTensor({"epsilon": torch.ones(200), "deterministic": half})
    taken = agent.act(outputs, info, generator)["action"]
    assert torch.equal(taken[half], best[half])
    assert not torch.equal(taken[~half], best[~half])


@pytest.mark.parametrize(
    ("action", "named"),
    [
        ({"action": Spec((2,), torch.float32)}, r"continuous \[2\].*algo=sac, ppo or a2c"),
        ({"action": Spec((2,), torch.int64, "multi_discrete", nvec=(2, 3))}, r"multi_discrete \[2\].*algo=ppo or a2c"),
    ],
)
def test_other_actions_are_refused_with_what_fits(action: dict[str, Spec], named: str) -> None:
    with pytest.raises(AgentError, match=named):
        QNetwork(
            EnvSpecs(SPECS.observation, action), hidden_sizes=[8], activation="relu", dueling=True, num_quantiles=0
        )


def test_forbidden_actions_are_neither_best_nor_explored_nor_the_best_that_follows() -> None:
    masked = EnvSpecs(
        {"obs/observation": SPECS.observation["obs"], "obs/action_mask": Spec((4,), torch.bool, "multi_binary")},
        SPECS.action,
    )
    agent = QNetwork(masked, hidden_sizes=[8], activation="relu", dueling=True, num_quantiles=0)
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]]).repeat(500, 1)
    seen = DictTensor({"obs/observation": torch.randn(1000, 3), "obs/action_mask": mask})
    outputs, _ = agent.forward(seen, DictTensor.empty(1000), DictTensor.empty(1000))
    assert mask.gather(1, outputs["q"].argmax(-1, keepdim=True)).all()
    taken = agent.act(outputs, DictTensor({"epsilon": torch.ones(1000)}), torch.Generator().manual_seed(0))["action"]
    assert mask.gather(1, taken.unsqueeze(1)).all()
    assert torch.bincount(taken[::2], minlength=4)[[0, 2]].tolist() == pytest.approx([250, 250], abs=60)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("quantiles", [0, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_actor_acts_as_the_agent_does_with_the_weights_of_now(dueling: bool, quantiles: int, masked: bool) -> None:
    specs = SPECS
    if masked:
        seen = {"obs/x": Spec((3,), torch.float32), "obs/action_mask": Spec((4,), torch.int8)}
        specs = EnvSpecs(seen, SPECS.action)
    agent = QNetwork(specs, hidden_sizes=[8, 6], activation="relu", dueling=dueling, num_quantiles=quantiles)
    actor = agent.actor()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.normal_()
    observation = DictTensor({"obs": torch.randn(64, 3)})
    if masked:
        mask = (torch.rand(64, 4) < 0.5).to(torch.int8)
        mask[:, 2] = 1
        observation = DictTensor({"obs/x": torch.randn(64, 3), "obs/action_mask": mask})
    info = DictTensor({"epsilon": torch.linspace(0, 1, 64)})
    empty, out = DictTensor.empty(64), {"action": torch.empty(64, dtype=torch.int64)}
    with torch.inference_mode():
        actor.act_into(observation, empty, info, torch.Generator().manual_seed(3), out)
        outputs, _ = agent.forward(observation, empty, info)
        expected = agent.act(outputs, info, torch.Generator().manual_seed(3))["action"]
    assert torch.equal(out["action"], expected)
    assert len(set(expected.tolist())) > 1


@pytest.mark.parametrize("quantiles", [0, 3])
def test_the_actor_acts_alike_in_one_call_and_in_two_beside_a_value_that_rounds_advantages_off(quantiles: int) -> None:
    agent = network(num_quantiles=quantiles)
    assert agent.head.value is not None
    torch.nn.init.constant_(agent.head.value.bias, 1e6)
    actor, empty, generator = agent.actor(), DictTensor.empty(200), torch.Generator()
    observation, out = DictTensor({"obs": torch.randn(200, 3)}), {"action": torch.empty(200, dtype=torch.int64)}
    with torch.inference_mode():
        actor.act_into(observation, empty, empty, generator, out)
        outputs, _ = actor.forward(observation, empty, empty)
        assert torch.equal(actor.act(outputs, empty, generator)["action"], out["action"])
        whole, _ = agent.forward(observation, empty, empty)
        assert (whole["q"].argmax(-1) != out["action"]).any()


@pytest.mark.parametrize("num_quantiles", [0, 5])
def test_advantages_beside_a_large_value_keep_their_differences_in_bfloat16(num_quantiles: int) -> None:
    torch.manual_seed(0)
    head = QHead(8, 3, hidden_size=8, activation="relu", dueling=True, num_quantiles=num_quantiles)
    head.value.bias.data.fill_(90.0)  # where bfloat16 counts in halves
    features = torch.randn(200, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(features)["q"]
    with torch.no_grad():
        exact = head(features)["q"]
    assert rough.dtype == torch.float32
    assert (rough.argmax(-1) == exact.argmax(-1)).float().mean() > 0.95

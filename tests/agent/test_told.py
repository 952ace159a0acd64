"""What an agent is told of each row is of the kind that it reads, or refused by name."""

import math

import pytest
import torch

from rlx.agent import SoftActorCritic
from rlx.agent.q_network import explore
from rlx.agent.told import chances, flags, indices
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError


def test_field_that_nobody_tells_is_none() -> None:
    for told in (DictTensor.empty(2), DictTensor({"epsilon": torch.zeros(2)})):
        assert flags(told, "deterministic") is None
        assert indices(told, "policy") is None
        assert chances(told, "worker_epsilon") is None


def test_field_of_the_kind_that_is_read_comes_back() -> None:
    told = DictTensor({"deterministic": torch.tensor([True, False]), "policy": torch.tensor([1, 0], dtype=torch.int32)})
    assert flags(told, "deterministic") is told["deterministic"]
    policy = indices(told, "policy")
    assert policy is not None
    assert policy.dtype is torch.int64
    assert policy.tolist() == [1, 0]


@pytest.mark.parametrize(
    "value", [torch.zeros(2), torch.ones(2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool)]
)
def test_flags_of_another_kind_are_refused(value: torch.Tensor) -> None:
    with pytest.raises(
        AgentError, match=r"agent_info\['deterministic'\]: got torch\..*, expected true or false for each"
    ):
        flags(DictTensor({"deterministic": value}), "deterministic")


@pytest.mark.parametrize("value", [torch.zeros(2), torch.ones(2, dtype=torch.bool)])
def test_indices_of_another_kind_are_refused(value: torch.Tensor) -> None:
    with pytest.raises(AgentError, match=r"agent_info\['policy'\]: got torch\..* of shape \[B\], expected an integer"):
        indices(DictTensor({"policy": value}), "policy")


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.bool), torch.zeros(2, 1)])
def test_chances_of_another_kind_are_refused(value: torch.Tensor) -> None:
    with pytest.raises(
        AgentError, match=r"agent_info\['epsilon'\]: got torch\..*, expected a probability for each row"
    ):
        chances(DictTensor({"epsilon": value}), "epsilon")


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("key", ["epsilon", "worker_epsilon"])
def test_rows_that_explore_by_no_probability_are_refused(key: str, value: float) -> None:
    best, q, draws = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3), torch.Generator()
    explore(best, q, DictTensor({key: torch.tensor([0.0, 1.0])}), draws, key)
    with pytest.raises(AgentError, match=rf"agent_info\['{key}'\]: got .* to .*, expected probabilities, in \[0, 1\]"):
        explore(best, q, DictTensor({key: torch.tensor([0.5, value])}), draws, key)


def test_skill_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    box = Spec(shape=(2,), dtype=torch.float32, low=(-1.0, -1.0), high=(1.0, 1.0))
    agent = SoftActorCritic(
        EnvSpecs(observation={"obs": box}, action={"action": box}),
        hidden_sizes=[8],
        activation="relu",
        temperature_init=1.0,
        num_skills=3,
    )
    seen = DictTensor({"obs": torch.zeros(2, 2)})
    agent.forward(seen, DictTensor.empty(2), DictTensor({"skill": torch.tensor([0, 2])}))
    with pytest.raises(AgentError, match=r"agent_info\['skill'\]: got 0 to 3, expected 0 to 2"):
        agent.forward(seen, DictTensor.empty(2), DictTensor({"skill": torch.tensor([0, 3])}))

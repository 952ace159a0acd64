"""REINFORCE's loss: by hand, with and without a baseline, at both kinds of ends."""

import pytest
import torch

from rlx.agent import ActorCriticAgent
from rlx.algo.reinforce import loss
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from tests.agent.agents import SPECS, Recurrent, actor_critic, steps_of
from tests.algo.test_a2c import Scaled, Table

NUMBERS = {"gamma": 0.5, "baseline": True, "ent_coef": 0.01, "vf_coef": 0.5, "normalize_advantage": False}


def episodes(truncated: bool) -> Trajectories:
    """Return an episode of three steps 0, 1, 2 that ends in observation 3, and one of a single step 1, terminated."""
    end = torch.tensor([[False, False, True], [True, False, False]])
    cut = torch.tensor([[False, False, truncated], [False, False, False]])
    fields = {
        "env/obs": torch.tensor([[0, 1, 2], [1, 0, 0]]),
        "env/is_first": torch.tensor([[True, False, False], [True, False, False]]),
        "agent/action": torch.tensor([[0, 1, 0], [1, 0, 0]]),
        "next/reward": torch.tensor([[1.0, 2.0, 4.0], [8.0, 99.0, 99.0]]),
        "next/terminated": end & ~cut,
        "next/truncated": cut,
    }
    count = int(truncated)
    bootstrap = {"row": [0] * count, "time": [2] * count, "obs": [3] * count}
    ends = DictTensor({key: torch.tensor(value, dtype=torch.int64) for key, value in bootstrap.items()}, count)
    return Trajectories(DictTensor.empty(2), TemporalDictTensor(fields, [3, 1]), ends)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("baseline", [False, True])
def test_loss_of_a_case_worked_by_hand(truncated: bool, baseline: bool) -> None:
    agent = Table([1.0, 0.5, 2.0, 16.0])
    last = 4 + 0.5 * 16 * (truncated and baseline)  # what a time limit cut off is known to a baseline alone
    returns = [1 + 0.5 * (2 + 0.5 * last), 2 + 0.5 * last, last, 8.0]
    value = [1.0, 0.5, 2.0, 0.5]
    weight = [g - v * baseline for g, v in zip(returns, value, strict=True)]
    found = loss(agent, episodes(truncated), **(NUMBERS | {"baseline": baseline}))
    log_half = torch.tensor(0.5).log().item()
    assert found["loss/policy"].item() == pytest.approx(-log_half * sum(weight) / 4)
    expected = found["loss/policy"] - 0.01 * found["loss/entropy"]
    if baseline:
        assert found["loss/value"].item() == pytest.approx(0.5 * sum(w * w for w in weight) / 4)
        expected = expected + 0.5 * found["loss/value"]
    torch.testing.assert_close(found["loss/total"], expected)
    found["loss/total"].backward()
    score = [0.5, -0.5, 0.5, -0.5]
    assert agent.logit.grad.item() == pytest.approx(-sum(s * w for s, w in zip(score, weight, strict=True)) / 4)
    if baseline:  # row 1 of the table is seen twice; what only follows learns nothing
        grad = [-0.5 * w / 4 for w in weight]
        assert agent.value.grad.tolist() == pytest.approx([grad[0], grad[1] + grad[3], grad[2], 0.0])
    else:
        assert agent.value.grad is None
        assert "loss/value" not in found


def test_values_count_in_standard_deviations_of_returns() -> None:
    values = [1.0, 0.5, 2.0, 16.0]
    plain, found = (loss(agent, episodes(False), **NUMBERS) for agent in (Table(values), Scaled(values)))
    torch.testing.assert_close(found["loss/value"], plain["loss/value"] / 16)
    torch.testing.assert_close(found["loss/policy"], plain["loss/policy"])


@pytest.mark.parametrize("baseline", [False, True])
def test_padding_is_in_no_mean(baseline: bool) -> None:
    torch.manual_seed(0)
    agent, whole = actor_critic(), steps_of([5, 3, 1], 5, seed=2)
    numbers = NUMBERS | {"baseline": baseline, "normalize_advantage": True}
    found = loss(agent, whole, **numbers)
    fields = {key: whole.steps[key].clone() for key in whole.steps}
    for value in fields.values():
        if value.dtype.is_floating_point:
            value[~whole.steps.mask()] = 1e9
    spoiled = Trajectories(whole.info, TemporalDictTensor(fields, whole.steps.lengths), whole.bootstrap)
    again = loss(agent, spoiled, **numbers)
    for name in found:
        torch.testing.assert_close(again[name], found[name], msg=name)


def test_normalized_weights_do_not_depend_on_the_size_of_rewards() -> None:
    torch.manual_seed(0)
    agent = actor_critic()
    numbers = NUMBERS | {"baseline": False, "normalize_advantage": True}
    small = loss(agent, steps_of([5, 3], 5, seed=2), **numbers)
    large = steps_of([5, 3], 5, seed=2)
    large.steps["next/reward"].mul_(1000)
    torch.testing.assert_close(loss(agent, large, **numbers)["loss/policy"], small["loss/policy"])


@pytest.mark.parametrize("baseline", [False, True])
def test_batches_joined_of_split_episodes_give_the_same_loss(baseline: bool) -> None:
    torch.manual_seed(0)
    agent, batch = actor_critic(), steps_of([5, 4, 3], 5, seed=2)
    numbers = NUMBERS | {"baseline": baseline}
    parts = [batch.rows(slice(0, 1)), batch.rows(slice(1, 3))]
    joined = sum(part.num_steps / 12 * loss(agent, part, **numbers)["loss/total"] for part in parts)
    torch.testing.assert_close(joined, loss(agent, batch, **numbers)["loss/total"])


@pytest.mark.parametrize("baseline", [False, True])
def test_a_recurrent_agent_learns_through_its_memory(baseline: bool) -> None:
    class RecurrentActorCritic(Recurrent, ActorCriticAgent):
        log_prob, entropy = Table.log_prob, Table.entropy

    torch.manual_seed(0)
    agent, batch = RecurrentActorCritic(SPECS), steps_of([5, 5], 5, seed=2)
    batch.info = DictTensor({"agent_state/hidden": torch.randn(2, 6)})
    loss(agent, batch, **(NUMBERS | {"baseline": baseline}))["loss/total"].backward()
    assert agent.cell.weight_hh.grad.abs().sum() > 0

"""PPO's loss: worked by hand, against finite differences, and unmoved by padding and by how steps are batched."""

import math

import pytest
import torch

from rlx.agent import ActorCriticAgent, values
from rlx.algo.ppo import loss, with_advantages
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.errors import AgentError
from tests.agent.agents import Recurrent, actor_critic, steps_of

NUMBERS = {"clip_coef": 0.2, "clip_vf": False, "ent_coef": 0.01, "vf_coef": 0.5, "normalize_advantage": False}


class Fixed(ActorCriticAgent):
    """An agent whose outputs are what a test wants them to be."""

    def __init__(self, log_prob: list[float], value: list[float], entropy: float) -> None:
        super().__init__()
        self.now, self.value, self.h = torch.tensor(log_prob), torch.tensor(value), entropy

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"value": self.value}), state

    def log_prob(self, outputs, taken):
        return self.now.unsqueeze(1)

    def entropy(self, outputs):
        return torch.full((len(self.now), 1), self.h)


def batch_of(advantage: list[float], target: list[float], old_value: list[float]) -> Trajectories:
    size = len(advantage)
    fields = {
        "env/obs": torch.zeros(size, 1, 3),
        "agent/action": torch.zeros(size, 1, dtype=torch.int64),
        "advantage": torch.tensor(advantage).unsqueeze(1),
        "return": torch.tensor(target).unsqueeze(1),
        "value": torch.tensor(old_value).unsqueeze(1),
        "log_prob": torch.zeros(size, 1),
    }
    return Trajectories(DictTensor.empty(size), TemporalDictTensor(fields, [1] * size), DictTensor.empty(0))


def test_loss_of_a_case_worked_by_hand() -> None:
    # ratios 1.5, 0.5, 1.5, 0.5 with advantages 1, 1, -1, -1: clipped at 1.2 and 0.8 where that is the lesser objective
    agent = Fixed([math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5)], [1.0, 2.0, 0.0, 0.0], entropy=0.3)
    batch = batch_of([1.0, 1.0, -1.0, -1.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    found = loss(agent, batch, **NUMBERS)
    policy = -(1.2 + 0.5 - 1.5 - 0.8) / 4
    value = 0.5 * (1 + 4 + 1 + 0) / 4
    assert found["loss/policy"].item() == pytest.approx(policy)
    assert found["loss/value"].item() == pytest.approx(value)
    assert found["loss/total"].item() == pytest.approx(policy + 0.5 * value - 0.01 * 0.3)
    assert found["ppo/clip_fraction"].item() == 1.0
    kl = sum(ratio - 1 - math.log(ratio) for ratio in (1.5, 0.5, 1.5, 0.5)) / 4
    assert found["ppo/approx_kl"].item() == pytest.approx(kl)


def test_clipped_value_loss_takes_the_greater_error() -> None:
    agent = Fixed([0.0, 0.0], [1.0, 0.1], entropy=0.0)
    batch = batch_of([0.0, 0.0], [1.0, 1.0], [0.0, 0.0])
    found = loss(agent, batch, **(NUMBERS | {"clip_vf": True}))
    assert found["loss/value"].item() == pytest.approx(0.5 * (0.8**2 + 0.9**2) / 2)


class Scaled(Fixed):
    """An agent whose returns have a standard deviation of 4."""

    def value_scale(self, outputs):
        return torch.tensor(4.0)


def test_values_count_in_standard_deviations_of_returns() -> None:
    found = loss(Scaled([0.0, 0.0], [4.0, 0.4], 0.0), batch_of([0.0, 0.0], [4.0, 4.0], [0.0, 0.0]), **NUMBERS)
    assert found["loss/value"].item() == pytest.approx(0.5 * 0.9**2 / 2)
    found = loss(
        Scaled([0.0, 0.0], [4.0, 0.4], 0.0),
        batch_of([0.0, 0.0], [4.0, 4.0], [0.0, 0.0]),
        **(NUMBERS | {"clip_vf": True}),
    )
    assert found["loss/value"].item() == pytest.approx(0.5 * (0.8**2 + 0.9**2) / 2)


def prepared(lengths: list[int], dtype: torch.dtype = torch.float32, agent=None) -> tuple:
    torch.manual_seed(0)
    agent = actor_critic() if agent is None else agent
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.5)
    agent = agent.to(dtype)
    trajectories = steps_of(lengths, 5, seed=2, dtype=dtype)
    batch = with_advantages(agent, trajectories, gamma=0.9, gae_lambda=0.8) if hasattr(agent, "log_prob") else None
    return agent, trajectories, batch


@pytest.mark.parametrize("clip_vf", [False, True])
@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_the_gradient_is_that_of_finite_differences(clip_vf: bool, normalize_advantage: bool) -> None:
    agent, _, batch = prepared([5, 3, 0], torch.float64)
    numbers = NUMBERS | {"clip_vf": clip_vf, "normalize_advantage": normalize_advantage, "clip_coef": 2.0}
    parameters = list(agent.parameters())
    for parameter in parameters:
        parameter.data += 0.01 * torch.randn_like(parameter)
    loss(agent, batch, **numbers)["loss/total"].backward()
    checked = 0
    for parameter in parameters:
        for place in torch.randperm(parameter.numel())[:4].tolist():
            flat, step = parameter.data.view(-1), 1e-6
            kept = flat[place].item()
            flat[place] = kept + step
            above = loss(agent, batch, **numbers)["loss/total"].item()
            flat[place] = kept - step
            below = loss(agent, batch, **numbers)["loss/total"].item()
            flat[place] = kept
            assert parameter.grad.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)
            checked += 1
    assert checked > 20


def test_padding_is_in_no_mean_and_no_gradient() -> None:
    agent, _, batch = prepared([5, 3, 0])
    numbers = NUMBERS | {"normalize_advantage": True}
    ragged = loss(agent, batch, **numbers)
    single = loss(agent, batch.split_steps(), **numbers)
    for name in ragged:
        torch.testing.assert_close(ragged[name], single[name], msg=name)
    fields = {key: value.clone() for key, value in batch.steps.items()}
    for value in fields.values():
        if value.dtype.is_floating_point:
            value[~batch.steps.mask()] = 1e9
    spoiled = Trajectories(batch.info, TemporalDictTensor(fields, batch.steps.lengths), batch.bootstrap)
    torch.testing.assert_close(loss(agent, spoiled, **numbers)["loss/total"], ragged["loss/total"])


def test_batches_joined_of_split_trajectories_give_the_same_loss() -> None:
    agent, _, batch = prepared([5, 4, 3])
    whole = loss(agent, batch, **NUMBERS)["loss/total"]
    parts = [batch.rows(slice(0, 1)), batch.rows(slice(1, 3))]
    weights = [part.num_steps / batch.num_steps for part in parts]
    joined = sum(w * loss(agent, part, **NUMBERS)["loss/total"] for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(joined, whole)


def test_advantages_bootstrap_truncation_and_not_termination() -> None:
    agent, trajectories, batch = prepared([5, 5, 5])
    steps = trajectories.steps
    value, following = values(agent, trajectories)
    over = steps["next/terminated"] | steps["next/truncated"]
    error = steps["next/reward"] + 0.9 * following - value
    assert steps["next/truncated"].any()
    assert steps["next/terminated"].any()
    torch.testing.assert_close(batch.steps["advantage"][over], error[over])
    torch.testing.assert_close(batch.steps["return"], batch.steps["advantage"] + value)
    taken = steps.group("agent")
    torch.testing.assert_close(batch.steps["log_prob"], agent.log_prob(taken, taken))


def test_padding_is_in_no_advantage() -> None:
    agent, trajectories, batch = prepared([5, 3, 1])
    mask = trajectories.steps.mask()
    fields = {key: value.clone() for key, value in trajectories.steps.items()}
    for value in fields.values():
        if value.dtype.is_floating_point:
            value[~mask] = 1e9
    steps = TemporalDictTensor(fields, trajectories.steps.lengths)
    spoiled = Trajectories(trajectories.info, steps, trajectories.bootstrap)
    found = with_advantages(agent, spoiled, gamma=0.9, gae_lambda=0.8).steps
    for name in ("advantage", "return", "log_prob"):
        torch.testing.assert_close(found[name][mask], batch.steps[name][mask], msg=name)


def test_old_log_probs_are_those_of_acting_not_of_the_weights_that_learn() -> None:
    agent, trajectories, _ = prepared([5, 5, 5])
    logits = trajectories.steps["agent/logits"]
    expected = logits.log_softmax(-1).gather(-1, trajectories.steps["agent/action"].unsqueeze(-1)).squeeze(-1)
    batch = with_advantages(agent, trajectories, gamma=0.9, gae_lambda=0.8)
    torch.testing.assert_close(batch.steps["log_prob"], expected)


def test_an_agent_that_kept_too_little_for_old_log_probs_is_told_what_act_has_to_return() -> None:
    agent, trajectories, _ = prepared([5, 5, 5])
    bare = trajectories.select("env", "next", "agent/action")
    with pytest.raises(AgentError, match=r"no field 'logits'.*ActorCritic.act\(\) has to return"):
        with_advantages(agent, bare, gamma=0.9, gae_lambda=0.8)


def test_recurrent_values_carry_state() -> None:
    agent = Recurrent(__import__("tests.agent.agents", fromlist=["SPECS"]).SPECS)
    trajectories = steps_of([5, 5], 5, seed=1)
    trajectories.info = DictTensor({"agent_state/hidden": torch.randn(2, 6)})
    value, _ = values(agent, trajectories)
    trajectories.info = DictTensor({"agent_state/hidden": torch.zeros(2, 6)})
    other, _ = values(agent, trajectories)
    torch.testing.assert_close(value, other)  # every sequence begins an episode, so its first state is the agent's own

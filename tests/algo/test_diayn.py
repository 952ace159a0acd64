"""DIAYN: its reward by hand, who learns from what, and that each skill is played for a whole episode."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch

from rlx.agent import SoftActorCritic
from rlx.algo import sac
from rlx.algo.diayn import Discriminator, draw_skill, loss
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from tests.algo.test_sac import SPECS, batch_of, seeded


def made() -> tuple[SoftActorCritic, Discriminator, Trajectories]:
    torch.manual_seed(0)
    agent = SoftActorCritic(SPECS, hidden_sizes=[8], activation="tanh", temperature_init=0.3, num_skills=3)
    discriminator = Discriminator(SPECS, 3, [8])
    for parameter in [*agent.layers.parameters(), *agent.policy.parameters(), *discriminator.parameters()]:
        parameter.data.normal_(std=0.5)
    batch = batch_of(6)
    info = DictTensor({"agent_info/skill": torch.tensor([0, 1, 2, 0, 1, 2])})
    return agent, discriminator, Trajectories(info, batch.steps, batch.bootstrap)


def test_the_reward_is_what_the_discriminator_tells_above_chance() -> None:
    agent, discriminator, batch = made()
    target = deepcopy(agent.critics)
    found = loss(agent, target, discriminator, batch, seeded(), target_entropy=-2.0)
    belief = discriminator(DictTensor({"obs": batch.steps["next/obs"][:, 0]})).softmax(-1)
    log_prob = belief[torch.arange(6), batch.info["agent_info/skill"]].log().detach()
    reward = log_prob + math.log(3)
    steps = batch.steps.exclude("next/reward") | TemporalDictTensor({"next/reward": reward.unsqueeze(1)}, [1] * 6)
    expected = sac.loss(
        agent, target, Trajectories(batch.info, steps, batch.bootstrap), seeded(), n_step=1, target_entropy=-2.0
    )
    for name in ("loss/critic", "loss/actor", "loss/temperature"):
        torch.testing.assert_close(found[name], expected[name], msg=name)
    torch.testing.assert_close(found["loss/discriminator"], -log_prob.mean())
    torch.testing.assert_close(found["loss/total"], expected["loss/total"] - log_prob.mean())
    torch.testing.assert_close(found["diayn/reward"], reward.mean())


@pytest.mark.parametrize("right", [6, 4, 0])
def test_accuracy_is_the_part_of_the_skills_that_the_discriminator_finds(right: int) -> None:
    agent, discriminator, batch = made()
    skill = discriminator(DictTensor({"obs": batch.steps["next/obs"][:, 0]})).argmax(-1)
    skill[right:] = (skill[right:] + 1) % 3
    told = Trajectories(DictTensor({"agent_info/skill": skill}), batch.steps, batch.bootstrap)
    found = loss(agent, deepcopy(agent.critics), discriminator, told, seeded(), target_entropy=-2.0)
    assert found["diayn/accuracy"].item() == pytest.approx(right / 6)


def test_the_tasks_own_reward_is_not_looked_at() -> None:
    agent, discriminator, batch = made()
    target = deepcopy(agent.critics)
    found = loss(agent, target, discriminator, batch, seeded(), target_entropy=-2.0)
    batch.steps["next/reward"][:] = 1e6
    again = loss(agent, target, discriminator, batch, seeded(), target_entropy=-2.0)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_discriminator_learns_from_its_own_loss_alone() -> None:
    agent, discriminator, batch = made()
    terms = loss(agent, deepcopy(agent.critics), discriminator, batch, seeded(), target_entropy=-2.0)
    (terms["loss/critic"] + terms["loss/actor"]).backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    terms["loss/total"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_policy_and_critics_know_the_skill() -> None:
    agent, _, _ = made()
    seen = DictTensor({"obs": torch.zeros(3, 3)})
    info = DictTensor({"skill": torch.arange(3)})
    outputs, _ = agent.forward(seen, DictTensor.empty(3), info)
    features = agent.critics.forward(seen, DictTensor.empty(3), info)[0]["features"]
    assert len(outputs["mean"].unique(dim=0)) == 3
    assert features[:, 3:].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    alone, _ = agent.forward(seen, DictTensor.empty(3), DictTensor.empty(3))  # nobody says: skill 0
    torch.testing.assert_close(alone["mean"], outputs["mean"][:1].expand(3, 2))


def test_skills_are_drawn_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [int(partial(draw_skill, 4)(0, generator)["skill"]) for _ in range(4000)]
    assert torch.bincount(torch.tensor(drawn)).tolist() == pytest.approx([1000] * 4, abs=120)

"""Normalisers: exact moments however they are merged, part of the agent, moved by learning alone."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rlx.agent import ActorCritic, GRUActorCritic, Normalizer, QNetwork, SoftActorCritic, replay, update_normalizers
from rlx.agent.agent import ActorCriticAgent
from rlx.agent.networks import Encoder
from rlx.algo import a2c, ppo, reinforce
from rlx.batcher import Batcher
from rlx.data import DictTensor, EnvSpecs, Spec, Trajectories
from rlx.env import make
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.run.evaluate import evaluate_path
from tests.agent.agents import SPECS, actor_critic, steps_of
from tests.agent.environments import ID
from tests.learning.test_ppo import trained

MLP = {"hidden_sizes": [8], "activation": "tanh", "log_std_init": 0.0}


def moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values.double().mean(0).float(), values.double().std(0, unbiased=False).float()


@pytest.mark.parametrize("pieces", [[1000], [1, 999], [400, 0, 350, 250], [1] * 1000])
def test_moments_are_those_of_all_values_however_they_came(pieces: list[int]) -> None:
    values = 1e4 + torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-2, 1.0, 50.0])
    normalizer = Normalizer((2, 3))
    for piece in values.split(pieces):
        normalizer.update(piece)
    mean, deviation = moments(values)
    torch.testing.assert_close(normalizer.shift, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(normalizer.scale, deviation, rtol=1e-5, atol=0)
    normal = normalizer.normalize(values)
    assert normal[:, :, 1].mean().abs() < 0.05
    assert normal[:, :, 1].std().item() == pytest.approx(1, abs=0.01)


def test_before_anything_is_seen_and_where_nothing_varies_nothing_is_scaled() -> None:
    normalizer = Normalizer((2,))
    values = torch.tensor([[3.0, 5.0], [3.0, 7.0]])
    assert torch.equal(normalizer.normalize(values), values)
    normalizer.update(values)
    assert normalizer.normalize(values).tolist() == [[0, -1], [0, 1]]
    assert normalizer.normalize(torch.tensor([[4.0, 600.0]])).tolist() == [[1, 10]]  # cut at 10 deviations
    assert torch.equal(normalizer.expand(torch.tensor([[1.0, -1.0]])), torch.tensor([[4.0, 5.0]]))


def test_numbers_of_the_observation_are_normalised_and_nothing_else() -> None:
    specs = {
        "obs/x": Spec((2,), torch.float32),
        "obs/kind": Spec((), torch.int64, "discrete", nvec=(3,)),
        "obs/image": Spec((2, 2), torch.uint8),
        "prev_reward": Spec((), torch.float32),
    }
    encoder = Encoder(specs, normalize=True)
    seen = DictTensor(
        {
            "obs/x": torch.tensor([[1.0, 10.0], [3.0, 30.0]]),
            "obs/kind": torch.tensor([0, 2]),
            "obs/image": torch.full((2, 2, 2), 255, dtype=torch.uint8),
            "prev_reward": torch.tensor([5.0, 7.0]),
        }
    )
    before = encoder(seen)
    encoder.normalizers[0].update(seen["obs/x"])
    after = encoder(seen)
    assert after[:, :2].tolist() == [[-1, -1], [1, 1]]
    assert torch.equal(after[:, 2:], before[:, 2:])


def test_padding_does_not_count() -> None:
    agent = actor_critic(normalize_observation=True, normalize_return=True)
    batch = steps_of([5, 3, 0], 5)
    returns = torch.randn(3, 5)
    mask = batch.steps.mask()
    update_normalizers(agent, batch, returns)
    torch.testing.assert_close(agent.encoder.normalizers[0].shift, batch.steps["env/obs"][mask].mean(0))
    torch.testing.assert_close(agent.return_normalizer.shift, returns[mask].mean())
    torch.testing.assert_close(agent.value_scale(DictTensor.empty(0)), returns[mask].std(unbiased=False))


def test_the_value_is_what_the_critic_says_in_deviations_of_the_returns() -> None:
    agent, batch = actor_critic(normalize_return=True), steps_of([4, 4], 4)
    before = replay(agent, batch)["value"]
    agent.return_normalizer.update(torch.tensor([10.0, 14.0]))
    torch.testing.assert_close(replay(agent, batch)["value"], before * 2 + 12)


@pytest.mark.parametrize("algo", ["ppo", "a2c", "reinforce"])
def test_the_error_of_the_value_counts_in_deviations(algo: str) -> None:
    agent, batch = actor_critic(), steps_of([4, 4], 4)

    def value_loss() -> torch.Tensor:
        if algo == "ppo":
            old = torch.zeros(2, 4)
            added = {"advantage": old, "value": old, "log_prob": old, "return": torch.ones(2, 4)}
            numbers = {"clip_coef": 0.1, "clip_vf": False, "ent_coef": 0.0, "vf_coef": 1.0}
            return ppo.loss(agent, batch.with_steps(**added), **numbers, normalize_advantage=False)["loss/value"]
        numbers = {"gamma": 0.9, "ent_coef": 0.0, "vf_coef": 1.0, "normalize_advantage": False}
        if algo == "a2c":
            return a2c.loss(agent, batch, gae_lambda=0.9, vtrace=False, **numbers)["loss/value"]
        return reinforce.loss(agent, batch, baseline=True, **numbers)["loss/value"]

    plain = value_loss()

    class Scaled(type(agent)):
        def value_scale(self, outputs):
            return 4.0

    agent.__class__ = Scaled
    torch.testing.assert_close(value_loss(), plain / 16)


MAKERS = {
    "mlp": partial(ActorCritic, **MLP, normalize_observation=True, normalize_return=True),
    "gru": partial(
        GRUActorCritic, **MLP, state_size=8, critic_hidden_sizes=[8], prev_action=True, prev_reward=True,
        normalize_observation=True, normalize_return=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_workers_act_with_the_moments_that_were_published(name: str) -> None:
    with Batcher(
        MAKERS[name], partial(make, ID, kwargs={"action": "discrete"}), num_workers=2, envs_per_worker=3, num_steps=6,
        seed=0, workers="process",
    ) as batcher:  # fmt: skip
        agent = MAKERS[name](batcher.specs)
        for _ in range(3):
            batcher.publish(agent)
            piece = batcher.collect().clone()
            mask = piece.steps.mask()
            stored = piece.steps.group("agent")
            torch.testing.assert_close(replay(agent, piece)["logits"][mask], stored["logits"][mask])
            update_normalizers(agent, piece, torch.randn(mask.shape))
            assert not torch.allclose(replay(agent, piece)["logits"][mask], stored["logits"][mask])


def test_q_networks_and_soft_actor_critics_normalise_in_every_part() -> None:
    q = QNetwork(SPECS, hidden_sizes=[8], activation="relu", dueling=True, num_quantiles=0, normalize_observation=True)
    box = EnvSpecs(SPECS.observation, {"action": Spec((1,), torch.float32, low=(-1.0,), high=(1.0,))})
    sac = SoftActorCritic(
        box, hidden_sizes=[8], activation="relu", temperature_init=1.0, num_skills=0, normalize_observation=True
    )
    batch = steps_of([5, 5], 5)
    for agent, count in ((q, 1), (sac, 2)):
        update_normalizers(agent, batch)
        moved = [module for module in agent.modules() if isinstance(module, Normalizer)]
        assert len(moved) == count
        for module in moved:
            torch.testing.assert_close(module.shift, batch.steps["env/obs"].flatten(0, 1).mean(0))


def test_moments_are_in_the_checkpoint_and_evaluation_leaves_them_alone(tmp_path: Path) -> None:
    numbers = ("algo=ppo", "env=MountainCar", "total_steps=2048", "algo.num_steps=64", "batcher=local")
    run = trained(tmp_path / "run", *numbers, "agent.normalize_observation=true", "agent.normalize_return=true")
    path = find_checkpoint(run)
    before = {name: file.read_bytes() for name in ("tensors.safetensors",) for file in [path / name]}
    state = load_checkpoint(path).state["agent"]
    assert state["encoder.normalizers.0._count"].item() >= 2048
    assert np.all(np.asarray(state["encoder.normalizers.0.scale"]) < 1)  # a place and a speed
    assert state["return_normalizer.shift"].item() < 0  # every step costs 1
    evaluate_path(run, episodes=3)
    assert {name: (path / name).read_bytes() for name in before} == before


def test_an_agent_without_normalisers_is_left_as_it_is() -> None:
    agent = actor_critic()
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    batch: Trajectories = steps_of([3, 3], 3)
    update_normalizers(agent, batch, torch.randn(2, 3))
    assert all(torch.equal(value, before[key]) for key, value in agent.state_dict().items())
    assert isinstance(agent, ActorCriticAgent)
    assert agent.value_scale(DictTensor.empty(0)) == 1.0


def test_values_of_bfloat16_are_expanded_without_its_rounding() -> None:
    normalizer = Normalizer(())
    normalizer.update(1000.0 + 10.0 * torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    values = torch.linspace(-2, 2, 101).bfloat16()
    expanded = normalizer.expand(values)
    assert expanded.dtype == torch.float32
    torch.testing.assert_close(expanded, values.float() * normalizer.scale + normalizer.shift)

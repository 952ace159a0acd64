"""Agents with a memory and with structure learn what needs them."""

from pathlib import Path

import pytest
import torch

from rlx.agent import TransformerActorCritic, replay
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor, Trajectories
from rlx.run.evaluate import evaluate_path
from tests.learning.test_ppo import trained

pytestmark = pytest.mark.learning

RECALL = ("env=gym", "env.id=tests.learning.environments:Recall-v0", "total_steps=40_000")


@pytest.mark.parametrize("agent", ["gru", "lstm", "transformer"])
def test_a_memory_recalls_a_cue(tmp_path: Path, agent: str) -> None:
    run = trained(tmp_path / "run", f"agent={agent}", *RECALL)
    assert evaluate_path(run, episodes=200, trust=True).mean >= 0.99


def test_a_transformer_recalls_a_cue_from_far_back_in_its_window(tmp_path: Path) -> None:
    far = ("agent.window=24", *RECALL, "+env.kwargs.delay=20", "total_steps=80_000")
    run = trained(tmp_path / "run", "agent=transformer", *far)
    assert evaluate_path(run, episodes=200, trust=True).mean >= 0.99


def test_layers_learn_to_hand_on_what_lies_beyond_one_window() -> None:
    torch.manual_seed(0)
    specs = EnvSpecs({"obs": Spec((2,), torch.float32)}, {"action": Spec((), torch.int64, "discrete", nvec=(2,))})
    agent = TransformerActorCritic(
        specs, num_layers=2, window=16, model_size=64, num_heads=4, feedforward_size=128, activation="relu",
        critic_hidden_sizes=[8], prev_action=False, prev_reward=False, log_std_init=0.0,
    )  # fmt: skip
    optimizer = torch.optim.Adam(agent.parameters(), 1e-3)
    fields = {"env/obs": torch.zeros(32, 21, 2), "env/is_first": torch.zeros(32, 21, dtype=torch.bool)}
    fields["env/obs"][:, 20, 1] = 1.0
    fields["env/is_first"][:, 0] = True
    info = DictTensor({"agent_state/position": torch.zeros(32, dtype=torch.int64)})
    for _ in range(400):
        cue = torch.randint(2, (32,))
        fields["env/obs"][:, 0, 0] = 2.0 * cue - 1.0
        sequences = Trajectories(info, TemporalDictTensor(fields, [21] * 32), DictTensor.empty(0))
        loss = torch.nn.functional.cross_entropy(replay(agent, sequences)["logits"][:, 20], cue)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05  # log 2 for a guess


def test_an_agent_without_a_memory_guesses_the_cue(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *RECALL)
    assert 0.35 <= evaluate_path(run, episodes=200, trust=True).mean <= 0.65


@pytest.mark.parametrize("agent", ["gru", "lstm", "transformer"])
def test_an_agent_with_a_memory_solves_cartpole(tmp_path: Path, agent: str) -> None:
    run = trained(tmp_path / "run", f"agent={agent}")
    assert evaluate_path(run, episodes=100, seed=1).mean >= 475


def test_a_memory_learns_to_find_out_the_task_within_a_trial(tmp_path: Path) -> None:
    """Two arms, five pulls: chance is 2.5, knowing the arm after one pull is 4.5."""
    task = (
        "env=gym",
        "env.id=tests.batcher.tasks:Bandit-v0",
        "env.wrappers=[{rlx.env.Trials: {num_episodes: 5, same_seed: true}}]",
    )
    agent = ("agent=gru", "agent.prev_action=true", "agent.prev_reward=true", "batcher.envs_per_worker=16")
    numbers = ("algo.num_steps=25", "algo.batch_size=200", "algo.learning_rate=[linear,3e-3,0]", "total_steps=60_000")
    run = trained(tmp_path / "run", *task, *agent, *numbers)
    assert evaluate_path(run, episodes=200, trust=True).mean >= 4.3

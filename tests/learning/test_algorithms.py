"""The other algorithms learn what can be checked, in seconds: known values, a continuous answer, a solved task."""

from pathlib import Path

import pytest
import torch

from rlx.data import DictTensor, EnvSpecs
from rlx.run.build import maker
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.run.evaluate import evaluate_path
from rlx.run.metrics import read_metrics
from tests.learning.test_ppo import trained

pytestmark = pytest.mark.learning

ENDLESS = ("env=gym", "env.id=tests.learning.environments:Endless-v0", "algo.gamma=0.9", "batcher=local")
DQN = (
    "algo=dqn",
    "algo.learning_starts=200",
    "algo.num_updates=16",
    "agent.hidden_sizes=[32,32]",
    "algo.learning_rate=1e-2",
)


def outputs_of(run: Path) -> DictTensor:
    """Return what a run's agent puts out for the only observation of the endless task."""
    saved = load_checkpoint(find_checkpoint(run))
    agent = maker("agent", saved.config["agent"])(EnvSpecs.from_dict(saved.meta["specs"]))
    agent.load_state_dict(saved.state["agent"])
    return agent.forward(DictTensor({"obs": torch.zeros(1, 1)}), DictTensor.empty(1), DictTensor.empty(1))[0]


@pytest.mark.parametrize("terminates", [False, True])
@pytest.mark.parametrize(
    ("name", "ended", "overrides"),
    [
        # Where episodes end, a return holds (1 - 0.9 ** k) / 0.1 steps' pay, k from 1 to 10 alike: 4.14 on average.
        ("value", 4.14, ("algo=a2c", "algo.gae_lambda=1.0", "total_steps=100_000", "algo.num_steps=16")),
        ("value", 4.14, ("algo=reinforce", "batcher=episodes", "total_steps=150_000")),
        # Seven targets of three steps and the value behind them, and three that end: V = 2.458 + 0.51 V.
        ("q", 5.02, (*DQN, "total_steps=15_000")),
        ("q", 5.02, (*DQN, "total_steps=15_000", "agent.num_quantiles=8", "algo.prioritized_alpha=0.6")),
    ],
    ids=["a2c", "reinforce", "dqn", "dqn, quantiles by priority"],
)
def test_value_is_that_of_an_endless_task_only_where_truncation_is_bootstrapped(
    tmp_path: Path, name: str, ended: float, overrides: tuple[str, ...], terminates: bool
) -> None:
    pays = 0.1  # small, so that the Huber loss of Q-learning is a square: then its answer is a mean
    task = (*ENDLESS, f"+env.kwargs.terminates={str(terminates).lower()}", f"+env.kwargs.pays={pays}")
    run = trained(tmp_path / "run", *task, *overrides)
    value = outputs_of(run)[name].max().item() / pays
    assert value == pytest.approx(ended if terminates else 10.0, abs=0.7)


@pytest.mark.parametrize("algo", ["a2c", "reinforce"])
def test_policy_gradients_solve_cartpole(tmp_path: Path, algo: str) -> None:
    run = trained(tmp_path / "run", f"algo={algo}", "total_steps=300_000")
    assert evaluate_path(run, episodes=50, seed=1).mean >= 400


@pytest.mark.parametrize("algo", ["a2c", "reinforce"])
def test_policy_gradients_recall_a_cue_with_a_memory(tmp_path: Path, algo: str) -> None:
    task = ("env=gym", "env.id=tests.learning.environments:Recall-v0", "+env.kwargs.delay=4", "total_steps=150_000")
    run = trained(tmp_path / "run", f"algo={algo}", "agent=gru", *task)
    assert evaluate_path(run, episodes=200, trust=True).mean >= 0.95


def test_sac_finds_a_continuous_answer(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", "algo=sac", "env=gym", "env.id=tests.learning.environments:Target-v0", "batcher=local",
        "total_steps=12_000", "algo.learning_starts=500", "algo.num_updates=4", "agent.hidden_sizes=[64,64]",
    )  # fmt: skip
    assert evaluate_path(run, episodes=200, trust=True).mean > -0.02  # a random action pays about -1.7


RECALL = ("algo=dqn", "env=gym", "env.id=tests.learning.environments:Recall-v0", "batcher=local", "total_steps=20_000")
Q_MEMORY = ("algo.num_updates=4", "algo.batch_size=32", "agent.hidden_sizes=[32]")


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_q_learning_recalls_a_cue(tmp_path: Path, cell: str) -> None:
    run = trained(tmp_path / "run", *RECALL, "agent=recurrent_q_network", f"agent.cell={cell}", *Q_MEMORY)
    assert evaluate_path(run, episodes=200, trust=True).mean >= 0.95


def test_q_learning_without_a_memory_guesses_the_cue(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *RECALL, "algo.num_updates=4", "agent.hidden_sizes=[32,32]")
    assert 0.35 <= evaluate_path(run, episodes=200, trust=True).mean <= 0.65


@pytest.mark.parametrize("memory", [True, False])
def test_recurrent_sac_remembers_a_number(tmp_path: Path, memory: bool) -> None:
    run = trained(
        tmp_path / "run", "algo=sac", "env=gym", "env.id=tests.learning.environments:Target-v0", "+env.kwargs.delay=3",
        "batcher=local", "total_steps=12_000", "algo.learning_starts=500", "algo.num_updates=2",
        "agent.hidden_sizes=[64,64]", *(["agent=recurrent_soft_actor_critic", "algo.batch_size=32"] * memory),
    )  # fmt: skip
    mean = evaluate_path(run, episodes=200, trust=True).mean
    assert mean > -0.05 if memory else mean < -0.25  # the number's variance is 1/3


def test_diayns_skills_can_be_told_apart(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", "algo=diayn", "env=Pendulum", "batcher=local", "total_steps=16_000",
        "agent.hidden_sizes=[64,64]", "agent.num_skills=4", "algo.num_updates=4",
    )  # fmt: skip
    accuracy = [row["diayn/accuracy"] for row in read_metrics(run / "metrics.csv")][-20:]
    assert sum(accuracy) / len(accuracy) > 0.5  # 0.25 by chance

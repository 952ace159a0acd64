"""PPO learns what can be checked: a solved task, a value known beforehand, a continuous answer."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rlx.agent import ActorCritic
from rlx.cli.members import config_directory
from rlx.data import DictTensor, EnvSpecs
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.run.evaluate import evaluate_path
from rlx.run.launch import launch

pytestmark = pytest.mark.learning


def trained(run: Path, *overrides: str) -> Path:
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("config", overrides=[*overrides, f"run_dir='{run}'", "logger.console=false"])
    launch(OmegaConf.to_container(config, resolve=True), {"algo": "ppo", "env": "CartPole"})
    return run


def test_the_main_job_solves_cartpole(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    assert evaluate_path(run, episodes=100, seed=1).mean >= 475


@pytest.mark.parametrize("terminates", [False, True])
def test_value_is_that_of_an_endless_task_only_where_truncation_is_bootstrapped(
    tmp_path: Path, terminates: bool
) -> None:
    run = trained(
        tmp_path / "run", "env=gym", "env.id=tests.learning.environments:Endless-v0",
        f"+env.kwargs.terminates={str(terminates).lower()}", "total_steps=60_000", "algo.gamma=0.9",
    )  # fmt: skip
    saved = load_checkpoint(find_checkpoint(run))
    agent = ActorCritic(
        EnvSpecs.from_dict(saved.meta["specs"]), hidden_sizes=[64, 64], activation="tanh", log_std_init=0
    )
    agent.load_state_dict(saved.state["agent"])
    empty = DictTensor.empty(1)
    value = agent.forward(DictTensor({"obs": torch.zeros(1, 1)}), empty, empty)[0]["value"].item()
    if terminates:  # the mean over the steps of what is left: (1 - 0.9 ** k) / 0.1 for k = 1 to 10
        assert value == pytest.approx(sum((1 - 0.9**k) / 0.1 for k in range(1, 11)) / 10, abs=0.5)
    else:
        assert value == pytest.approx(10.0, abs=0.5)


def test_a_continuous_answer_is_found(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", "env=gym", "env.id=tests.learning.environments:Target-v0", "total_steps=80_000",
        "algo.gamma=0.0", "algo.num_epochs=5", "agent.log_std_init=-0.5",
    )  # fmt: skip
    assert evaluate_path(run, episodes=200, trust=True).mean > -0.01  # a random action pays about -1.7


@pytest.mark.parametrize("agent", ["actor_critic", "gru"])
def test_the_best_of_what_is_allowed_is_found_where_the_forbidden_would_pay_most(tmp_path: Path, agent: str) -> None:
    run = trained(
        tmp_path / "run", "env=gym", "env.id=tests.learning.environments:Arms-v0", "env.action_mask=true",
        f"agent={agent}", "total_steps=20_000", "algo.gamma=0.0",
    )  # fmt: skip
    assert evaluate_path(run, episodes=500, trust=True).mean / 8 == pytest.approx(5 / 6, abs=0.03)

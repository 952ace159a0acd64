"""Every shipped member of every group trains: two iterations, through worker processes. Its checkpoint is whole."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rlx.cli.members import config_directory
from rlx.run.launch import launch
from rlx.run.metrics import read_metrics
from rlx.run.policy import load_policy


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (config_directory() / group).glob("*.yaml"))


# Agents that one algorithm alone can use.
CHOSEN_BY = (
    "q_network", "recurrent_q_network", "conv_q_network", "hierarchical_q_network", "soft_actor_critic",
    "recurrent_soft_actor_critic",
)  # fmt: skip

CASES = [
    *(f"env={name}" for name in members("env") if name not in ("gym", "legacy_gym", "atari", "envpool")),
    "env=gym env.id=CartPole-v1",
    "env=legacy_gym env.id=CartPole-v1",
    "env=envpool env.id=CartPole-v1",
    "env=atari env.game=SpaceInvaders agent=conv",
    *(f"agent={name}" for name in members("agent") if name not in ("conv", "skills", *CHOSEN_BY)),
    *(f"algo={name}" for name in members("algo") if name not in ("sac", "diayn", "hdqn")),
    "algo=sac env=Pendulum",
    "algo=sac env=Pendulum agent=recurrent_soft_actor_critic",
    "algo=dqn env=Acrobot agent=recurrent_q_network agent.cell=lstm agent.prev_action=true",
    "algo=dqn env=atari env.game=Pong agent=conv_q_network",
    "algo=diayn env=Pendulum",
    "algo=hdqn env=Errand",
    *(f"batcher={name}" for name in members("batcher")),
    *(f"+experiment={name}" for name in members("experiment")),
]

# Environments that reset their rows themselves: what a row's call spends on that is no step.
RESETTING = ("Vec", "Torch", "envpool", "gpu")


@pytest.mark.parametrize("overrides", CASES)
def test_every_shipped_configuration_trains_two_iterations(overrides: str, tmp_path: Path) -> None:
    if "legacy_gym" in overrides:
        pytest.importorskip("gym", reason="gym is not installed: nox -s legacy_gym")
    if "envpool" in overrides:
        pytest.importorskip("envpool", reason="envpool is not installed: nox -s envpool")
    if "batcher=ray" in overrides:
        pytest.importorskip("ray", reason="ray is not installed: nox -s engines")
    small = ["algo.num_steps=8", "batcher.envs_per_worker=2", "logger.console=false", "logger.every=0"]
    small += [f"run_dir='{tmp_path / 'run'}'"]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        words = overrides.replace("+experiment=", "experiment=").split()
        config = compose("config", overrides=[*words, *small])
        fewer = {"num_epochs": 1, "num_updates": 2, "learning_starts": 8, "buffer_size": 200, "batch_size": 16}
        known = [f"algo.{key}={value}" for key, value in fewer.items() if key in config["algo"]]
        config = compose("config", overrides=[*words, *small, *known])
    values = OmegaConf.to_container(config, resolve=True)
    if values["device"] == "cuda" and not torch.cuda.is_available():
        values["device"] = values["env"]["device"] = "cpu"
    values["total_steps"] = 2 * 8 * values["batcher"]["num_workers"] * 2
    if any(name in overrides for name in RESETTING):  # the second iteration may fall short, and a third be made
        values["total_steps"] -= 8
    whole_episodes = values["batcher"]["_target_"].endswith("EpisodeBatcher")
    if whole_episodes:  # a batch has as many steps as its episodes
        values["total_steps"] = 160
    launch(values, {"algo": "ppo", "env": "x"})
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(rows) >= 2 if whole_episodes else len(rows) == 2
    assert all(row["loss/total"] is not None for row in rows)
    assert (tmp_path / "run" / "summary.json").exists()
    load_policy(tmp_path / "run")  # and is rebuilt without --trust

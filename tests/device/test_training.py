"""Every algorithm learns on another device to the numbers of the CPU, is evaluated, and goes on from checkpoints."""

import csv
import math
from pathlib import Path

import pytest
import torch

from rlx.cli.start import run_train
from rlx.run import launch, load_policy
from tests.device import simulated
from tests.program import train_here

pytestmark = [pytest.mark.device, pytest.mark.skipif(simulated.COMPILER is None, reason="needs g++")]

RUNS = {
    "ppo": "algo=ppo env=CartPole agent.normalize_observation=true",
    "ppo continuous": "algo=ppo env=Pendulum",
    "ppo gru": "algo=ppo env=CartPole agent=gru",
    "ppo lstm": "algo=ppo env=Pendulum agent=lstm",
    "ppo transformer": "algo=ppo env=CartPole agent=transformer",
    "ppo options": "algo=ppo env=CartPole agent=options",
    "ppo population": "algo=ppo env=CartPole agent=population",
    "ppo images": "algo=ppo env=Pong agent=conv algo.num_epochs=1",
    "a2c": "algo=a2c env=CartPole",
    "reinforce": "algo=reinforce env=CartPole batcher=episodes",
    "dqn": "algo=dqn env=CartPole",
    "dqn quantiles by priority": "algo=dqn env=CartPole algo.prioritized_alpha=0.6 agent.num_quantiles=8",
    "dqn recurrent": "algo=dqn env=CartPole agent=recurrent_q_network algo.batch_size=8",
    "dqn recurrent by priority": "algo=dqn env=CartPole agent=recurrent_q_network algo.prioritized_alpha=0.6",
    "dqn hindsight": "experiment=dqn_bitflip",
    "hdqn": "experiment=hdqn_errand",
    "sac": "algo=sac env=Pendulum",
    "sac recurrent": "algo=sac env=Pendulum agent=recurrent_soft_actor_critic algo.batch_size=8",
    "sac hindsight": "experiment=sac_pointreach",
    "diayn": "algo=diayn env=PointReach",
}
SMALL = ["batcher=local", "batcher.envs_per_worker=4", "total_steps=512", "logger=csv", "logger.console=false"]
TIMES = ("speed/", "system/", "time/", "wall_time", "eval/cpu")


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find = launch.find_device
    monkeypatch.setattr(launch, "find_device", lambda name: torch.device("sim:0") if name == "sim" else find(name))


def small(run: str) -> list[str]:
    """Return a run's overrides, made small: as an off-policy algorithm learns soon, and seldom."""
    words = run.split()
    if "algo=dqn" in words or "algo=sac" in words or "experiment=" in run:
        words += ["algo.learning_starts=128", "algo.num_updates=2"]
    elif "diayn" not in run and "episodes" not in run:
        words += ["algo.num_steps=32"]
    if "batcher=episodes" in words:
        return [*words, "batcher.workers=local", *SMALL[1:]]
    return [*SMALL, *words]


def rows(directory: str) -> list[dict[str, float]]:
    with open(f"{directory}/metrics.csv", newline="", encoding="utf-8") as file:
        return [
            {key: float(value) for key, value in row.items() if value and not key.startswith(TIMES)}
            for row in csv.DictReader(file)
        ]


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert math.isclose(value, other[key], rel_tol=1e-3, abs_tol=1e-4), (key, value, other[key])


@pytest.mark.parametrize("name", RUNS)
def test_learning_on_a_device_gives_the_numbers_of_the_cpu(name: str) -> None:
    evaluation = ["evaluation.every=256", "evaluation.episodes=2"]
    for device in ("cpu", "sim"):
        assert train_here(*small(RUNS[name]), *evaluation, f"device={device}", f"run_dir={device}") == 0
    assert_close(rows("sim"), rows("cpu"))
    there, here = (load_policy(device).agent.state_dict() for device in ("sim", "cpu"))
    for key, value in here.items():
        assert there[key].device.type == "cpu"
        torch.testing.assert_close(there[key], value, rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["ppo", "ppo gru", "dqn quantiles by priority", "dqn recurrent", "sac"])
def test_a_run_on_a_device_goes_on_from_its_checkpoint_as_one_on_the_cpu_does(name: str) -> None:
    for device in ("cpu", "sim"):
        words = [*small(RUNS[name]), f"device={device}", "checkpoint.buffer=true", "total_steps=256"]
        assert train_here(*words, f"run_dir={device}") == 0
        run_train([f"resume={device}", "total_steps=512"])
    assert_close(rows("sim"), rows("cpu"))


@pytest.mark.parametrize("learner", ["sim", "cpu"])
@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn"])
@pytest.mark.parametrize("mode", ["next_step", "same_step", "none"])
def test_environments_on_a_device_give_the_numbers_of_those_on_the_cpu(mode: str, algo: str, learner: str) -> None:
    words = [*small(f"algo={algo} env=CartPoleTorch"), f"env.autoreset={mode}", "env.max_episode_steps=40"]
    assert train_here(*words, "run_dir=cpu") == 0
    assert train_here(*words, "env.device=sim", f"device={learner}", "run_dir=sim") == 0
    assert_close(rows("sim"), rows("cpu"))

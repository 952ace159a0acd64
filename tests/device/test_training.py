"""Every algorithm learns on another device to the numbers of the CPU, is evaluated, and goes on from checkpoints.

What draws its noise where the learner is (SAC and DIAYN) has other numbers on a GPU, whose generators are its own.
"""

import csv
import math
from pathlib import Path

import pytest
import torch

from rlx.batcher.handles import LocalHandle
from rlx.batcher.worker_options import WorkerOptions
from rlx.cli.start import run_train
from rlx.run import launch, load_policy
from tests.device.simulated import ACCELERATORS
from tests.program import train_here

pytestmark = pytest.mark.parametrize("place", ACCELERATORS)

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


def draws_where_it_learns(run: str) -> bool:
    """Return whether the algorithm's noise is drawn on the learner's device."""
    return run.startswith(("sac", "diayn"))


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
def test_learning_on_a_device_gives_the_numbers_of_the_cpu(name: str, place: str) -> None:
    evaluation = ["evaluation.every=256", "evaluation.episodes=2"]
    for device in ("cpu", place):
        assert train_here(*small(RUNS[name]), *evaluation, f"device={device}", f"run_dir={device}") == 0
    there, here = (load_policy(device).agent.state_dict() for device in (place, "cpu"))
    assert {value.device.type for value in there.values()} == {"cpu"}
    if place == "cuda" and draws_where_it_learns(name):
        assert [row.keys() for row in rows(place)] == [row.keys() for row in rows("cpu")]
        return
    assert_close(rows(place), rows("cpu"))
    for key, value in here.items():
        if place == "sim":
            torch.testing.assert_close(there[key], value, rtol=1e-3, atol=1e-3, msg=key)
        else:  # where a gradient is nearly 0, rounding is its sign, and Adam's whole step
            far = float((there[key] - value).double().norm() / value.double().norm().clamp(min=1e-6))
            assert far < 1e-2, (key, far)


@pytest.mark.parametrize("name", ["ppo", "ppo gru", "dqn quantiles by priority", "dqn recurrent", "sac"])
def test_a_run_on_a_device_goes_on_from_its_checkpoint_as_one_on_the_cpu_does(name: str, place: str) -> None:
    """On a GPU that draws its own noise: as one that was stopped and went on at the same place there, a second time."""
    other = place if place == "cuda" and draws_where_it_learns(name) else "cpu"
    for run, device in (("here", other), ("there", place)):
        words = [*small(RUNS[name]), f"device={device}", "checkpoint.buffer=true", "total_steps=256"]
        assert train_here(*words, f"run_dir={run}") == 0
        run_train([f"resume={run}", "total_steps=512"])
    assert_close(rows("there"), rows("here"))


@pytest.mark.parametrize("mode", ["next_step", "same_step", "none"])
def test_environments_on_a_device_serve_workers_whose_memory_is_the_hosts(
    mode: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As workers in processes are; one in this process is made to. The policy acts on the CPU, to its numbers."""
    make = LocalHandle.__init__

    def make_with_memory_on_the_host(self: LocalHandle, options: WorkerOptions) -> None:
        make(self, options)
        self.device = torch.device("cpu")

    monkeypatch.setattr(LocalHandle, "__init__", make_with_memory_on_the_host)
    words = [*small("algo=ppo env=CartPoleTorch"), f"env.autoreset={mode}", "env.max_episode_steps=40"]
    words += ["evaluation.every=256", "evaluation.episodes=2"]
    assert train_here(*words, "run_dir=here") == 0
    assert train_here(*words, f"env.device={place}", "run_dir=there") == 0
    assert_close(rows("there"), rows("here"))


@pytest.mark.parametrize("name", ["ppo", "sac", "dqn quantiles by priority"])
@pytest.mark.parametrize("goes_there", [True, False])
def test_a_run_goes_on_on_another_device(goes_there: bool, name: str, place: str) -> None:
    """Exact it is not, and says so: a GPU's generators are others, and its sums are rounded otherwise."""
    devices = ("cpu", place) if goes_there else (place, "cpu")
    words = [*small(RUNS[name]), "checkpoint.buffer=true", "total_steps=256", "evaluation.every=128"]
    assert train_here(*words, f"device={devices[0]}", "run_dir=run") == 0
    run_train(["resume=run", "total_steps=512", f"device={devices[1]}"])
    assert rows("run")[-1]["env_steps"] == 512
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert f"resume: exact=false: device is {devices[1]} and was {devices[0]}: sums are rounded otherwise" in log
    assert ("exact=false: noise: drawn anew" in log) == (place == "cuda" and name == "sac")


@pytest.mark.parametrize("goes_there", [True, False])
def test_environments_go_on_on_another_device(goes_there: bool, place: str) -> None:
    devices = ("cpu", place) if goes_there else (place, "cpu")
    words = [*small("algo=ppo env=CartPoleTorch agent=gru"), "total_steps=256"]
    assert train_here(*words, f"env.device={devices[0]}", "run_dir=run") == 0
    run_train(["resume=run", "total_steps=512", f"env.device={devices[1]}"])
    assert rows("run")[-1]["env_steps"] >= 512
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert f"resume: exact=false: env.device is {devices[1]} and was {devices[0]}" in log
    assert ("actions are drawn anew" in log) == (place == "cuda")


@pytest.mark.parametrize("learner_is_there", [True, False])
@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn"])
@pytest.mark.parametrize("mode", ["next_step", "same_step", "none"])
def test_environments_on_a_device_give_the_numbers_of_those_on_the_cpu(
    mode: str, algo: str, learner_is_there: bool, place: str
) -> None:
    """On a GPU, which draws its own actions, that there are as many as there should be."""
    words = [*small(f"algo={algo} env=CartPoleTorch"), f"env.autoreset={mode}", "env.max_episode_steps=40"]
    learner = place if learner_is_there else "cpu"
    words += ["evaluation.every=256", "evaluation.episodes=2"]
    assert train_here(*words, "run_dir=cpu") == 0
    assert train_here(*words, f"env.device={place}", f"device={learner}", f"run_dir={place}") == 0
    if place == "cuda":
        assert rows(place)[-1]["env_steps"] >= 512
        assert all(math.isfinite(value) for row in rows(place) for value in row.values())
    else:
        assert_close(rows(place), rows("cpu"))


@pytest.mark.parametrize("member", ["ActorCritic", "TransformerActorCritic"])
def test_a_population_acts_where_its_environments_are(member: str, place: str) -> None:
    """On a GPU, which draws its own actions, that there are as many as there should be."""
    words = [*small("algo=ppo env=CartPoleTorch agent=population"), "evaluation.every=256", "evaluation.episodes=2"]
    if member == "TransformerActorCritic":  # one that reads its history
        keys = "num_layers:1,window:8,model_size:16,num_heads:2,feedforward_size:16,activation:tanh"
        keys += ",critic_hidden_sizes:[8],prev_action:false,prev_reward:false,log_std_init:0.0"
        words += ["~agent.members.second", f"+agent.members.second={{_target_:rlx.agent.{member},{keys}}}"]
    assert train_here(*words, "run_dir=cpu") == 0
    assert train_here(*words, f"env.device={place}", f"run_dir={place}") == 0
    if place == "cuda":
        assert rows(place)[-1]["env_steps"] >= 512
    else:
        assert_close(rows(place), rows("cpu"))

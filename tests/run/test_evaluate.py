"""`evaluate_path`: exactly N whole episodes, none preferred, from a checkpoint that is what it says."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium
import pytest
import torch

from rlx.agent import ActorCritic
from rlx.batcher.draws import Draws
from rlx.env import make
from rlx.errors import AgentError, CheckpointError, EnvironmentFault, RlxError, UserError, WorkerError
from rlx.run.checkpoint import load_checkpoint, save_checkpoint
from rlx.run.evaluate import Evaluator, evaluate_path
from rlx.run.metrics import read_metrics
from rlx.seeding import env_seed
from tests.run.jobs import SMALL, train

OWN = "tests.run.short_and_long:ShortAndLong-v0"


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("cartpole") / "run", *SMALL, "total_steps=64")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("own") / "run", *SMALL, "total_steps=64", "env=gym", f"env.id={OWN}")


def forged(source: Path, target: Path, change: Callable[[dict], None]) -> Path:
    """Write the run's checkpoint again, with another configuration."""
    old = load_checkpoint(next((source / "checkpoints").iterdir()))
    config = json.loads(json.dumps(old.config))
    change(config)
    return save_checkpoint(target, old.state, config, old.meta)


@pytest.mark.parametrize("episodes", [1, 5, 130])
def test_episodes_are_exactly_as_many_and_short_ones_are_not_preferred(own: Path, episodes: int) -> None:
    found = evaluate_path(own, episodes=episodes, seed=7, trust=True)
    num_envs = 2 * -(-min(episodes, 128) // 2) if episodes > 1 else 1
    wanted, env = [], [gymnasium.make(OWN) for _ in range(num_envs)]
    for turn in range(-(-episodes // num_envs)):
        for row in range(num_envs):
            env[row].reset(seed=None if turn else env_seed(7, row, evaluation=True))
            wanted.append(env[row].unwrapped._left)
    assert found.lengths == wanted[:episodes]
    assert found.returns == [float(length) for length in wanted[:episodes]]
    assert found.mean == sum(wanted[:episodes]) / episodes


def test_seed_decides_and_stochastic_differs_from_deterministic(cartpole: Path) -> None:
    def returns(seed: int, stochastic: bool = False) -> list[float]:
        return evaluate_path(cartpole, episodes=6, seed=seed, stochastic=stochastic).returns

    assert returns(1) == returns(1) != returns(2)
    assert returns(1, True) == returns(1, True) != returns(1)


def test_run_and_its_checkpoint_are_the_same_to_evaluate(cartpole: Path) -> None:
    (checkpoint,) = (cartpole / "checkpoints").iterdir()
    assert evaluate_path(checkpoint, episodes=2) == evaluate_path(cartpole, episodes=2)


@pytest.mark.parametrize("episodes", [3, 10, 14])
def test_environments_of_a_mixed_batch_count_alike(cartpole: Path, tmp_path: Path, episodes: int) -> None:
    pays = [
        {"id": "CartPole-v1"},
        {"id": "CartPole-v1", "kwargs": {"sutton_barto_reward": True}},
    ]  # 1 a step, or -1 once
    env = {"_target_": "rlx.env.make_mixed", "members": pays}
    found = evaluate_path(forged(cartpole, tmp_path, lambda config: config.update(env=env)), episodes=episodes)
    assert sum(value < 0 for value in found.returns) == episodes // 2
    assert len(found.returns) == episodes
    assert found.environment_names == ["CartPole-v1", "CartPole-v1"]
    assert found.environments == [int(value < 0) for value in found.returns]


def test_evaluations_beside_training_tell_the_mean_of_each_environment_and_of_each_member(tmp_path: Path) -> None:
    members = "env.members=[{id: CartPole-v1, max_episode_steps: 3}, {id: CartPole-v1, max_episode_steps: 5}]"
    played = ("evaluation.every=32", "evaluation.episodes=3", "total_steps=32", "logger.console=false")
    run = train(tmp_path / "run", "env=mixed", members, "batcher=local", "batcher.envs_per_worker=2", *played, *SMALL)
    (row,) = (row for row in read_metrics(run / "metrics.csv") if row["eval/return"] is not None)
    assert (row["eval/return/0"], row["eval/return/1"], row["eval/return"]) == (3.0, 5.0, pytest.approx(11 / 3))
    members = train(tmp_path / "members", "agent=population", "batcher=local", "batcher.envs_per_worker=2", *played)
    (row,) = (row for row in read_metrics(members / "metrics.csv") if row["eval/return"] is not None)
    assert (2 * row["eval/return/first"] + row["eval/return/second"]) / 3 == pytest.approx(row["eval/return"])
    alone = train(tmp_path / "alone", "env=CartPole", "batcher=local", "batcher.envs_per_worker=2", *played, *SMALL)
    assert not any(key.startswith("eval/return/") for row in read_metrics(alone / "metrics.csv") for key in row)


@pytest.mark.parametrize("episodes", [2, 6])  # of two workers with one environment each, or three
def test_evaluations_beside_training_deal_a_population_as_those_of_its_checkpoints(
    tmp_path: Path, episodes: int
) -> None:
    beside = "evaluation.every=32", f"evaluation.episodes={episodes}", "total_steps=32", "logger.console=false"
    workers = "batcher=process", "batcher.num_workers=2", "batcher.envs_per_worker=2"
    run = train(tmp_path / "run", "env=CartPole", "agent=population", *SMALL, *workers, *beside)
    (row,) = (row for row in read_metrics(run / "metrics.csv") if row["eval/return"] is not None)
    found = evaluate_path(run, episodes=episodes)
    assert found.policies == [0, 1] * (episodes // 2)
    assert row["eval/return"] == found.mean


@pytest.mark.parametrize("name", ["episodes", "num_workers"])
def test_no_episodes_and_no_workers_are_refused_by_name(cartpole: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: expected an integer >= 1, got 0"):
        evaluate_path(cartpole, **{"episodes": 1, name: 0})


def ill(source: Path, target: Path, wrapper: str, **watched: object) -> Path:
    """Return the run's checkpoint as one whose environment is ill, and was watched so."""

    def change(config: dict) -> None:
        config["env"]["wrappers"] = [f"tests.run.ill.{wrapper}"]
        config["batcher"] |= watched

    target.mkdir()
    return forged(source, target, change)


def test_numbers_that_are_none_pass_where_they_passed_in_training(cartpole: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"reward.*nan"):
        evaluate_path(ill(cartpole, tmp_path / "checked", "PaysNothingKnown"), episodes=1, trust=True)
    unchecked = ill(cartpole, tmp_path / "unchecked", "PaysNothingKnown", check_finite=False)
    assert evaluate_path(unchecked, episodes=1, trust=True).lengths[0] > 0


def test_evaluations_of_a_run_let_pass_what_its_training_lets_pass(tmp_path: Path) -> None:
    words = ["env.wrappers=[tests.run.ill.PaysNothingKnown]", "batcher.check_finite=false", "evaluation.every=32"]
    words += ["algo=dqn", "algo.learning_starts=1000", "evaluation.episodes=2"]
    run = train(tmp_path / "run", *SMALL[:4], "total_steps=64", *words)
    assert "eval/return" in (run / "metrics.csv").read_text()


def test_an_environment_that_hangs_ends_the_evaluation_as_it_ends_training(cartpole: Path, tmp_path: Path) -> None:
    hangs = ill(cartpole, tmp_path / "hangs", "NeverAnswers", step_timeout=0.3)
    with pytest.raises(WorkerError, match=r"(?s)^evaluation's worker 0 .*hangs\. batcher\.step_timeout=0\.3 sets"):
        evaluate_path(hangs, episodes=1, trust=True)


def test_a_checkpoint_that_was_watched_in_no_known_way_is_refused(cartpole: Path, tmp_path: Path) -> None:
    odd = ill(cartpole, tmp_path / "odd", "NeverAnswers", step_timeout="soon")
    with pytest.raises(CheckpointError, match=r"cannot be rebuilt: batcher\.step_timeout: expected .*, got 'soon'"):
        evaluate_path(odd, episodes=1, trust=True)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            evaluate_path(path)
    save_checkpoint(tmp_path, {"table": {"a": 1}}, {}, {"env_steps": 1})
    with pytest.raises(CheckpointError, match="no agent and environment"):
        evaluate_path(tmp_path / "checkpoints/step-000000001")


def test_truncated_checkpoint_is_refused(cartpole: Path, tmp_path: Path) -> None:
    (source,) = (cartpole / "checkpoints").iterdir()
    broken = shutil.copytree(source, tmp_path / source.name)
    tensors = broken / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors"):
        evaluate_path(broken)


def test_checkpoint_of_another_environment_is_refused(cartpole: Path, tmp_path: Path) -> None:
    path = forged(cartpole, tmp_path, lambda config: config["env"].update(id="Acrobot-v1"))
    with pytest.raises(CheckpointError, match="another environment"):
        evaluate_path(path)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("env", "id", "never_imported:Any-v0"),
        ("env", "_target_", "never_imported.make"),
        ("env", "wrappers", ["never_imported.Wrapper"]),
        ("env", "wrappers", [{"never_imported.Wrapper": {"a": 1}}]),
        ("agent", "_target_", "never_imported.Agent"),
        ("batcher", "env_info", {"_target_": "never_imported.sample"}),
    ],
)
def test_code_that_a_checkpoint_names_is_not_imported_untrusted(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, key: str, value: object
) -> None:
    marker = tmp_path / "imported"  # by this process or by a worker
    (tmp_path / "never_imported.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = forged(cartpole, tmp_path, lambda config: config[group].update({key: value}))
    with pytest.raises(CheckpointError, match=r"never_imported.*--trust"):
        evaluate_path(path)
    assert not marker.exists()
    try:
        with pytest.raises(RlxError):  # the module is empty
            evaluate_path(path, trust=True)
    finally:
        sys.modules.pop("never_imported", None)
    assert marker.exists()


def test_code_that_a_member_of_a_mixed_batch_names_is_not_imported_untrusted(cartpole: Path, tmp_path: Path) -> None:
    for member in ({"id": "never_imported:Any-v0"}, {"id": "CartPole-v1", "wrappers": ["never_imported.Wrapper"]}):
        env = {"_target_": "rlx.env.make_mixed", "members": [{"id": "CartPole-v1"}, member]}
        path = forged(cartpole, tmp_path, lambda config, env=env: config.update(env=env))
        with pytest.raises(CheckpointError, match=r"never_imported.*--trust"):
            evaluate_path(path)


class Skilled(ActorCritic):
    """Cannot act without a skill."""

    def forward(self, observation, state, agent_info, taken=None):
        assert agent_info["skill"].dtype is torch.int64
        return super().forward(observation, state, agent_info, taken)

    def actor(self) -> "Skilled":
        return self


def test_an_agent_that_needs_what_only_its_algorithm_tells_it_is_refused_with_what_it_is_told() -> None:
    make_agent = partial(Skilled, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    evaluator = partial(Evaluator, make_agent, partial(make, "CartPole-v1"), episodes=2, seed=0, workers="local")
    with evaluator(agent_info=Draws({"skill": 1}, "batcher.agent_info")) as told:
        agent = make_agent(told.start().specs)
        assert len(told.play(agent).returns) == 2
    message = r"evaluation: no field 'skill' .* is 'deterministic' and what batcher\.agent_info"
    with evaluator() as alone, pytest.raises(AgentError, match=message):
        alone.play(agent)

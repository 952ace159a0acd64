"""Evaluation of runs from outside, with real checkpoints."""

import csv
import logging
import shutil
from pathlib import Path

import pytest
import torch

from rlx.errors import CheckpointError
from rlx.run.agent_info import settled
from rlx.run.policy import load_policy
from rlx.tools.evaluate import evaluate_paths, shares_of

from ..cli.test_commands import call
from ..program import rlx_train
from .made_runs import make_run
from .trained import MIXED, Trained, trained_once

KINDS = {
    "population": ["env=CartPole", "agent=population", "batcher=local"],
    "drawn": ["env=CartPole", "agent=population", "batcher=local", "+batcher.agent_info.policy={choice: [0, 1]}"],
    "skills": ["env=Pendulum", "algo=diayn", "batcher=local", "env.max_episode_steps=40", "total_steps=300"],
    "mixed": MIXED,
    "both": [*MIXED, "agent=population", "batcher=local", "batcher.envs_per_worker=4"],
    "dqn": ["env=CartPole", "algo=dqn", "batcher=local", "total_steps=300"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a short run of a kind, trained when it is first asked for."""
    return trained_once(KINDS, tmp_path_factory)


def test_all_checkpoints_of_a_run_make_a_curve_over_the_same_episodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = rlx_train(tmp_path, "run_dir=run", "batcher=local", "checkpoint.every=32")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    found = evaluate_paths([run], all_checkpoints=True, episodes=3)
    assert [one["env_steps"] for one in found] == [32, 64]
    assert [Path(one["path"]).name for one in found] == ["step-000000032", "step-000000064"]
    (newest,) = evaluate_paths([run], episodes=3)
    assert newest["path"] == str(run)
    assert newest["returns"] == found[1]["returns"]
    low, high = newest["interval"]
    assert min(newest["returns"]) <= low <= newest["mean"] <= high <= max(newest["returns"])
    assert newest["median"] == sorted(newest["returns"])[1]
    folder = run / "checkpoints"
    assert evaluate_paths([folder], all_checkpoints=True, episodes=3) == found

    (folder / "step-000000064" / "state.json").write_text("damaged")
    with caplog.at_level(logging.WARNING, logger="rlx"):
        assert evaluate_paths([run], all_checkpoints=True, episodes=3) == found[:1]
    (said,) = caplog.messages
    assert "step-000000064': 'state.json' is truncated or damaged" in said
    assert said.endswith("; it is left out")
    (folder / "step-000000032" / "state.json").write_text("damaged")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        evaluate_paths([run], all_checkpoints=True, episodes=3)


def test_what_cannot_be_played_is_found_before_anything_plays(trained: Trained, tmp_path: Path) -> None:
    run = trained("population")
    (checkpoint,) = (run / "checkpoints").iterdir()
    damaged = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (damaged / "config.json").unlink()
    for wrong, message in ((damaged, "'config.json' is missing"), (tmp_path / "nothing", "does not exist")):
        with pytest.raises(CheckpointError, match=message):
            evaluate_paths([run, wrong], episodes=-1)  # which nobody can play


def test_run_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="run' has no checkpoint"):
        evaluate_paths([make_run(tmp_path / "run")], all_checkpoints=True)


def test_a_population_says_which_policy_played_each_episode(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    mix, other = evaluate_paths([trained("population"), trained("skills")], episodes=5, csv_path=table)
    assert (mix["members"], mix["policies"]) == (["first", "second"], [0, 1, 0, 1, 0])
    assert (other["members"], other["policies"]) == (None, None)
    (alone,) = evaluate_paths([trained("population")], episodes=5, agent_info=["policy=1"])
    assert alone["policies"] == [1] * 5
    assert alone["returns"][1::2] == mix["returns"][1::2]  # the same policy in the same environments
    assert shares_of(alone) == [f"policy 1 (second) of 2: return {alone['mean']:.2f} over 5 episodes"]
    assert shares_of(mix)[0] == f"policy 0 (first) of 2: return {sum(mix['returns'][::2]) / 3:.2f} over 3 episodes"
    assert shares_of(other) == []
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["policy"] for row in rows] == ["0", "1", "0", "1", "0", *[""] * 5]
    (third,) = evaluate_paths([trained("skills")], episodes=5, agent_info=["skill=3"])
    assert third["returns"] != other["returns"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_member_of_a_population_plays_in_each_environment_of_a_mixed_batch(
    trained: Trained, num_workers: int
) -> None:
    (found,) = evaluate_paths([trained("both")], episodes=6, num_workers=num_workers)
    assert found["policies"] == [0, 0, 1, 1, 0, 0]
    assert found["environments"] == [0, 1] * 3


def test_what_was_trained_in_several_environments_says_in_which_each_episode_was(
    trained: Trained, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    (found,) = evaluate_paths([trained("mixed")], episodes=3, csv_path=table)
    assert (found["environment_names"], found["environments"]) == (["CartPole-v1", "CartPole-v1"], [0, 1, 0])
    assert found["lengths"] == [5, 7, 5]
    assert shares_of(found) == [
        "environment 0 (CartPole-v1) of 2: return 5.00 over 2 episodes",
        "environment 1 (CartPole-v1) of 2: return 7.00 over 1 episodes",
    ]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert ([row["environment"] for row in rows], "policy" in rows[0]) == (["0", "1", "0"], False)


def test_what_is_typed_takes_the_place_of_what_the_run_draws(trained: Trained) -> None:
    (drawn,) = evaluate_paths([trained("drawn")], episodes=12)
    assert set(drawn["policies"]) == {0, 1}
    policy = settled(load_policy(trained("drawn")), ["policy=1"], deterministic=True)
    assert [int(policy.samplers["agent_info"](row, torch.Generator())["policy"]) for row in range(4)] == [1] * 4


def test_exploration_is_chosen_by_name_where_actions_are_drawn(trained: Trained) -> None:
    policy = settled(load_policy(trained("dqn")), ["epsilon=0.05"], deterministic=False)
    assert policy.samplers["agent_info"](0, torch.Generator()) == {"epsilon": torch.tensor(0.05)}


@pytest.mark.parametrize(
    ("kind", "told", "message"),
    [
        ("population", "policy=2", "--agent-info policy: got 2, expected which of its members it is: 0 (first), 1 (se"),
        ("population", "policy=0.5", "--agent-info policy: got 0.5, expected which of its members it is: 0 (first)"),
        ("population", "polcy=1", "--agent-info: the agent does not look at 'polcy'; it looks at policy. Did you mean"),
        ("population", "policy", "--agent-info: got 'policy', expected KEY=VALUE, such as skill=3"),
        ("population", "deterministic=false", "--agent-info deterministic: the policy's mode is taken anyway, but for"),
        ("skills", "skill=99", "--agent-info: the agent cannot act with skill=99: agent_info['skill']: got 99, expec"),
        ("skills", "skill=[1, 2]", "--agent-info: the agent cannot act with skill=[1, 2]: RuntimeError: "),
        ("dqn", "policy=1", "--agent-info: the agent does not look at 'policy'; it looks at epsilon."),
        ("dqn", "epsilon=0.1", "--agent-info: the agent looks at 'epsilon' only where it draws; add --stochastic"),
    ],
)
def test_a_wrong_agent_info_is_one_line_and_status_2(
    kind: str, told: str, message: str, trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(trained(kind))
    capfd.readouterr()
    assert call("eval", run, "--episodes", "2", "--agent-info", told) == 2
    out, err = capfd.readouterr()
    assert (out, err.startswith(f"Error: {message}"), err.count("\n")) == ("", True, 1), err


def test_the_command_tells_of_each_member_also_where_each_worker_has_one_environment(
    trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(trained("population"))
    capfd.readouterr()
    assert call("eval", run, "--episodes", "2") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition(": return")[0] for line in lines[2:]] == [
        "  policy 0 (first) of 2",
        "  policy 1 (second) of 2",
    ]
    assert all(line.endswith("over 1 episodes") for line in lines[2:])

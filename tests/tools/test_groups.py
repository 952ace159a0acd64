"""Which runs are seeds of one another."""

from pathlib import Path

import pytest

from rlx.errors import ConfigError, RunDirectoryError
from rlx.tools.groups import group_runs

from .made_runs import make_run


def labels(runs: list[Path], by: list[str] | None = None) -> list[tuple[str, str, int]]:
    return [(group.env, group.label, len(group.runs)) for group in group_runs(runs, by)]


def test_seeds_are_one_group(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    assert labels(runs) == [("CartPole-v1", "ppo", 3)]


def test_algorithms_and_environments_are_told_apart_and_their_own_numbers_are_not_told(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "0", algo="ppo", clip_coef=0.2),
        make_run(tmp_path / "1", algo="a2c"),
        make_run(tmp_path / "2", algo="ppo", env="Acrobot-v1", clip_coef=0.1),
    ]
    assert labels(runs) == [("CartPole-v1", "ppo", 1), ("CartPole-v1", "a2c", 1), ("Acrobot-v1", "ppo", 1)]


def test_numbers_that_differ_name_the_groups(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{lr}-{seed}", seed=seed, learning_rate=lr) for lr in (0.001, 0.1) for seed in (0, 1)]
    assert labels(runs) == [("CartPole-v1", "learning_rate=0.001", 2), ("CartPole-v1", "learning_rate=0.1", 2)]


def test_keys_that_are_named_decide(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{lr}{g}", learning_rate=lr, gamma=g) for lr in (0.001, 0.1) for g in (0.9, 0.99)]
    assert labels(runs, ["algo.gamma"]) == [("CartPole-v1", "gamma=0.9", 2), ("CartPole-v1", "gamma=0.99", 2)]
    with pytest.raises(ConfigError, match=r"--by: no run has a key 'algo.gama'. Did you mean 'algo.gamma'"):
        group_runs(runs, ["algo.gama"])


def test_another_agent_is_told_by_its_name_alone(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "0"), make_run(tmp_path / "1")]
    text = (runs[1] / "config.yaml").read_text()
    text = text.replace("rlx.agent.ActorCritic", "rlx.agent.Transformer").replace("hidden_sizes", "num_layers")
    (runs[1] / "config.yaml").write_text(text)
    assert [label for _, label, _ in labels(runs)] == ["agent=ActorCritic", "agent=Transformer"]


def test_groups_that_differ_in_much_are_called_by_their_folders(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"trial-{g}" / f"seed-{seed}", seed=seed, **{f"a_long_key_{n}": g * n for n in range(1, 9)})
        for g in (3, 4)
        for seed in (0, 1)
    ]
    assert labels(runs) == [("CartPole-v1", "trial-3", 2), ("CartPole-v1", "trial-4", 2)]
    assert labels(runs[::2])[0][1].startswith("a_long_key_1=3"), "of one run each, both folders are called seed-0"


def test_one_that_cannot_be_read_is_left_out_and_named_where_others_can(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    (runs[1] / "config.yaml").write_text("::: [")
    notes: list[str] = []
    (group,) = group_runs(runs, notes=notes)
    assert group.runs == (runs[0], runs[2])
    assert len(notes) == 1
    assert notes[0].startswith(f"left out: '{runs[1] / 'config.yaml'}' is not valid YAML")
    for given, told in ((runs, None), (runs[1:2], [])):
        with pytest.raises(RunDirectoryError, match="is not valid YAML"):
            group_runs(given, notes=told)

"""`algo.hindsight` on the command line's way: what it takes, what it refuses before a run exists."""

from pathlib import Path

import pytest

from rlx.errors import ConfigError, RlxError, SpecError
from rlx.run.metrics import read_metrics
from tests.learning.test_ppo import trained

SMALL = (
    "batcher=local", "batcher.envs_per_worker=2", "total_steps=64", "algo.num_steps=8", "algo.num_updates=1",
    "algo.learning_starts=8", "algo.buffer_size=200", "algo.hindsight=0.8",
)  # fmt: skip


def tried(tmp_path: Path, *overrides: str) -> Path:
    return trained(tmp_path / "run", *SMALL, *overrides)


@pytest.mark.parametrize("env", ["Line", "OneAtATime"])
def test_a_gymnasium_environment_with_goals_trains_with_hindsight(tmp_path: Path, env: str) -> None:
    run = tried(tmp_path, "algo=dqn", "env=gym", f"env.id=tests.env.goal_envs:{env}-v0", "env.reward_scale=0.5")
    assert all(row["loss/total"] is not None for row in read_metrics(run / "metrics.csv")[1:])


def test_a_mixture_of_one_is_asked_as_that_one(tmp_path: Path) -> None:
    tried(tmp_path, "algo=dqn", "env=mixed", "env.members=[{id: tests.env.goal_envs:Line-v0}]")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("env=CartPole",), ConfigError, "shows no achieved_goal and no desired_goal .*such as env=BitFlip"),
        (("env=gym", "env.id=tests.env.goal_envs:Mute-v0"), RlxError, "compute_terminated"),
        (("env=gym", "env.id=tests.env.goal_envs:Costly-v0"), SpecError, "a step paid -1.5, but .* it pays -1"),
        (
            ("env=mixed", "env.members=[{id: tests.env.goal_envs:Line-v0}, {id: tests.env.goal_envs:OneAtATime-v0}]"),
            ConfigError,
            "algo.hindsight: got 0.8, but env=mixed has 2 environments .*does not say which of them .*; "
            "expected one environment; or algo.hindsight=null",
        ),
        (("env=BitFlip", "agent=recurrent_q_network"), RlxError, "recurrent"),
    ],
    ids=["no goals", "no compute_terminated", "costs", "several environments", "recurrent"],
)
def test_what_hindsight_cannot_do_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], error: type[RlxError], message: str
) -> None:
    with pytest.raises(error, match=message):
        tried(tmp_path, "algo=dqn", *overrides)
    assert "Costly" in str(overrides) or not (tmp_path / "run").exists()

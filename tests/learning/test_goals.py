"""Goals in hindsight and options of two levels: each learns what plain DQN and SAC do not, in about a minute."""

from pathlib import Path

import pytest

from rlx.run.evaluate import evaluate_path
from tests.learning.test_ppo import trained

pytestmark = pytest.mark.learning

BITS = ("experiment=dqn_bitflip", "env.num_bits=10", "total_steps=20_000")
PLACE = ("experiment=sac_pointreach", "total_steps=12_000")
ERRAND = ("env=Errand", "batcher=local", "env.length=12", "total_steps=20_000")


@pytest.mark.parametrize("task", [BITS, PLACE], ids=["dqn", "sac"])
@pytest.mark.parametrize("hindsight", ["0.8", "null"])
def test_goals_that_chance_does_not_reach_are_learned_with_hindsight_alone(
    tmp_path: Path, task: tuple[str, ...], hindsight: str
) -> None:
    run = trained(tmp_path / "run", *task, f"algo.hindsight={hindsight}")
    success = evaluate_path(run, episodes=100).mean
    assert success >= 0.9 if hindsight == "0.8" else success <= 0.3


@pytest.mark.parametrize("algo", ["hdqn", "dqn"])
def test_an_errand_is_run_by_two_levels_and_not_by_one(tmp_path: Path, algo: str) -> None:
    run = trained(tmp_path / "run", f"algo={algo}", *ERRAND)
    mean = evaluate_path(run, episodes=200).mean
    assert mean >= 0.7 if algo == "hdqn" else mean <= 0.35  # 0.825 at best; 0.3 for coming home without

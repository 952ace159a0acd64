"""Agents with a memory and with structure learn what needs them."""

from pathlib import Path

import pytest

from rlx.run.evaluate import evaluate_path
from tests.learning.test_ppo import trained

pytestmark = pytest.mark.learning

RECALL = ("env=gym", "env.id=tests.learning.environments:Recall-v0", "total_steps=40_000")


@pytest.mark.parametrize("agent", ["gru", "lstm", "transformer"])
def test_a_memory_recalls_a_cue(tmp_path: Path, agent: str) -> None:
    run = trained(tmp_path / "run", f"agent={agent}", *RECALL)
    assert evaluate_path(run, episodes=200, trust=True).mean >= 0.99


def test_an_agent_without_a_memory_guesses_the_cue(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *RECALL)
    assert 0.35 <= evaluate_path(run, episodes=200, trust=True).mean <= 0.65


@pytest.mark.parametrize("agent", ["gru", "lstm", "transformer"])
def test_an_agent_with_a_memory_solves_cartpole(tmp_path: Path, agent: str) -> None:
    run = trained(tmp_path / "run", f"agent={agent}")
    assert evaluate_path(run, episodes=100, seed=1).mean >= 475

"""`scripts/plot_skills.py`, on a run that was just trained."""

import runpy
import sys
from pathlib import Path

import pytest

from .program import ROOT, train_here

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("env", ["Pendulum", "PointReach"])  # an array, and a Dict
def test_skills_of_any_observation_are_drawn(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["env.max_episode_steps=10", "total_steps=64", "algo.learning_starts=32", "agent.num_skills=2"]
    assert train_here("algo=diayn", f"env={env}", "agent.hidden_sizes=[8]", *short, f"run_dir={tmp_path / 'run'}") == 0
    monkeypatch.setattr(sys, "argv", ["plot_skills.py", str(tmp_path / "run"), str(tmp_path / "skills.png")])
    runpy.run_path(str(ROOT / "scripts" / "plot_skills.py"), run_name="__main__")
    assert "of 100 steps, 0.500 by chance" in capsys.readouterr().out
    assert (tmp_path / "skills.png").stat().st_size > 1000

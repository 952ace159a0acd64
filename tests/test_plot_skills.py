"""`scripts/plot_skills.py`, on a run that was just trained."""

import runpy
import sys
from pathlib import Path

import pytest

from .program import ROOT, train_here

pytest.importorskip("matplotlib")

DIAYN = ["algo=diayn", "agent.num_skills=2", "algo.learning_starts=32", "env.max_episode_steps=10", "total_steps=64"]
DIAYN += ["agent.hidden_sizes=[8]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that has skills, and one that has none."""
    folder = tmp_path_factory.mktemp("runs")
    assert train_here(*DIAYN, "env=Pendulum", f"run_dir={folder / 'diayn'}") == 0
    assert train_here("algo=ppo", "env=CartPole", "total_steps=64", f"run_dir={folder / 'ppo'}") == 0
    return folder


@pytest.mark.parametrize("env", ["Pendulum", "PointReach"])  # an array, and a Dict
def test_skills_of_any_observation_are_drawn(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(*DIAYN, f"env={env}", f"run_dir={tmp_path / 'run'}") == 0
    monkeypatch.setattr(sys, "argv", ["plot_skills.py", str(tmp_path / "run"), str(tmp_path / "skills.png")])
    runpy.run_path(str(ROOT / "scripts" / "plot_skills.py"), run_name="__main__")
    assert "of 100 steps, 0.500 by chance" in capsys.readouterr().out
    assert (tmp_path / "skills.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("run", "wrong", "message"),
    [
        ("nowhere", [], "nowhere' does not exist"),
        ("ppo", [], "ppo' has no skills that a discriminator tells apart; expected a run of algo=diayn"),
        ("diayn", ["--x", "7"], "--x, --y: got '7', expected a place from 0 to 2, or two of them as angle:0,1"),
        ("diayn", ["--y", "angle:0"], "got 'angle:0', expected a place"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    runs: Path,
    run: str,
    wrong: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn = tmp_path / "skills.png"
    monkeypatch.setattr(sys, "argv", ["plot_skills.py", str(runs / run), str(drawn), "--episodes", "1", *wrong])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "plot_skills.py"), run_name="__main__")
    told = capsys.readouterr().err
    assert (ended.value.code, drawn.exists(), told.count("\n")) == (2, False, 1)
    assert message in told

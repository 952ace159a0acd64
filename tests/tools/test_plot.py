"""Pictures of runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlx.errors import ConfigError, MissingPackageError, RunDirectoryError
from rlx.tools.plot import Kind, PlotOptions, parse_scales, plot_runs

from .made_runs import make_run

pytest.importorskip("matplotlib")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for env in ("CartPole-v1", "Acrobot-v1"):
        for better, algo in enumerate(("a2c", "ppo")):
            for seed in range(3):
                make_run(
                    tmp_path / "sweep" / f"{env}{algo}{seed}",
                    algo=algo,
                    env=env,
                    seed=seed,
                    returns=np.cumsum(rng.normal(1 + better, 0.1, 20)).tolist(),
                )
    return tmp_path / "sweep"


@pytest.mark.parametrize("kind", ["curves", "profile", "improvement"])
def test_folder_of_a_sweep_becomes_the_same_picture_each_time(sweep: Path, tmp_path: Path, kind: Kind) -> None:
    said = [plot_runs([sweep], tmp_path / name, PlotOptions(kind=kind, draws=50)) for name in ("1.svg", "2.svg")]
    assert said[0] == said[1]
    assert "CartPole-v1: a2c (3), ppo (3); Acrobot-v1: a2c (3), ppo (3)." in said[0][0] or (
        "Acrobot-v1: a2c (3), ppo (3); CartPole-v1: a2c (3), ppo (3)." in said[0][0]
    )
    text = (tmp_path / "1.svg").read_text()
    assert text == (tmp_path / "2.svg").read_text()
    wanted = {"curves": ["ppo", "a2c", "CartPole-v1", "Acrobot-v1", "environment steps"]}
    wanted |= {"profile": ["scaled score", "ppo", "a2c"], "improvement": ["ppo &gt; a2c"]}
    assert all(word in text for word in wanted[kind])


def test_a_dollar_is_a_dollar(sweep: Path, tmp_path: Path) -> None:
    plot_runs([sweep], tmp_path / "it.svg", PlotOptions(draws=20, title="cost $b^$"))
    assert "cost $b^$" in (tmp_path / "it.svg").read_text()


def test_picture_may_be_png(sweep: Path, tmp_path: Path) -> None:
    plot_runs([sweep], tmp_path / "it.png", PlotOptions(draws=20))
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_run_that_ended_early_is_told(sweep: Path, tmp_path: Path) -> None:
    make_run(sweep / "short", env="CartPole-v1", seed=9, returns=[1.0, 2.0, 3.0], total_steps=2000)
    said = plot_runs([sweep], tmp_path / "it.svg", PlotOptions(draws=20))
    assert any("the curve ends at 300 env_steps" in line and "short" in line for line in said)


@pytest.mark.parametrize("kind", ["profile", "improvement"])
def test_a_score_of_a_run_that_ended_early_is_told(sweep: Path, tmp_path: Path, kind: Kind) -> None:
    make_run(sweep / "short", env="CartPole-v1", seed=9, returns=[1.0, 2.0, 3.0], total_steps=2000)
    said = plot_runs([sweep], tmp_path / "it.svg", PlotOptions(kind=kind, draws=20))
    assert [line for line in said if "short" in line] == [
        f"CartPole-v1: the score of '{sweep / 'short'}' is of a run that ended early, at 300 env_steps; the longest "
        "one went to 2,000"
    ]


@pytest.mark.parametrize("kind", ["profile", "improvement"])
def test_a_run_alone_has_no_interval(tmp_path: Path, kind: Kind) -> None:
    for gamma in (0.9, 0.9999999, 1.0):  # and two that look alike are two
        make_run(tmp_path / str(gamma), gamma=gamma, returns=[1e17] * 3)
    said = plot_runs([tmp_path], tmp_path / "it.svg", PlotOptions(kind=kind, draws=20))
    assert "CartPole-v1: gamma=0.9 (1), gamma=0.9999999 (1), gamma=1 (1)." in said[0]
    assert (kind == "profile") or any("no interval, of fewer than 3 runs" in line for line in said)


def test_scores_are_scaled_as_asked(sweep: Path, tmp_path: Path) -> None:
    options = PlotOptions(kind="profile", draws=20, scales=parse_scales(["CartPole-v1=0:500"]))
    assert "CartPole-v1 0 to 500" in plot_runs([sweep], tmp_path / "it.svg", options)[0]


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (PlotOptions(metric="epsiode/return"), "Did you mean 'episode/return'"),
        (PlotOptions(axis="steps"), "--axis"),
        (PlotOptions(kind="profile", scales={"Pong": (0.0, 1.0)}), "--scale: no run is of 'Pong'"),
        (PlotOptions(kind="improvement", by=["algo.gamma"]), "two groups"),
    ],
)
def test_what_is_not_there_is_named(sweep: Path, tmp_path: Path, options: PlotOptions, fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        plot_runs([sweep], tmp_path / "it.svg", options)
    assert not (tmp_path / "it.svg").exists()


def test_wrong_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out: got '.*it.gif', expected a name that ends in .png"):
        plot_runs([tmp_path], tmp_path / "it.gif", PlotOptions())
    with pytest.raises(RunDirectoryError, match="there is no run in"):
        plot_runs([tmp_path], tmp_path / "it.svg", PlotOptions())
    with pytest.raises(ConfigError, match="expected ENV=LOW:HIGH"):
        parse_scales(["CartPole-v1=500"])


def test_missing_matplotlib_is_one_message(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rlx\[plot\]'"):
        plot_runs([sweep], tmp_path / "it.svg", PlotOptions())


def test_drawing_needs_neither_torch_nor_pyplot(sweep: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from rlx.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'matplotlib.pyplot', 'hydra') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "plot", str(sweep), "--out", str(tmp_path / "it.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "it.png"), "[]"], done.stderr

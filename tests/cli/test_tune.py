"""`rlx tune` with real training runs, and what is refused before any begins."""

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import OmegaConf

pytest.importorskip("optuna")

from optuna.trial import TrialState

from rlx.cli.members import group_members
from rlx.cli.plan import compose, make_plan, read_words
from rlx.run.metrics import read_metrics
from rlx.tools.study import Study, read_plan

from ..program import COMMAND, ENVIRONMENT, ROOT, SMALL, left_in, rlx
from .test_commands import call

SPACE = "space: {algo.gamma: {low: 0.9, high: 0.99}, agent.hidden_sizes: {choices: [8, 16], as: [value, value]}}\n"
TINY = [*SMALL, "batcher=local", "tune=tiny", "--config-dir", "conf"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a directory with a search space of its own, `tune=tiny`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "tune").mkdir(parents=True)
    (tmp_path / "conf" / "tune" / "tiny.yaml").write_text(f"defaults: [common, _self_]\npruner: null\n{SPACE}")
    return tmp_path


def evaluations(run: Path) -> list[object]:
    return [row["eval/return"] for row in read_metrics(run / "metrics.csv") if row["eval/return"] is not None]


def test_study_from_its_beginning_to_a_recipe_that_gives_the_best_trial_again(here: Path) -> None:
    done = rlx(here, "tune", *TINY, "--trials", "2", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["count"] == {"complete": 2}
    study = here / "runs" / "CartPole" / "ppo" / "tune-tiny"
    best = study / f"trial-{found['best']:05d}"
    assert found["runs"] == [str(best)]
    assert all(Path(name).exists() for name in [*found["pictures"], found["recipe"]])

    again = subprocess.run(
        [*COMMAND, *shlex.split(found["command"])[1:], "run_dir=again"],
        cwd=here,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert evaluations(here / "again") == evaluations(best)
    configs = [OmegaConf.load(run / "config.yaml") for run in (here / "again", best)]
    for config in configs:
        del config["run_dir"], config["logger"]
    assert configs[0] == configs[1]
    listed = json.loads(rlx(here, "runs", "--json").stdout)
    assert [run["status"] for run in listed["runs"]] == ["done", "done"]
    assert listed["problems"] == []


def test_study_whose_every_trial_failed_ends_with_status_1(here: Path) -> None:
    (here / "broken.py").write_text(
        "import gymnasium\nclass Broken(gymnasium.Wrapper):\n    def step(self, action):\n        raise ValueError(3)\n"
    )
    done = rlx(here, "tune", *TINY, "env.wrappers=[broken.Broken]", "study_dir=study", "--trials", "1")
    assert (done.returncode, "1 failed" in done.stdout) == (1, True)
    assert done.stderr.splitlines()[-1] == "Error: every trial failed; what they printed is in 'study/.output'"
    assert rlx(here, "tune", "study", "--report").returncode == 0


def test_process_killed_in_the_middle_leaves_a_study_that_others_finish(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # what is left in `here` is theirs
    longer = [*TINY, "total_steps=6_000", "algo.num_steps=64", "study_dir=study", "--trials", "2"]
    with tuning(here, *longer) as killed:
        wait_for(here / "study" / "trial-00000" / "metrics.csv", killed)
        killed.kill()
    assert left_in(here, 20.0) == []
    with tuning(here, *longer) as stopped:
        wait_for(here / "study" / "trial-00001" / "metrics.csv", stopped)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 143
    assert left_in(here, 20.0) == []

    done = rlx(here, "tune", "study", "--trials", "1")
    assert done.returncode == 0, done.stderr
    study = Study(here / "study", read_plan(here / "study"))
    with study:
        first, second, third = study.trials()
    assert [trial.state for trial in (first, second)] == [TrialState.FAIL] * 2
    assert third.state is TrialState.COMPLETE
    assert call("runs", str(here / "study")) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("trial")] == [
        ["trial-00000", "stopped"],
        ["trial-00001", "stopped"],
        ["trial-00002", "done"],
    ]
    done = rlx(here, "tune", "study", "--trials", "1")
    assert "trial 4" not in done.stderr, "there are enough"


@contextmanager
def tuning(cwd: Path, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Give a `rlx tune` that runs, and does so no longer at the end."""
    process = subprocess.Popen([*COMMAND, "tune", *arguments], cwd=cwd, env=ENVIRONMENT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


@pytest.mark.parametrize("space", [member.name for member in group_members("tune") if member.name != "common"])
def test_shipped_space_holds_the_shipped_numbers(space: str) -> None:
    words = read_words([f"algo={space}", f"env={'Pendulum' if space == 'sac' else 'CartPole'}"])
    plan, _, notes = make_plan(words, None, seeds=1, jobs=1, storage=None)
    assert notes == []
    assert plan.defaults.keys() == plan.space.keys()
    again = compose([*words.overrides, *(one.override(plan.defaults[one.key]) for one in plan.parameters)], None)
    assert again.plain() == compose(words.overrides, None).plain()


def test_what_was_typed_is_not_tuned_and_first_trial_has_what_is_left() -> None:
    words = read_words(["algo=ppo", "algo.gamma=0.9", "agent.hidden_sizes=[32,32]", "total_steps=1000"])
    plan, usual, notes = make_plan(words, None, seeds=2, jobs=1, storage=None)
    assert [note.rpartition(" ")[2] for note in notes] == ["algo.gamma", "agent.hidden_sizes"]
    assert "algo.gamma" not in plan.space
    assert plan.defaults["algo.num_steps"] == 128
    assert usual == Path("runs/CartPole/ppo/tune")
    assert "evaluation.every=100" in plan.own


@pytest.mark.parametrize("key", ["+env.kwargs.sutton_barto_reward", "+algo.extra.deeper.still"])
def test_key_that_a_space_adds_has_no_shipped_number(here: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("rlx.cli.plan._check", lambda config: None)
    space = f"algo.gamma: {{low: 0.9, high: 1.0}}, {key}: {{choices: [true, false]}}"
    (here / "conf" / "tune" / "more.yaml").write_text(f"defaults: [common, _self_]\nspace: {{{space}}}\n")
    typed = ["algo=ppo", "env=CartPole", "tune=more"]
    plan, _, _ = make_plan(read_words(typed), here / "conf", seeds=1, jobs=1, storage=None)
    assert key in plan.space
    assert plan.defaults == {}
    plan, _, notes = make_plan(read_words([*typed, f"{key}=true"]), here / "conf", seeds=1, jobs=1, storage=None)
    assert list(plan.space) == ["algo.gamma"]
    assert notes == [f"not tuned, since it was given: {key}"]


def test_members_of_a_group_can_be_searched_over(here: Path) -> None:
    space = "defaults: [ppo, _self_]\nspace: {agent: {choices: [gru, actor_critic]}, algo.vf_coef: null}\n"
    (here / "conf" / "tune" / "mine.yaml").write_text(space)
    plan = make_plan(read_words(["tune=mine"]), here / "conf", seeds=1, jobs=1, storage=None)[0]
    assert plan.defaults["agent"] == "actor_critic"
    assert "algo.vf_coef" not in plan.space


def test_jobs_share_the_cores_and_keep_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def given(jobs: int, *words: str) -> list[str]:
        plan = make_plan(read_words(["batcher.num_workers=6", *words]), None, seeds=1, jobs=jobs, storage=None)[0]
        return [word for word in plan.own if word.startswith("batcher")]

    assert given(8) == []  # it was typed
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    plan = make_plan(read_words([]), None, seeds=1, jobs=2, storage=None)[0]
    assert plan.own[1:3] == ["batcher.num_workers=1", "batcher.envs_per_worker=16"]
    assert make_plan(read_words(["batcher=local"]), None, seeds=1, jobs=2, storage=None)[0].own[1:] == [
        "evaluation.every=6000"
    ]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["algo=pppo"], "algo=pppo: there is no 'pppo' in the group 'algo'. Did you mean 'ppo'?"),
        (["tune=pp"], "tune=pp: there is no 'pp' in the group 'tune'. Did you mean 'ppo'?"),
        (["algo=diayn", "env=Pendulum"], "tune: no search space is called 'diayn'"),
        (
            ["algo=sac", "env=CartPole"],
            "Error: a squashed Gaussian draws from one continuous box with finite bounds; the environment takes action",
        ),
        (["algo=dqn", "env=Pendulum"], "the environment takes action"),
        (["tune.lst=2"], "tune.lst=2: there is no key 'tune.lst'. Did you mean 'tune.last'?"),
        (["tune.last=0"], "tune.last: expected an integer >= 1, got 0"),
        (
            ["tune.sampler._target_=optuna.samplers.TPESampler2"],
            "'optuna.samplers' has no function or class 'TPESampler2'",
        ),
        (["+tune.pruner.n_warmup=3"], "tune.pruner.n_warmup: there is no such key."),
        (["tune=key"], "tune.space: algo.gama=0.9: there is no key 'algo.gama'. Did you mean 'algo.gamma'?"),
        (["tune=range"], "tune.space: algo.gamma: expected a number in [0, 1], got 1.5"),
        (["tune=whole"], "tune.space: algo.num_epochs: expected an integer >= 1, got "),
        (["evaluation.every=0"], "evaluation.every: got 0, expected steps: a trial is worth what its evaluations say"),
        (["tune=order"], "tune.space: algo.gamma: low 0.9 is above high 0.5"),
        (["algo=ppo", "+tune.space.algo.gama={low: 0.9, high: 1}"], "tune.space: algo: there is no field 'gama'"),
        (["tune=field"], "tune.space: algo.gamma: there is no field 'hihg'. Did you mean 'high'?"),
        (["tune=member"], "tune.space: agent=gruu: there is no 'gruu' in the group 'agent'. Did you mean 'gru'?"),
        (["tune=empty"], "tune.space: there is nothing to tune"),
        (["seed=x"], "Error: seed: expected an integer >= 0, got 'x'"),
        (["study_dir=conf/tune/key.yaml/x"], "study_dir: cannot create '"),
        (["seed=1,2"], "seed: got several values, 1,2"),
        (["run_dir=x"], "run_dir=x: each trial has a directory of its own"),
        (["nowhere"], "nowhere: expected GROUP=MEMBER, KEY=VALUE, or the directory of a study"),
        (["conf"], "'conf' is no study of rlx tune: it has no study.yaml"),
        (["conf", "algo=ppo"], "conf: a study that is there goes alone"),
        (["study_dir=a", "study_dir=b"], "got two studies, 'a' and 'b'"),
        (["study_dir=conf"], "exists already, and is no study"),
        (["--report"], "is no study of rlx tune"),
        (["--storage", "nonsense://x"], "--storage: 'nonsense://x' cannot be opened"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_begun(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fragment: str
) -> None:
    spaces = {
        "key": "algo.gama: {low: 0.9, high: 0.99}",
        "range": "algo.gamma: {low: 0.9, high: 1.5}",
        "order": "algo.gamma: {low: 0.9, high: 0.5}",
        "whole": "algo.num_epochs: {low: 1.0, high: 5.0}",
        "field": "algo.gamma: {low: 0.9, hihg: 0.99}",
        "member": "agent: {choices: [actor_critic, gruu]}",
        "empty": "",
    }
    for name, space in spaces.items():
        text = f"defaults: [common, _self_]\nspace: {{{space}}}\n"
        (here / "conf" / "tune" / f"{name}.yaml").write_text(text)
    before = sorted(here.rglob("*"))
    assert call("tune", *arguments, *([] if arguments == ["conf"] else ["--config-dir", "conf"])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert sorted(here.rglob("*")) == before


def test_missing_package_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert call("tune") == 2
    assert capsys.readouterr().err == "Error: rlx tune needs Optuna, which is not installed: pip install 'rlx[tune]'\n"

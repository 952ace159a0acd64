"""What `rlx train` hands to training, and how it ends."""

import os
import sys
from pathlib import Path

import pytest

from rlx.cli.start import run_train
from rlx.cli.train import parse
from rlx.errors import ConfigError, EnvironmentFault
from rlx.run.sweep import Sweep

from .conftest import Launches


def test_defaults_are_plain_and_complete(launches: Launches) -> None:
    run_train(["algo=ppo", "env=CartPole"])
    (job,) = launches
    assert (job["seed"], job["total_steps"], job["device"], job["run_dir"]) == (0, 60_000, "cpu", None)
    assert job["env"]["id"] == "CartPole-v1"
    assert job["choices"] == {
        "algo": "ppo",
        "env": "CartPole",
        "agent": "actor_critic",
        "batcher": "process",
        "learner": "alone",
    }
    assert type(job["algo"]) is dict
    assert "hydra" not in job


def test_overrides_may_stand_on_both_sides_of_a_flag(launches: Launches) -> None:
    run_train(["seed=1", "-m", "env=CartPole,Acrobot"])
    assert [(job["seed"], job["env"]["id"]) for job in launches] == [(1, "CartPole-v1"), (1, "Acrobot-v1")]


def test_nothing_of_the_process_is_changed_and_hydra_writes_nothing(launches: Launches) -> None:
    before = (list(sys.argv), dict(os.environ), Path.cwd())
    run_train(["seed=3"])
    run_train(["seed=4"])
    assert (list(sys.argv), dict(os.environ), Path.cwd()) == before
    assert list(Path.cwd().iterdir()) == []
    assert [job["seed"] for job in launches] == [3, 4]


def test_each_job_of_a_multirun_has_its_own_run_directory(launches: Launches) -> None:
    run_train(["-m", "seed=0,1"])
    run_train(["-m", "seed=0,1"])
    directories = [Path(job["run_dir"]) for job in launches]
    assert [directory.name for directory in directories] == ["0", "1", "0", "1"]
    assert len(set(directories)) == 4
    assert all(directory.is_relative_to("runs/multirun") and not directory.exists() for directory in directories)


def test_run_directory_of_a_multirun_holds_its_jobs(launches: Launches) -> None:
    run_train(["-m", "seed=0,1", "run_dir=here"])
    assert [job["run_dir"] for job in launches] == ["here/0", "here/1"]


def test_failed_job_of_a_multirun_is_told_and_the_others_run(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    launches.errors[1] = ConfigError("algo.gamma: expected a number in [0, 1], got 2.")
    with pytest.raises(SystemExit) as end:
        run_train(["-m", "seed=0,1,2"])
    assert end.value.code == 1
    assert [job["seed"] for job in launches] == [0, 1, 2]
    err = capsys.readouterr().err
    assert "Error: algo.gamma: expected a number in [0, 1], got 2.\nJob 1 failed: seed=1" in err
    assert "Traceback" not in err


def test_failed_jobs_of_a_multirun_are_listed_at_the_end(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    launches.errors |= {0: ConfigError("algo.gamma: got 2."), 2: ValueError("no\nway")}
    with pytest.raises(SystemExit) as end:
        run_train(["-m", "seed=range(4)", "run_dir=a b"])
    assert end.value.code == 1
    assert [job["seed"] for job in launches] == [0, 1, 2, 3]
    err = capsys.readouterr().err
    assert err.endswith(
        "Error: 2 jobs failed, all others ran; see 'a b':\n"
        "  job 0 (seed=0): algo.gamma: got 2.\n"
        "  job 2 (seed=2): ValueError: no way\n"
    )
    assert [job.state for job in Sweep("a b").jobs()] == ["failed", "done", "failed", "done"]


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_a_file_of_ones_own_hides_that_of_the_same_name(launches: Launches, multirun: list[str]) -> None:
    own = Path("own/algo/ppo.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("_target_: my_package.my_algo.train\nalpha: 3\n")
    run_train(["--config-dir", "own", *multirun, "algo=ppo", "algo.alpha=4"])
    assert launches[0]["algo"] == {"_target_": "my_package.my_algo.train", "alpha": 4}


def test_users_own_directory_adds_members(launches: Launches) -> None:
    own = Path("own/algo/mine.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("_target_: my_package.my_algo.train\nalpha: 3\n")
    run_train(["--config-dir", "own", "algo=mine", "algo.alpha=4"])
    assert launches[0]["algo"] == {"_target_": "my_package.my_algo.train", "alpha": 4}
    assert launches[0]["choices"]["algo"] == "mine"
    assert os.getcwd() in sys.path


def own_algorithm(chooses: str) -> None:
    """Put an algorithm that chooses another group's member into the directory `own`, and a recipe for it."""
    for group, name, text in (
        ("algo", "mine", f"defaults:\n  - override {chooses}\n_target_: my_algo.train\n"),
        ("experiment", "plain", "# @package _global_\ndefaults:\n  - override /algo: mine\n"),
        (
            "experiment",
            "memory",
            "# @package _global_\ndefaults:\n  - override /algo: mine\n  - override /agent: gru\n",
        ),
    ):
        path = Path("own") / group / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("chooses", "typed", "group", "member"),
    [
        ("/batcher@_global_.batcher: episodes", ["algo=mine"], "batcher", "episodes"),
        ("/batcher@_global_.batcher: episodes", ["batcher=local", "algo=mine"], "batcher", "local"),
        ("/batcher@_global_.batcher: episodes", ["algo=mine", "batcher=local"], "batcher", "local"),
        ("/batcher@_global_.batcher: episodes", ["algo=ppo"], "batcher", "process"),
        ("/batcher@_global_.batcher: episodes", ["experiment=plain"], "batcher", "episodes"),
        ("/batcher@_global_.batcher: episodes", ["experiment=plain", "batcher=local"], "batcher", "local"),
        ("/agent@_global_.agent: lstm", ["experiment=plain"], "agent", "lstm"),
        ("/agent@_global_.agent: lstm", ["experiment=memory"], "agent", "gru"),
        ("/agent@_global_.agent: lstm", ["experiment=memory", "agent=transformer"], "agent", "transformer"),
    ],
)
def test_algorithm_chooses_members_that_a_recipe_and_the_command_line_overrule(
    launches: Launches, chooses: str, typed: list[str], group: str, member: str
) -> None:
    own_algorithm(chooses)
    run_train(["--config-dir", "own", *typed])
    assert launches[0]["choices"][group] == member
    assert "defaults" not in launches[0]["algo"]


def test_keys_of_the_member_that_an_algorithm_chose_can_be_given(launches: Launches) -> None:
    own_algorithm("/batcher@_global_.batcher: episodes")
    run_train(["--config-dir", "own", "algo=mine", "batcher.num_episodes=5"])
    assert launches[0]["batcher"]["num_episodes"] == 5
    run_train(["--config-dir", "own", "-m", "algo=mine,ppo"])
    assert [job["choices"]["batcher"] for job in launches[1:]] == ["episodes", "process"]


def test_fault_of_the_users_environment_shows_their_traceback(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = EnvironmentFault("environment Mine-v0 (row 3, seed 8) raised in step")
    fault.__cause__ = ZeroDivisionError("in user code")
    launches.errors[0] = fault
    with pytest.raises(SystemExit) as end:
        run_train([])
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: in user code" in err
    assert err.endswith("Error: environment Mine-v0 (row 3, seed 8) raised in step\n")
    assert "Error executing job" not in err


def test_bug_keeps_its_traceback(launches: Launches) -> None:
    launches.errors[0] = KeyError("bug")
    with pytest.raises(KeyError, match="bug"):
        run_train([])


def test_interrupt_ends_with_its_own_status(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    launches.errors[0] = KeyboardInterrupt()
    with pytest.raises(SystemExit) as end:
        run_train([])
    assert end.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_configuration_is_shown_without_running(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    run_train(["env=Pendulum", "--cfg", "job", "-p", "env"])
    assert "id: Pendulum-v1" in capsys.readouterr().out
    assert launches == []


def test_help_names_groups_and_keys(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_train(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert any(line.startswith("algo: ") and "ppo" in line for line in out.splitlines())
    assert not [line for line in out.splitlines() if line.startswith(("slurm:", "tune:"))]  # of other commands
    assert "total_steps: 60000" in out
    assert "--multirun" in out


def test_path_with_anything_in_it_passes_when_quoted(launches: Launches) -> None:
    run_train(["run_dir='a b,c=d'"])
    assert launches[0]["run_dir"] == "a b,c=d"


@pytest.mark.parametrize(
    ("arguments", "overrides", "flags"),
    [
        (["a=1", "-m", "b=2"], ["a=1", "b=2"], ["-m"]),
        (["-cd", "own", "a=1", "--cfg", "job"], ["a=1"], ["-cd", "own", "--cfg", "job"]),
        (["--config-dir=own", "~a", "+b=1"], ["~a", "+b=1"], ["--config-dir=own"]),
        (["a=1", "a=1", "-p", "algo"], ["a=1", "a=1"], ["-p", "algo"]),
    ],
)
def test_overrides_are_told_from_flags(arguments: list[str], overrides: list[str], flags: list[str]) -> None:
    parsed = parse(arguments)
    assert parsed.overrides == overrides
    assert parsed.flags == flags

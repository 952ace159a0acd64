"""What a multirun does when it is started again, and which jobs its directory then knows."""

import importlib.util
import json
import shlex
import shutil
import weakref
from pathlib import Path

import pytest

from rlx.cli.members import config_directory
from rlx.cli.start import run_job, run_train
from rlx.errors import ConfigError
from rlx.run.signals import StopRequested, signal
from rlx.run.sweep import Sweep

from .conftest import Launches

ASKED = ["-m", "algo=ppo,a2c", "seed=0,1", "run_dir=here"]


def told(launches: Launches) -> list[tuple[str, int]]:
    return [(job["choices"]["algo"], job["seed"]) for job in launches]


def test_same_command_again_runs_nothing_that_is_done(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    launches.errors[1] = ConfigError("no")
    with pytest.raises(SystemExit):
        run_train(ASKED)
    launches.clear()
    launches.errors.clear()
    capsys.readouterr()
    run_train(ASKED)
    assert told(launches) == [("ppo", 1), ("a2c", 1)]
    assert [job["run_dir"] for job in launches] == ["here/1", "here/3"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "sweep 'here': 4 jobs, 2 done already, 2 to run"
    assert [line.partition(":")[0] for line in said[1:]] == ["job 1", "job 3"]
    assert [[attempt["state"] for attempt in job.attempts] for job in Sweep("here").jobs()] == [
        ["done"],
        ["failed", "done"],
        ["done"],
        ["failed", "done"],
    ]
    launches.clear()
    run_train(ASKED)
    assert launches == []


def test_more_values_add_jobs_and_another_order_is_the_same_job(launches: Launches) -> None:
    run_train(ASKED)
    launches.clear()
    run_train(["-m", "run_dir=here", "seed=0,1,2", "algo=a2c"])
    assert told(launches) == [("a2c", 2)]
    assert launches[0]["run_dir"] == "here/4"
    assert Sweep("here").plan().asked == [2, 3, 4]


def test_sweep_that_a_signal_ended_goes_on_with_the_job_it_stopped_in(launches: Launches) -> None:
    launches.errors[1] = StopRequested(signal.SIGTERM, safe=True)
    with pytest.raises(SystemExit) as end:
        run_train(ASKED)
    assert end.value.code == 143
    assert [job.state for job in Sweep("here").jobs()] == ["done", "stopped", "pending", "pending"]
    launches.clear()
    launches.errors.clear()
    run_train(ASKED)
    assert told(launches) == [("ppo", 1), ("a2c", 0), ("a2c", 1)]


def test_job_that_another_process_runs_is_left_to_it(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep("here")
    numbers = sweep.ask([["algo=ppo", "seed=0"], ["algo=ppo", "seed=1"]])
    with sweep.hold(numbers[1]):
        run_train(ASKED)
    assert told(launches) == [("ppo", 0), ("a2c", 0), ("a2c", 1)]
    assert "1 run by other processes" in capsys.readouterr().err


def test_failed_jobs_of_earlier_commands_do_not_fail_this_one(launches: Launches) -> None:
    launches.errors[1] = ConfigError("no")
    with pytest.raises(SystemExit):
        run_train(ASKED)
    run_train(["-m", "algo=ppo,a2c", "seed=0,2", "run_dir=here"])
    assert [job.state for job in Sweep("here").jobs()] == ["done", "failed", "done", "failed", "done", "done"]


def test_what_a_failed_job_held_is_free_before_the_next_one(launches: Launches) -> None:
    class Held:
        """Stands for a replay buffer."""

    alive = weakref.WeakSet[Held]()

    def fail() -> None:
        held = Held()
        alive.add(held)
        raise ValueError

    def failed() -> ConfigError:
        try:
            try:
                fail()
            except ValueError as error:
                raise ConfigError("no") from error
        except ConfigError as error:
            return error

    launches.errors[0] = failed()  # kept here, and by Hydra
    assert len(alive) == 1
    with pytest.raises(SystemExit):
        run_train(["-m", "seed=0,1", "run_dir=here"])
    assert not alive


def test_failed_jobs_are_listed_though_another_command_asks_for_others(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    launches.errors[1] = ConfigError("no")
    launches.meanwhile = lambda: Sweep("here").ask([["algo=ppo", "seed=2"]])
    with pytest.raises(SystemExit):
        run_train(ASKED)
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "Error: 2 jobs failed, all others ran; see 'here':",
        "  job 1 (algo=ppo seed=1): no",
        "  job 3 (algo=a2c seed=1): no",
    ]


def test_sweep_in_a_new_directory_says_how_to_go_on(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    run_train(["-m", "seed=0,1"])
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("sweep "))
    (directory,) = Path("runs/multirun").iterdir()
    assert line == f"sweep '{directory}': 2 jobs, 2 to run; to go on with it later: run_dir={directory}"
    plan = json.loads((directory / "jobs/sweep.json").read_text())
    assert plan["jobs"] == [["seed=0"], ["seed=1"]]


def test_sweep_needs_one_directory(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_train(["-m", "seed=0,1", "run_dir=a,b"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("Error: run_dir=a,b: expected one directory")
    assert list(Path().iterdir()) == []


def test_members_of_a_group_are_swept_by_a_pattern(launches: Launches) -> None:
    run_train(["-m", "algo=glob(*,exclude=[sac,diayn,h*,*q*,r*])", "run_dir=here"])
    assert [job["choices"]["algo"] for job in launches] == ["a2c", "ppo"]


@pytest.mark.parametrize("swept", ["algo=glob(x*)", "seed=glob(*)", "seed=range(0)"])
def test_sweep_over_nothing_is_refused(launches: Launches, capsys: pytest.CaptureFixture[str], swept: str) -> None:
    with pytest.raises(SystemExit) as end:
        run_train(["-m", "algo.gamma=0.9,0.99", swept, "run_dir=here"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"Error: {swept}: this is no value at all, expected one or more.")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("swept", ["algo=ppo,a2c", "algo.gamma=choice(0.9,0.99)"])
def test_sweep_whose_directory_depends_on_what_is_swept_is_refused(
    launches: Launches, capsys: pytest.CaptureFixture[str], swept: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_train(["-m", "seed=0,1", swept, "run_dir=a_${algo.gamma}"])
    assert end.value.code == 2
    named = swept.partition("=")[0]
    assert capsys.readouterr().err.startswith(
        f"Error: run_dir=a_${{algo.gamma}}: it depends on {named}, of which there"
    )
    assert list(Path().iterdir()) == []
    run_train(["-m", "seed=0,1", "algo.gamma=0.9", "run_dir=a_${algo.gamma}"])
    assert [job.state for job in Sweep("a_0.9").jobs()] == ["done", "done"]


def test_jobs_that_work_elsewhere_belong_to_the_sweep_of_the_command(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    launches.errors[1] = ConfigError("no")
    with pytest.raises(SystemExit):
        run_train([*ASKED, "hydra.job.chdir=true"])
    assert [job.state for job in Sweep("here").jobs()] == ["done", "failed", "done", "failed"]
    assert {Path(job["run_dir"]).parent for job in launches} == {Path("here").absolute()}
    assert "Error: 2 jobs failed, all others ran; see '" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["-cd", "own", "-cn", "lab"], ["-cp", "own", "-cn", "lab"]])
def test_a_job_by_itself_has_the_configuration_that_its_sweep_began_with(launches: Launches, flags: list[str]) -> None:
    shutil.copytree(config_directory(), "own")
    Path("own/lab.yaml").write_text("defaults:\n  - config\n  - _self_\ntotal_steps: 64\n")
    run_train(["-m", *flags, *ASKED[1:]])
    Path("here/jobs/1.json").unlink()
    run_job(Path("here"), 1, requeue=False)
    assert [job["total_steps"] for job in launches] == [64] * 5
    run_train(shlex.split(launches[-1]["command"])[2:])  # which is what log.txt tells
    assert launches[-1]["total_steps"] == 64


def test_a_job_by_itself_finds_members_in_further_places(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("it's/experiment").mkdir(parents=True)
    Path("it's/experiment/tiny.yaml").write_text("# @package _global_\ntotal_steps: 64\n")
    run_train(["-m", 'hydra.searchpath=["it\'s"]', "experiment=tiny", *ASKED[1:]])
    Path("here/jobs/1.json").unlink()
    sweep = Path("here").absolute()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run_job(sweep, 1, requeue=False)
    run_train(shlex.split(launches[-1]["command"])[2:])
    assert [job["total_steps"] for job in launches] == [64] * 6


def test_hydras_mode_is_a_multirun_as_the_flag_is(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    launches.errors[1] = ConfigError("no")
    with pytest.raises(SystemExit):
        run_train(["hydra.mode=MULTIRUN", *ASKED[1:]])
    assert "Error: 2 jobs failed, all others ran; see 'here':" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["here"]


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_local", "submitit"), ("submitit_slurm", "submitit")]
)
def test_launcher_that_is_not_installed_is_told(
    launches: Launches,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
    extra: str,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SystemExit) as end:
        run_train(["-m", "seed=0,1", f"hydra/launcher={launcher}"])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: hydra/launcher={launcher} needs hydra-")
    assert err.endswith(f"pip install 'rlx[{extra}]'\n")

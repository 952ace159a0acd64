"""A sweep's directory: jobs killed at any moment are gone on with, and what several processes write stays whole."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlx.cli.start import run_train
from rlx.errors import RunDirectoryError, RunWriteError
from rlx.run.checkpoint import list_checkpoints, step_of
from rlx.run.directory import create_run_directory, discard_run_directory, is_taken
from rlx.run.job import run_job
from rlx.run.signals import StopRequested, signal
from rlx.run.sweep import Submission, Sweep
from tests.disk import full_disk

from .resuming import end_of, job

ASKED = ["-m", *job("ppo"), "algo.learning_rate=1e-3", "seed=5,6", "total_steps=480"]


def killed(sweep: Sweep, number: int, step: int) -> None:
    """Leave a job that is done as SIGKILL leaves it some time after its checkpoint at `step`; with 0, before all."""
    run = sweep.run_directory(number)
    for path in list_checkpoints(run):
        if step_of(path) > step:
            shutil.rmtree(path)
    (run / "summary.json").unlink()
    path = sweep.folder / f"{number}.json"
    values = json.loads(path.read_text())
    values["state"] = values["attempts"][-1]["state"] = "running"
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "sweep"
    run_train([*ASKED, f"run_dir={directory}"])
    return directory


@pytest.mark.parametrize(("step", "state"), [(240, "resumed"), (480, "resumed"), (0, "begun again")])
def test_killed_job_goes_on_to_the_same_end_and_no_other_is_run(whole: Path, tmp_path, step: int, state: str) -> None:
    directory = tmp_path / "sweep"
    shutil.copytree(whole, directory)
    sweep = Sweep(directory)
    killed(sweep, 1, step)
    before = (directory / "0/log.txt").read_text()
    run_train([*ASKED, f"run_dir={directory}"])
    assert end_of(directory / "1") == end_of(whole / "1")
    assert json.loads((directory / "1/summary.json").read_text())["status"] == "done"
    assert [attempt["state"] for attempt in sweep.job(1).attempts] == ["failed", "done"]
    assert (directory / "0/log.txt").read_text() == before
    assert ("resumes from" in (directory / "1/log.txt").read_text()) == (state == "resumed")
    assert (directory / "jobs/1.attempt-1/log.txt").exists() == (state == "begun again")
    assert sorted(path.name for path in directory.iterdir()) == ["0", "1", "jobs", "multirun.yaml"]


def test_job_killed_between_its_end_and_the_note_of_it_is_done(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    shutil.copytree(whole, directory)
    path = directory / "jobs/0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running"}))
    before = (directory / "0/log.txt").read_text()
    run_train([*ASKED, f"run_dir={directory}"])
    assert (directory / "0/log.txt").read_text() == before
    assert Sweep(directory).job(0).state == "done"


def test_job_whose_configuration_has_changed_is_refused(whole: Path, tmp_path: Path, capsys) -> None:
    directory = tmp_path / "sweep"
    shutil.copytree(whole, directory)
    killed(Sweep(directory), 0, 240)
    config = directory / "0/config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.99", "gamma: 0.98"))
    with pytest.raises(SystemExit) as end:
        run_train([*ASKED, f"run_dir={directory}"])
    assert end.value.code == 1
    assert "algo.gamma: the run in" in capsys.readouterr().err
    assert not (directory / "0/summary.json").exists()


def test_processes_that_ask_at_once_agree_on_the_numbers(tmp_path: Path) -> None:
    jobs = [[f"seed={seed}"] for seed in range(20)]

    def ask(turn: int) -> list[int]:
        return Sweep(tmp_path / "sweep").ask(jobs[turn:] + jobs[:turn])

    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(ask, range(8)))
    plan = Sweep(tmp_path / "sweep").plan()
    assert sorted(plan.jobs) == sorted(jobs)
    for turn, numbers in enumerate(asked):
        assert [plan.jobs[number] for number in numbers] == jobs[turn:] + jobs[:turn]


def test_attempt_that_cannot_be_noted_is_one_message(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.ask([["seed=0"]])
    attempt = sweep.attempt(sweep.job(0))
    with full_disk(), pytest.raises(RunWriteError, match=rf"cannot write '{sweep.folder}/0\.json': File too large"):
        attempt.__enter__()
    with full_disk(), pytest.raises(RunWriteError, match=f"cannot write '{sweep.folder}': File too large"):
        run_job(sweep, 0, dict, {}, "rlx train", tell=print)
    assert sweep.job(0).attempts == []


def test_what_ends_an_attempt_counts_more_than_that_it_cannot_be_noted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.ask([["seed=0"]])

    attempt = sweep.attempt(sweep.job(0))
    attempt.__enter__()
    stop = StopRequested(signal.SIGUSR1, safe=True)
    with full_disk():
        assert not attempt.__exit__(StopRequested, stop, None)  # and raises nothing in its place


@pytest.mark.parametrize(("count", "told"), [("", 0), ("2", 2)])
def test_attempt_in_slurm_knows_how_often_it_came_back(tmp_path: Path, monkeypatch, count: str, told: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    sweep = Sweep(tmp_path / "sweep")
    sweep.ask([["seed=0"]])
    with sweep.attempt(sweep.job(0)) as noted:
        assert noted["restarts"] == told


def test_submissions_are_kept(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.ask([["seed=0"], ["seed=1"]], flags=["--config-dir=/own"])
    sweep.add_submission(Submission("12", {0: 0, 1: 1}, "submit-1.sh", 5.0))
    plan = sweep.plan()
    assert plan.submissions == [Submission("12", {0: 0, 1: 1}, "submit-1.sh", 5.0)]
    assert plan.flags == ["--config-dir=/own"]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 9, "jobs": []}'])
def test_damaged_plan_is_told(tmp_path: Path, text: str) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.ask([["seed=0"]])
    (sweep.folder / "sweep.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"sweep\.json"):
        sweep.jobs()


def test_run_alone_and_sweep_do_not_share_a_directory(tmp_path: Path) -> None:
    alone = Sweep(tmp_path / "run")
    assert alone.ask([["seed=0"]], single=True) == [0]
    assert alone.run_directory(0) == tmp_path / "run"
    with pytest.raises(RunDirectoryError, match="of one run alone"):
        alone.ask([["seed=0"]])
    with pytest.raises(RunDirectoryError, match="was made for seed=0"):
        alone.ask([["seed=1"]], single=True)


def test_directory_that_was_prepared_takes_one_run(tmp_path: Path) -> None:
    Sweep(tmp_path / "run").ask([["seed=0"]], single=True)
    assert not is_taken(tmp_path / "run")
    create_run_directory(tmp_path / "run")
    assert is_taken(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="exists"):
        create_run_directory(tmp_path / "run")
    discard_run_directory(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["jobs"]

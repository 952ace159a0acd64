"""What sweeps know of jobs that have no run directory, in `rlx runs`; and who writes a run that was resumed."""

import json
import os
import platform
import shutil
from pathlib import Path

import pytest

from rlx.run.sweep import Submission, Sweep
from rlx.tools.runs import list_runs, table

from .made_runs import make_run

JOBS = [["algo=ppo", "env=CartPole", f"seed={seed}"] for seed in range(12)]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    made = Sweep(tmp_path / "sweep")
    made.ask(JOBS)
    make_run(made.directory / "0")
    with pytest.raises(ValueError, match="no"), made.attempt(made.job(1)):
        raise ValueError("no such thing")
    return made


def test_jobs_without_a_run_are_listed_in_order(sweep: Sweep) -> None:
    records, problems = list_runs(sweep.directory.parent)
    assert problems == []
    assert [record.directory.name for record in records] == [str(number) for number in range(12)]
    assert [record.status for record in records[:3]] == ["done", "failed", "pending"]
    assert records[1].reason == "ValueError: no such thing"
    assert (records[2].algo, records[2].env, records[2].overrides) == ("ppo", "CartPole", {"seed": "2"})
    assert [record.directory.name for record in list_runs(sweep.directory, status=["failed"])[0]] == ["1"]
    assert [record.directory.name for record in list_runs(sweep.directory, where=["seed=4"])[0]] == ["4"]
    assert list_runs(sweep.directory / "0")[0][0].directory.name == "0"


def test_jobs_without_a_run_are_named_from_where_one_looks(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep.directory.parent)
    for folder, first in ((Path("sweep"), "2 "), (Path(), "sweep/2 ")):
        lines = list(table(list_runs(folder)[0], folder, 200))
        assert lines[4].startswith(first)


def test_slurms_names_and_states_are_shown(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {
        "squeue": "echo '12|2|PENDING'\necho '14|N/A|RUNNING'",
        "sacct": f"echo $* > {tmp_path}/asked; echo '12_0|CANCELLED by 1000'; echo '12_2|COMPLETED'",
    }
    (tmp_path / "bin").mkdir()
    for program, does in stand_ins.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    sweep.add_submission(Submission("12", {0: 0, 2: 2, 3: 3}, "submit-1.sh", 0.0))
    sweep.add_submission(Submission("13", {3: 3}, "submit-2.sh", 1.0))
    records, _ = list_runs(sweep.directory)
    assert [record.slurm for record in records[:5]] == [
        *("12_0 CANCELLED", None, "12_2 PENDING", "13_3", None),
    ]
    assert "--jobs=12,13" in (tmp_path / "asked").read_text()
    lines = list(table(records, sweep.directory, 200))
    assert "slurm" in lines[0]
    assert "12_2 PENDING" in lines[4]  # below job 1 stands its reason


def test_without_slurm_its_names_are_shown_still(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    sweep.add_submission(Submission("12", {2: 2}, "submit-1.sh", 0.0))
    assert list_runs(sweep.directory)[0][2].slurm == "12_2"


def test_run_alone_that_waits_is_listed(tmp_path: Path) -> None:
    Sweep(tmp_path / "run").ask([["algo=ppo", "env=CartPole"]], single=True)
    records, problems = list_runs(tmp_path)
    assert problems == []
    assert [(record.directory, record.status) for record in records] == [(tmp_path / "run", "pending")]


def test_damaged_sweep_is_told_and_its_runs_are_listed(sweep: Sweep) -> None:
    (sweep.folder / "sweep.json").write_text("{}")
    records, problems = list_runs(sweep.directory)
    assert [record.directory.name for record in records] == ["0"]
    assert len(problems) == 1
    assert "sweep.json" in problems[0]


def test_resumed_run_is_known_by_its_lock(sweep: Sweep) -> None:
    run = sweep.directory / "0"
    (run / "summary.json").unlink()
    (run / "run.lock").write_text(json.dumps({"host": platform.node(), "pid": os.getpid()}))
    assert list_runs(run)[0][0].status == "running"
    (run / "run.lock").write_text(json.dumps({"host": platform.node(), "pid": 2**22 + 1}))
    assert list_runs(run)[0][0].status == "failed"
    shutil.rmtree(run)

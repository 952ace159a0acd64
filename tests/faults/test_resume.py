"""Whole programs, ended by signals and by SIGKILL at every iteration, and resumed: the same to the bit."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.program import ENVIRONMENT, ROOT, left_in, rlx
from tests.run.resuming import EVALUATED, end_of, job, total_steps

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

STATUS = {"SIGKILL": -9, "SIGTERM": 143, "SIGUSR1": 143, "SIGINT": 130}


def ended_by(name: str, iteration: int, cwd: Path, *arguments: str) -> None:
    script = str(ROOT / "tests/faults/signalled.py")
    command = [sys.executable, script, name, str(iteration), "train", *arguments]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == STATUS[name], done.stderr
    assert "Traceback" not in done.stderr


def check_resumed(tmp_path: Path, name: str, workers: str, ends: Mapping[int, str]) -> None:
    """Check that runs ended at these iterations by these signals, and resumed, equal one that never stopped."""
    words = [*job(name, workers=workers), total_steps(name), *EVALUATED]
    whole = rlx(tmp_path, "train", *words, "run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    wanted = end_of(tmp_path / "whole")
    iterations = json.loads((tmp_path / "whole/summary.json").read_text())["iteration"]
    for iteration, signal in ends.items():
        if iteration >= iterations:
            break
        run = f"run-{iteration}"
        ended_by(signal, iteration, tmp_path, *words, f"run_dir={run}")
        if signal != "SIGKILL":
            found = json.loads((tmp_path / run / "summary.json").read_text())
            assert (found["status"], found["iteration"]) == ("stopped", iteration)
        resumed = rlx(tmp_path, "train", f"resume={run}")
        assert resumed.returncode == 0, resumed.stderr
        assert "exact=false" not in resumed.stderr
        assert end_of(tmp_path / run) == wanted, (signal, iteration)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "workers", "ends"),
    [
        ("ppo", "process", {1: "SIGUSR1", 4: "SIGKILL"}),
        ("dqn", "local", {3: "SIGTERM"}),
        ("sac", "process", {2: "SIGINT"}),
    ],
)
def test_program_ended_and_resumed_equals_one_never_stopped(
    tmp_path: Path, name: str, workers: str, ends: dict[int, str]
) -> None:
    check_resumed(tmp_path, name, workers, ends)


@pytest.mark.matrix
@pytest.mark.parametrize("workers", ["process", "local"])
@pytest.mark.parametrize("name", ["ppo", "a2c", "reinforce", "dqn", "hdqn", "sac", "diayn"])
def test_program_ended_at_any_iteration_and_resumed_equals_one_never_stopped(
    tmp_path: Path, name: str, workers: str
) -> None:
    signals = ("SIGTERM", "SIGINT", "SIGKILL", "SIGUSR1", "SIGKILL")
    check_resumed(tmp_path, name, workers, dict(enumerate(signals, 1)))

"""A training run whose worker is killed goes on, ends well, and tells what happened."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.ledger import MARK

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parent.parent.parent


def test_a_run_whose_worker_is_killed_ends_well_and_says_so(tmp_path: Path) -> None:
    command = (
        *(sys.executable, "-m", "rlx", "train", "algo=ppo", "env=gym", "env.id=tests.faults.ledger:DiesOnce-v0"),
        *("batcher.num_workers=2", "batcher.envs_per_worker=2", "algo.num_steps=64", "algo.batch_size=64"),
        *("total_steps=1024", "run_dir=run"),
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), MARK: str(tmp_path / "killed")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["env_steps"]) for row in rows] == [256, 512, 768, 1024]
    assert [int(row["batcher/restarts"]) for row in rows] == [0, 1, 1, 1]
    dropped = int(rows[-1]["batcher/dropped_steps"])
    assert 0 < dropped <= 2 * 64
    told = (
        f"died (killed by SIGKILL) after {dropped // 2} steps of its piece. It was started again (restart 1), {dropped}"
    )
    assert told in done.stderr
    assert told in (tmp_path / "run" / "log.txt").read_text()

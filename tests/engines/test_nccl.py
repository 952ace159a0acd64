"""`learner=ddp` with gradients summed by NCCL: two ranks to the numbers of two on the CPU. On one GPU, if need be.

NCCL refuses two ranks of one host on one GPU, so each says that it is a host of its own. They are started as srun
starts ranks that see one GPU each.
"""

import math
import subprocess
from pathlib import Path

import pytest

from rlx.run.metrics import TIMED, Row, read_metrics
from tests.device.simulated import NEEDS_CUDA
from tests.program import COMMAND, ENVIRONMENT
from tests.run.test_ranks import free_port

pytestmark = [pytest.mark.engines, NEEDS_CUDA]

ALGORITHMS = {
    "ppo": "algo=ppo algo.num_steps=32 total_steps=1024",
    "a2c": "algo=a2c total_steps=1024",
    "dqn": "algo=dqn algo.learning_starts=128 algo.num_updates=2 total_steps=512",
}


def trained(cwd: Path, device: str, *arguments: str) -> list[Row]:
    """Train on two ranks, and return the rows."""
    port, ranks = free_port(), []
    for rank in (0, 1):
        place = {
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NCCL_HOSTID": f"host {rank}",
            "OMP_NUM_THREADS": "1",
        }
        words = ["train", "learner=ddp", f"device={device}", f"run_dir={device}", "logger=[csv]", *arguments]
        ranks.append(
            subprocess.Popen(
                [*COMMAND, *words], cwd=cwd, env={**ENVIRONMENT, **place}, stderr=subprocess.PIPE, text=True
            )
        )
    ends = [(rank.communicate(timeout=240)[1], rank.returncode) for rank in ranks]
    assert [status for _, status in ends] == [0, 0], ends
    return read_metrics(cwd / device / "metrics.csv")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_two_ranks_learn_through_nccl_what_they_learn_through_gloo(algo: str, tmp_path: Path) -> None:
    words = [*ALGORITHMS[algo].split(), "env=CartPole", "batcher=local", "batcher.envs_per_worker=4"]
    there, here = (trained(tmp_path, device, *words) for device in ("cuda", "cpu"))
    assert len(there) == len(here) > 1
    for one, other in zip(there, here, strict=True):
        for key, value in one.items():
            expected = other.get(key)
            if key.startswith(TIMED) or value is None:
                continue
            assert expected is not None, key
            assert math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-4), (key, value, expected)

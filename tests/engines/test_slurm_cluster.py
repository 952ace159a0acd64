"""The SLURM of the tests itself: it leaves nothing behind, and where it cannot start it says why, in time."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import ENVIRONMENT, ROOT

from .slurm_cluster import is_installed, running

pytestmark = pytest.mark.engines

OWNER = """
import sys
from tests.engines.slurm_cluster import running
with running(accounting=True) as cluster:
    print(cluster.environment["SLURM_CONF"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def installed() -> None:
    if os.geteuid() != 0 or not is_installed():
        pytest.skip("SLURM: not installed, or this is not root")


def test_cluster_ends_with_the_process_that_started_it_however_that_ended() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        conf = owner.stdout.readline().strip()
        try:
            if not conf:
                pytest.skip("SLURM: it does not start here")
            job = ["sbatch", "--output=/dev/null", "--wrap", "exec sleep 600"]
            subprocess.run(job, env={**ENVIRONMENT, "SLURM_CONF": conf}, check=True, timeout=60)
            names = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-n1", "slurmd-n2")
            pids = [int((Path(conf).parent / f"{name}.pid").read_text()) for name in names]
            handles = [os.pidfd_open(pid) for pid in pids]
        finally:
            owner.kill()
    for handle in handles:
        ended, _, _ = select.select([handle], [], [], 120)
        os.close(handle)
        assert ended


@pytest.mark.parametrize(
    ("program", "does", "reason"),
    [
        ("slurmd", "echo 'slurmd: fatal: no cgroup' >&2; exit 1", "slurmd ended with status 1 .*fatal: no cgroup"),
        ("slurmctld", "exec sleep 600", "slurmctld ended with status 124"),
    ],
)
def test_where_it_cannot_start_tests_are_skipped_with_the_reason(
    program: str, does: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / program).write_text(f"#!/bin/sh\n{does}\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(pytest.skip.Exception, match=f"SLURM: it does not start here: .*{reason}"), running():
        pass

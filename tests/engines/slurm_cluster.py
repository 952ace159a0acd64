"""A real SLURM cluster of two virtual nodes on this machine, and what tests ask of it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import ENVIRONMENT, ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


class Cluster:
    """What a test does with the cluster.

    Attributes:
        environment: for commands that talk to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment = {**ENVIRONMENT, "SLURM_CONF": str(folder / "slurm.conf")}

    def with_sacct(self) -> dict[str, str]:
        """Return an environment that has the stand-in for `sacct`, which this cluster without accounting lacks."""
        return {**self.environment, "PATH": f"{self._folder / 'bin'}:{self.environment['PATH']}"}

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return SLURM's state of a job, ended ones too."""
        fields = dict(word.partition("=")[::2] for word in self.ask("scontrol", "show", "job", job).split())
        return str(fields["JobState"])

    def wait(self, what: str, is_so: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until something is so; SLURM tells of nothing by itself."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, what
            time.sleep(0.1)

    def wait_for(self, job: str, *states: str, seconds: float = 120.0) -> None:
        self.wait(f"job {job} is {states}", lambda: self.state(job) in states, seconds)

    def start_now(self, job: str) -> None:
        """Let a job that was put back into the queue not wait for its two minutes."""
        self.wait_for(job, "PENDING")
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def cancel_all(self) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, check=False, capture_output=True)
        self.wait("the queue is empty", lambda: not self.ask("squeue", "--noheader"))


@contextmanager
def running() -> Iterator[Cluster]:
    """Start a cluster, and end it.

    Skips the test where SLURM is not there and cannot be installed.
    """
    if os.geteuid() != 0:
        pytest.skip("SLURM: only root can start it")
    if any(shutil.which(program) is None for program in PROGRAMS):
        if shutil.which("apt-get") is None:
            pytest.skip("SLURM: it is not installed, and there is no apt-get")
        packages = ["slurmctld", "slurmd", "slurm-client", "munge"]
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"SLURM: apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        Path(name).chmod(0o755)  # munge wants its socket in reach of everybody, which pytest's own folders are not
        try:
            ports = {"RLX_SLURM_PORT": str(20_000 + os.getpid() % 3000 * 3)}  # three of its own
            start = [str(ROOT / "scripts/slurm_start.sh"), name]
            subprocess.run(start, check=True, timeout=120, env={**os.environ, **ports})
            yield Cluster(Path(name))
        finally:
            subprocess.run([str(ROOT / "scripts/slurm_stop.sh"), name], check=True, timeout=120)

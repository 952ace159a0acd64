"""A real SLURM cluster of two virtual nodes on this machine, and what tests ask of it."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import ENVIRONMENT, ROOT

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "slurmdbd", "mariadb-server-core")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
"""States that no job leaves by itself."""


class Cluster:
    """What a test does with the cluster.

    Attributes:
        environment: for commands that talk to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment = {**ENVIRONMENT, "SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return SLURM's state of a job, ended ones too."""
        return self.fields(job)["JobState"]

    def fields(self, job: str) -> dict[str, str]:
        """Return what SLURM says of a job."""
        return dict(word.partition("=")[::2] for word in self.ask("scontrol", "show", "job", job).split())

    def wait(self, what: str, is_so: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until something is so; SLURM tells of nothing by itself."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, what
            time.sleep(0.1)

    def wait_for(self, job: str, *states: str, seconds: float = 120.0) -> None:
        """Wait until a job has one of these states; one that has ended in another one is told at once."""

        def is_so() -> bool:
            state = self.state(job)
            assert state in states or state not in ENDED, self._told(job)
            return state in states

        self.wait(f"job {job} is not {' or '.join(states)} after {seconds:.0f} s", is_so, seconds)

    def _told(self, job: str) -> str:
        fields = self.fields(job)
        lines = Path(fields["StdOut"]).read_text().splitlines()[-20:] if Path(fields["StdOut"]).exists() else []
        logs = [line for path in self._folder.glob("slurm*.log") for line in path.read_text().splitlines()[-10:]]
        what = f"job {job} is {fields['JobState']} ({fields['Reason']}), restarts: {fields['Restarts']}"
        return "\n".join([what, "its output:", *lines, "SLURM's logs:", *logs])

    def start_again(self, job: str) -> None:
        """Let a job that was put back into the queue not wait for its two minutes.

        SLURM tells an attempt from the one before by the second in which it was allowed to start: one that begins in
        the second in which the last one ended is taken for that one ("Job credential revoked"), and fails.
        """
        self.wait_for(job, "PENDING")
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def cancel_all(self) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, check=False, capture_output=True)
        self.wait("the queue is empty", lambda: not self.ask("squeue", "--noheader"))


@contextmanager
def running(*, accounting: bool = False) -> Iterator[Cluster]:
    """Start a cluster, and end it, also where this process is killed.

    With `accounting` it has slurmdbd over MariaDB; else sacct fails there, as on clusters that keep none.

    Skips the test, with the reason, where SLURM is not there and cannot be installed, or does not start: at the latest
    after some minutes.
    """
    if os.geteuid() != 0:
        pytest.skip("SLURM: only root can start it")
    if not is_installed():
        _install()
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge wants its socket in reach of everybody, which pytest's own folders are not
        own = {
            "RLX_SLURM_PORT": str(20_000 + os.getpid() % 1250 * 8 + 4 * accounting),  # four of its own
            "RLX_SLURM_OWNER": str(os.getpid()),
            "RLX_SLURM_ACCOUNTING": "1" if accounting else "",
        }
        try:
            failed = _bounded([str(ROOT / "scripts/slurm_start.sh"), name], 120, folder / "start.log", own)
            if failed:
                logs = [path for path in folder.glob("*.log") if path.name.startswith(("start", "slurm"))]
                fatal = [line for path in logs for line in path.read_text().splitlines() if "fatal" in line]
                pytest.skip("; ".join([f"SLURM: it does not start here: {failed}", *fatal[-2:]]))
            yield Cluster(folder)
        finally:
            subprocess.run([str(ROOT / "scripts/slurm_stop.sh"), name], check=True, timeout=120)


def is_installed() -> bool:
    """Return whether all programs are there; daemons are where a user's PATH may not lead."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return all(shutil.which(program, path=path) for program in PROGRAMS)


def _install() -> None:
    """Install SLURM, with no service started, or skip."""
    if shutil.which("apt-get") is None:
        pytest.skip("SLURM: it is not installed, and there is no apt-get")
    policy = Path("/usr/sbin/policy-rc.d")  # what dpkg asks before it starts a service: 101 is no
    is_own = not policy.exists()
    quick = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=60"]
    with tempfile.TemporaryDirectory() as name:
        try:
            if is_own:
                policy.write_text("#!/bin/sh\nexit 101\n")
                policy.chmod(0o755)
            for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
                asked = ["apt-get", *quick, *command]
                failed = _bounded(asked, 240, Path(name) / "log", {"DEBIAN_FRONTEND": "noninteractive"})
                if failed:
                    pytest.skip(f"SLURM: apt-get {command[0]}: {failed}")
        finally:
            if is_own:
                policy.unlink(missing_ok=True)


def _bounded(command: list[str], seconds: float, log: Path, environment: dict[str, str]) -> str:
    """Run a command for so long at most; return why it failed, or nothing.

    Its output goes to a file: a pipe would stay open for as long as a daemon that it started.
    """
    with log.open("w") as output:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            status = program.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
            return f"not done after {seconds:.0f} s"
    return "" if status == 0 else f"exit status {status}: {' '.join(log.read_text().splitlines()[-1:])}"

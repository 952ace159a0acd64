"""The lock of a run directory, among processes."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rlx.errors import RunDirectoryError
from rlx.run import saver
from rlx.run.checkpoint import write_snapshot
from rlx.run.lock import LOCK, RunLock
from rlx.run.records import Records
from tests.program import ENVIRONMENT
from tests.run.jobs import SMALL, train

HOLDER = """
import sys
from pathlib import Path
from rlx.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_directory_that_another_process_holds_is_refused_by_host_and_process(tmp_path: Path, holder) -> None:
    with pytest.raises(RunDirectoryError, match=f"by process {holder.pid} on {platform.node()}$"):
        RunLock(tmp_path).acquire()
    holder.communicate()  # it ends
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_process_that_was_killed_is_nobodys(tmp_path: Path, holder) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with RunLock(tmp_path):
        pass


def test_where_there_are_no_kernel_locks_the_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    refused = pytest.raises(RunDirectoryError, match=f"process {os.getpid()} .*; if it is gone, remove '.*run.lock'")
    with RunLock(tmp_path), refused:
        RunLock(tmp_path).acquire()
    (tmp_path / LOCK).touch()  # by a process that has not written its name yet
    with pytest.raises(RunDirectoryError, match="by another process; if it is gone, remove"):
        RunLock(tmp_path).acquire()
    for owner, taken in (({"host": platform.node(), "pid": 2**22 + 1}, False), ({"host": "other", "pid": 1}, True)):
        (tmp_path / LOCK).write_text(json.dumps(owner))
        if taken:
            with pytest.raises(RunDirectoryError, match="process 1 on other"):
                RunLock(tmp_path).acquire()
        else:
            RunLock(tmp_path).acquire().release()


def test_job_that_slurm_starts_again_elsewhere_takes_over_its_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / LOCK).write_text(json.dumps({"host": "other", "pid": 1, "slurm_job": "12", "restarts": 0}))
    for job, restarts in (("13", "1"), ("12", "0")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        with pytest.raises(RunDirectoryError, match="process 1 on other"):
            RunLock(tmp_path).acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["restarts"] == 1


def test_a_directory_where_no_lock_can_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"run\.lock' cannot be written: No such file or directory"):
        RunLock(tmp_path / "missing").__enter__()


def test_a_file_that_vanishes_while_it_is_opened_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def open_late(path: Path, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_EXCL:
            path.unlink(missing_ok=True)  # as its holder does now
        return really_open(path, flags, mode)

    really_open = os.open
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / LOCK).touch()
    with monkeypatch.context() as late:
        late.setattr(os, "open", open_late)
        lock = RunLock(tmp_path).acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_link_to_nothing_can_be_held(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to("elsewhere")
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "elsewhere").read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).symlink_to("no/where")
    with pytest.raises(RunDirectoryError, match="cannot be written: No such file or directory"):
        RunLock(tmp_path).__enter__()


def test_a_run_that_does_not_wait_for_its_checkpoint_holds_its_directory_until_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def write_slowly(directory: Path, *arguments: Any) -> Path:
        time.sleep(0.3)
        held.append((directory / LOCK).exists())
        return write_snapshot(directory, *arguments)

    monkeypatch.setattr(saver, "write_snapshot", write_slowly)
    monkeypatch.setattr(Records, "wait", Mock(side_effect=KeyboardInterrupt))  # the second Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", *SMALL, "total_steps=64")
    assert held == [True]
    assert not (tmp_path / "run" / LOCK).exists()

"""The lock of a run directory: one process writes it at a time, whoever starts it and wherever.

`run.lock` says who writes: host and process. The lock itself is the kernel's (`flock`): it ends with its process, so a
file that was left behind by one that died is recognised for what it is, and taken over. Where a file system has no such
locks, the file alone counts, and a process that is gone is recognised on its own host only.
"""

import errno
import fcntl
import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from rlx.errors import RunDirectoryError

LOCK = "run.lock"
_POLL_SECONDS = 0.05
_TRIES = 10

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """Holds a run directory from entering, or `acquire`, to leaving, or `release`."""

    def __init__(self, directory: Path, name: str = LOCK, taken: str | None = None) -> None:
        """Prepare; nothing is touched yet.

        Args:
            directory: of the file.
            name: the file's own, where something else than a run directory is held.
            taken: how a message begins that says by whom it is held: `job 3 is being run`.
        """
        self._words = taken or f"run '{directory}' is being written"
        self._path = directory / name
        self._descriptor = -1

    def acquire(self, wait_s: float = 0.0) -> Self:
        """Take the directory.

        Args:
            wait_s: seconds to wait for another process to give it back.

        Raises:
            RunDirectoryError: another process writes it; says which, and where.
            OSError: the file cannot be written.
        """
        end = time.monotonic() + wait_s
        while True:
            try:
                return self._acquire()
            except RunDirectoryError:
                if time.monotonic() >= end:
                    raise
                time.sleep(_POLL_SECONDS)

    def _acquire(self) -> Self:
        while self._descriptor < 0:
            descriptor, made = self._open()
            try:
                self._lock(descriptor, made)
                # Whoever had it may have removed the file in between: then this lock is on nothing.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, json.dumps(_own()).encode(), 0)
                        self._descriptor = descriptor
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
        return self

    def _open(self) -> tuple[int, bool]:
        """Return the file's descriptor, and whether it was made just now."""
        flags = os.O_RDWR | os.O_CLOEXEC
        for _ in range(_TRIES):  # whoever had it may remove it between the two
            try:
                return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                with suppress(FileNotFoundError):
                    return os.open(self._path, flags), False
        return os.open(self._path, flags | os.O_CREAT, 0o666), False  # a link to nothing is there, and is not

    def release(self) -> None:
        """Give it back; harmless when called again."""
        if self._descriptor >= 0:
            with suppress(OSError):  # the directory is gone
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the directory at once.

        Raises:
            RunDirectoryError: another process holds it, or nothing can be written there.
        """
        try:
            return self.acquire()
        except OSError as error:
            raise RunDirectoryError(f"'{self._path}' cannot be written: {error.strerror}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _lock(self, descriptor: int, made: bool) -> None:
        owner = _owner(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken(owner) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            if made:
                return
            if not _is_gone(owner):
                hint = f"; if it is gone, remove '{self._path}'"
                raise RunDirectoryError(f"{self._taken(owner)}{hint}") from None
            self._path.unlink(missing_ok=True)  # and of those that make it anew one alone does

    def _taken(self, owner: dict[str, Any]) -> RunDirectoryError:
        by = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
        return RunDirectoryError(f"{self._words} by {by}")


def _own() -> dict[str, Any]:
    own: dict[str, Any] = {"host": platform.node(), "pid": os.getpid()}
    if "SLURM_JOB_ID" in os.environ:
        own |= {"slurm_job": os.environ["SLURM_JOB_ID"], "restarts": restarts()}
    return own


def restarts() -> int:
    """Return how often SLURM has begun this process's job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _is_gone(owner: dict[str, Any]) -> bool:
    """Return whether who wrote a file has surely ended: SLURM starts a job again only then, perhaps elsewhere."""
    if owner.get("host") == platform.node() and not is_running(owner.get("pid")):
        return True
    same_job = "slurm_job" in owner and owner["slurm_job"] == os.environ.get("SLURM_JOB_ID")
    return same_job and owner.get("restarts", 0) < restarts()


def _owner(descriptor: int) -> dict[str, Any]:
    """Return what the file says; nothing where it was just made."""
    try:
        found: Any = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def is_running(pid: Any) -> bool:
    """Return whether there is a process of this number on this machine, whosever it is."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, TypeError):
        return False
    return True

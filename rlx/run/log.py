"""`log.txt`: what a user wants to know of a run afterwards, in plain text.

How it began (the command, the machine, the versions, the commit), each evaluation and checkpoint, every warning, how it
ended and, where it failed, the traceback.
"""

import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlx import __version__
from rlx.run.files import RecordFile
from rlx.run.sweep import slurm_name

_PACKAGES = ("torch", "numpy", "gymnasium", "hydra-core")
_GIT_SECONDS = 5.0


class RunLog(logging.Handler):
    """Takes a run's own lines and, while it is entered, the warnings and log records of everything in this process.

    Lines are kept until `open` says where to: a run that cannot start leaves no file. From then on each is in the file
    at once. A line that the disk refuses is dropped: the run's metrics, which it refuses too, end the run. What other
    handlers and the standard error show stays as it was. Runs that go on at the same time, in threads of one process,
    take each other's warnings.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._file: RecordFile | None = None
        self._pending: list[bytes] = []
        # Not from getLogger(): a logger of that kind lives as long as the process.
        self._logger = logging.Logger("rlx.run", logging.INFO)
        self._logger.addHandler(self)
        self._stand_in: logging.Handler | None = None
        self._shown: Callable[..., None] | None = None
        self._show_before: Any = None

    def open(self, path: Path) -> None:
        """Write to `path` from now on, the lines so far first.

        Raises:
            OSError: it cannot be written.
        """
        self._file = RecordFile(path)
        self._file.append(b"".join(self._pending))
        self._pending = []

    def info(self, text: str) -> None:
        """Write a line."""
        self._logger.info("%s", text)

    def warning(self, text: str) -> None:
        """Write a line that begins with WARNING."""
        self._logger.warning("%s", text)

    def error(self, text: str, error: BaseException) -> None:
        """Write a line that begins with ERROR, and the traceback of `error`."""
        self._logger.error("%s", text, exc_info=error)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; called by `logging`, one at a time."""
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        if self._file is None:
            self._pending.append(line)
        elif not self._file.closed:
            with suppress(OSError):
                self._file.append(line)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        super().close()

    def __enter__(self) -> Self:
        root = logging.getLogger()
        if not root.handlers:  # with a handler there, warnings would no longer reach standard error on their own
            self._stand_in = logging.lastResort
        for handler in (self._stand_in, self):
            if handler is not None:
                root.addHandler(handler)
        self._show_before, self._shown = warnings.showwarning, self._show
        warnings.showwarning = self._shown
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if warnings.showwarning is self._shown:  # else somebody else has laid their own over it
            warnings.showwarning = self._show_before
        root = logging.getLogger()
        for handler in (self._stand_in, self):
            if handler is not None:
                root.removeHandler(handler)
        self.close()

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Take a warning of Python's, after whoever would have shown it."""
        self._show_before(message, category, filename, lineno, file, line)
        self.warning(f"{category.__name__}: {message} ({filename}:{lineno})")


def surroundings(command: str) -> Iterator[str]:
    """Give the lines that say by what command, where and with which versions a run was made.

    Args:
        command: as a shell would take it.
    """
    with suppress(OSError):  # somebody removed the working directory
        yield f"command: {command}"
        yield f"working directory: {os.getcwd()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"host: {platform.node()}, {platform.platform()}, {cores} cores, process {os.getpid()}"
    if "SLURM_JOB_ID" in os.environ:
        restarts, node = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ.get("SLURMD_NODENAME", "unknown")
        yield f"SLURM: job {slurm_name()}, node {node}, restarts {restarts}"
    yield f"versions: rlx {__version__}, Python {platform.python_version()}, {', '.join(_versions())}"
    commit = git_commit()
    if commit is not None:
        yield f"git: {commit}"


def git_commit() -> str | None:
    """Return the commit that the working directory is at, and whether files differ from it; None outside of git."""
    try:
        commit = _git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return f"{commit} (whether files differ from it is not known)"
    return f"{commit} (with changes that are not committed)" if changed else commit


def _git(*arguments: str) -> str:
    # Without locks, so that a run never stands in the way of what the user does with git at that moment.
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=True)
    return done.stdout.decode(errors="replace").strip()  # names of files may be in any encoding


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            # The module knows its build (2.13.0+cpu); the metadata costs no import.
            yield f"{package} {getattr(sys.modules.get(package), '__version__', None) or version(package)}"

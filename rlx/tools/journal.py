"""A study's journal: Optuna's, of which neither a full disk nor a killed process leaves half a line."""

import json
import os
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from rlx.run.files import RecordFile


class Journal(JournalFileBackend):
    """A file of one line an entry, which any number of processes read and append to.

    Half a line at its end is read as nothing. But an entry that is appended to it makes a line that nobody can read.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal, and make it where it is missing."""
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, all of them or none.

        Raises:
            OSError: the file system refused it.
        """
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        with locked(self._path), closing(RecordFile(self._path)) as file:
            file.truncate(_whole_lines(self._path))  # who left half a line is dead: it had the lock
            file.append(lines.encode())
            file.sync()


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Keep all other processes that do this with a file waiting; by a link, which works over NFS, too."""
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        yield
    finally:
        with suppress(RuntimeError):  # taken from us, after half a minute
            lock.release()


def _whole_lines(path: Path) -> int:
    """Return of how many bytes a file's lines are, but for a last one that was never finished."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() in (b"", b"\n"):
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1

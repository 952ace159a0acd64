"""Which of the processes that share a folder are still there, on this machine and on others.

Each has a file of its own, locked by the kernel while it lives and touched every few seconds. On its own machine the
lock tells. From another machine, where not every file system has such locks, the time of the last touch does, by the
file system's clock alone.
"""

import os
import platform
import secrets
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rlx.errors import RunDirectoryError
from rlx.run.lock import LOCK, RunLock

BEAT_S = 5.0
SILENT_S = 60.0
"""A process on another machine that has not touched its file for so long is gone."""


class Presence:
    """This process among those that share a folder, from entering to leaving.

    Attributes:
        name: this process's, as others know it.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: where each process has its own; made where it is missing.
        """
        self._folder = folder
        self.name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._own = folder / self.name
        self._lock = RunLock(self._own)
        self._leaving = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._own.mkdir(parents=True)
        self._lock.acquire()
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._beating.join()
        self._lock.release()
        shutil.rmtree(self._own, ignore_errors=True)

    def lives(self, name: str) -> bool:
        """Return whether a process is still there.

        Of several that ask at once some may be told that a dead one lives.
        """
        if name == self.name:
            return True
        folder = self._folder / name
        if not (folder / LOCK).exists():
            return False
        if name.rsplit("-", 2)[0] != platform.node():
            return self._now() - _touched(folder) < SILENT_S
        try:
            with RunLock(folder):
                pass
        except RunDirectoryError:
            return True
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def _now(self) -> float:
        """Return the time by the clock of the file system, which machines share."""
        os.utime(self._own / LOCK)
        return _touched(self._own)

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S):
            with suppress(OSError):  # a full disk takes no touch; the next one may
                os.utime(self._own / LOCK)


def _touched(folder: Path) -> float:
    try:
        return (folder / LOCK).stat().st_mtime
    except OSError:
        return 0.0

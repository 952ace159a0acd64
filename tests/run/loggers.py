"""Loggers as users write them; configurations of tests name them."""

import signal
import weakref
from typing import Any, ClassVar

from rlx.run.lock import LOCK
from rlx.run.loggers import RunInfo
from rlx.run.metrics import Row


class Kept:
    """Keeps all that it is told, for all to see."""

    made: ClassVar[list["Kept"]] = []

    def __init__(self, run: RunInfo, *, label: str) -> None:
        self.run, self.label = run, label
        self.rows: list[Row] = []
        self.calls: list[str] = []
        self.begin = run.position or 0
        self.held: list[bool] = []
        self.made.append(self)

    def write(self, row: Row) -> None:
        self.rows.append(row)
        self.held.append((self.run.directory / LOCK).exists())

    def flush(self) -> None:
        self.calls.append("flush")

    def position(self) -> int:
        return self.begin + len(self.rows)

    def close(self) -> None:
        self.calls.append("close")


class Failing:
    """Takes one row."""

    def __init__(self, run: RunInfo, *, at: str) -> None:
        self.at, self.rows = at, 0
        self._reach("begin")

    def write(self, row: Row) -> None:
        self.rows += 1
        if self.rows > 1:
            self._reach("write")

    def flush(self) -> None:
        self._reach("flush")

    def close(self) -> None:
        self._reach("close")

    def _reach(self, place: str) -> Any:
        if self.at == place:
            raise ConnectionError("the server is gone")


class Ending:
    """Ends a run with its second row, where it is not resumed, and is told how it ended."""

    made: ClassVar[list["Ending"]] = []

    def __init__(self, run: RunInfo, *, how: str) -> None:
        self.how, self.rows = how if run.env_steps == 0 else "done", 0
        self.status: str | None = None
        self.told: str | None = None
        if how == "failed":  # else it would be left out
            self.path = run.directory / "ending.txt"
            self.path.touch()
        self.made.append(self)

    def write(self, row: Row) -> None:
        self.rows += 1
        if self.rows == 2 and self.how == "stopped":
            signal.raise_signal(signal.SIGTERM)
        if self.rows == 2 and self.how == "failed":
            raise ArithmeticError("the second row")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.told = self.status


class Circle:
    """Refers to itself, so that only the garbage collector frees it."""

    alive: ClassVar[weakref.WeakSet["Circle"]] = weakref.WeakSet()

    def __init__(self, run: RunInfo) -> None:
        self.itself = self
        self.alive.add(self)

    def write(self, row: Row) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

"""What the checks of numbers cost, measured in the workers' own time: other processes on the machine hardly move it."""

import time
from collections.abc import Callable
from typing import Any

from rlx.batcher.worker import Worker

_seconds: dict[str, list[float]] = {"check": [], "run": []}


def time_checks(worker: Worker) -> None:
    """Time the worker's pieces, and the checks in them, from now on; called through `Batcher.call`."""
    assert worker.piece_check is not None
    for what, name in ((worker, "run"), (worker.piece_check, "check")):
        setattr(what, name, _timed(name, getattr(what, name)))


def share_of_checks(worker: Worker) -> float:
    """Return the cheapest check's part of the cheapest piece's time; called through `Batcher.call`."""
    return min(_seconds["check"]) / min(_seconds["run"])


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = time.thread_time()
        answer = function(*arguments)
        _seconds[name].append(time.thread_time() - began)
        return answer

    return timed

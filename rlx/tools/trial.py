"""One trial of a study: `rlx train` as processes of their own, one a seed, followed by what they write.

A run that fails, is killed or brings its process down takes nothing else along. Nothing passes between it and the study
but its files and SIGTERM, on which it saves and ends; and a pipe, by whose end it learns that the study's process is
gone.
"""

import json
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from rlx.errors import RunDirectoryError
from rlx.run.directory import METRICS, SUMMARY
from rlx.run.metrics import NewRows

METRIC = "eval/return"

_POLL_S = 0.2
_KILL_S = 30.0
"""From SIGTERM to SIGKILL; a run obeys within 8 seconds, and then saves."""
_ERROR = "Error: "


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        status: `complete`, `pruned`, `failed` or `interrupted`.
        value: what it is worth, where it is complete.
        reason: one line, where it failed.
    """

    status: Literal["complete", "pruned", "failed", "interrupted"]
    value: float | None = None
    reason: str | None = None


class RunProcess:
    """A training run in a process of its own, and the evaluations that it has written."""

    def __init__(self, command: Sequence[str], directory: Path, output: Path) -> None:
        """Start it.

        Args:
            command: runs it; ends with SIGTERM, and when its standard input is closed.
            directory: the run directory that it will make.
            output: takes what it prints; kept where it fails.
        """
        self.directory = directory
        self._output = output
        self._rows = NewRows(directory / METRICS, ("env_steps", METRIC))
        self.evaluations: list[tuple[int, float]] = []
        output.parent.mkdir(parents=True, exist_ok=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            self._output.unlink(missing_ok=True)

    def poll(self) -> int | None:
        """Read what is new, and return its exit status, or None while it runs."""
        status = self._process.poll()  # before reading: what is there after the end is all there is
        with suppress(OSError, RunDirectoryError):
            new = self._rows.read()
            rows = zip(new.get("env_steps", []), new.get(METRIC, []), strict=False)
            self.evaluations += [(int(steps), value) for steps, value in rows if math.isfinite(value)]
        return status

    def reached(self, every: int) -> int:
        """Return the number of its newest evaluation; 0 before the first."""
        return self.evaluations[-1][0] // every if self.evaluations else 0

    def value_at(self, number: int, every: int) -> float | None:
        """Return the newest evaluation up to `number`; None where there is none."""
        earlier = [value for steps, value in self.evaluations if steps // every <= number]
        return earlier[-1] if earlier else None

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_KILL_S)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def reason(self) -> str:
        """Return why it failed, in one line."""
        status = self._process.returncode
        with suppress(OSError, ValueError):
            told = json.loads((self.directory / SUMMARY).read_text(encoding="utf-8")).get("reason")
            if told:
                return str(told)
        with suppress(OSError):
            lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in reversed(lines):
                if line.startswith(_ERROR):
                    return line.removeprefix(_ERROR)
            if status > 0 and lines:
                return lines[-1]
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


def run_trial(
    start: Sequence[Callable[[], RunProcess]],
    *,
    every: int,
    evaluations: int,
    last: int,
    report: Callable[[int, float], bool],
    stop: threading.Event,
) -> Outcome:
    """Run a trial to its end, or until it is ended early.

    Args:
        start: starts the run of one seed; all of them run side by side.
        every: environment steps between two evaluations.
        evaluations: of each run.
        last: of them, whose mean is a run's value; the trial's is the mean over its runs.
        report: takes an evaluation's number and the mean over the runs, and tells whether the trial is to be ended.
        stop: set when it is to be interrupted.
    """
    with ExitStack() as stack:
        runs = [stack.enter_context(one()) for one in start]
        reported = 0
        while True:
            statuses = [run.poll() for run in runs]
            for run, status in zip(runs, statuses, strict=True):
                if status not in (None, 0) and not stop.is_set():
                    return Outcome("failed", reason=run.reason())
            reached = min(run.reached(every) for run in runs)
            while reported < min(reached, evaluations):
                reported += 1
                if not any(steps // every == reported for run in runs for steps, _ in run.evaluations):
                    continue  # an iteration longer than the time between two evaluations leaves some out
                values = [run.value_at(reported, every) for run in runs]
                known = [value for value in values if value is not None]
                # After the last evaluation nothing is left to save.
                if len(known) == len(runs) and report(reported, sum(known) / len(known)) and reported < evaluations:
                    return Outcome("pruned")
            if all(status == 0 for status in statuses):
                return _complete(runs, last)
            if stop.is_set():
                return Outcome("interrupted")
            stop.wait(_POLL_S)


def _complete(runs: Sequence[RunProcess], last: int) -> Outcome:
    values: list[float] = []
    for run in runs:
        tail = [value for _, value in run.evaluations[-last:]]
        if not tail:
            return Outcome("failed", reason=f"'{run.directory.name}' has no evaluation with a finite return")
        values.append(sum(tail) / len(tail))
    return Outcome("complete", sum(values) / len(values))

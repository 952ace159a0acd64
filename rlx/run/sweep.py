"""A sweep's directory: which jobs it has, what became of each, and who runs one now.

3/                the run directory of job 3
jobs/sweep.json   what was asked for: the overrides of each job, and what was handed to SLURM
jobs/3.json       what became of job 3: its state, and every attempt at it
jobs/3.lock       who runs it now; not there when nobody does

A run that was submitted alone is a sweep of one job, whose run directory is the sweep's own. All files are replaced as
a whole. `sweep.json` is changed under a lock, and a job's file by whoever holds the job, so that any number of
processes, on any nodes that share the disk, may work on one sweep.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rlx.errors import RlxError, RunDirectoryError, RunWriteError, message_of
from rlx.run.directory import PREPARED, is_run_directory, read_summary
from rlx.run.files import expanded, reason_of, write_json_atomic
from rlx.run.lock import RunLock, restarts

PLAN = "sweep.json"
_OTHERS = (PREPARED, "multirun.yaml")
"""What a sweep's directory may hold before its first job has begun: Hydra writes the second."""
_WAIT_SECONDS = 30.0
_VERSION = 1
PENDING, RUNNING, DONE, FAILED, STOPPED = "pending", "running", "done", "failed", "stopped"


@dataclass
class Job:
    """What became of a job.

    Attributes:
        number: its number in the sweep.
        overrides: what it was told.
        state: `pending`, `running`, `done`, `failed`, or `stopped` (a signal ended it).
        reason: why, in one line, where it was stopped or failed.
        attempts: the times that it was begun or gone on with: `began`, `ended`, `state`, `reason`, `env_steps` (at the
            end), `host`, `process`, `slurm_job` and `restarts` (as SLURM counts them).
    """

    number: int
    overrides: list[str]
    state: str = PENDING
    reason: str | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass
class Submission:
    """Jobs that were handed to SLURM as one.

    Attributes:
        slurm_job: SLURM's number of it.
        jobs: by the number that SLURM gives the task in its array; a run alone has the number -1.
        script: what was submitted.
        submitted: when, in seconds since the epoch.
    """

    slurm_job: str
    jobs: dict[int, int]
    script: str
    submitted: float


@dataclass
class Plan:
    """What was asked for.

    Attributes:
        jobs: the overrides of each.
        asked: numbers of the jobs that the last command was about.
        flags: of that command, such as `--config-dir=/home/me/conf`.
        single: whether this is a run alone.
        submissions: what was handed to SLURM.
    """

    jobs: list[list[str]] = field(default_factory=list[list[str]])
    asked: list[int] = field(default_factory=list[int])
    flags: list[str] = field(default_factory=list[str])
    single: bool = False
    submissions: list[Submission] = field(default_factory=list[Submission])

    def take(self, jobs: Sequence[Sequence[str]]) -> list[int]:
        """Return the numbers of jobs, of which new ones are added; the order of a job's overrides does not matter."""
        known = {tuple(sorted(job)): number for number, job in enumerate(self.jobs)}
        numbers: list[int] = []
        for job in map(own_overrides, jobs):
            number = known.setdefault(tuple(sorted(job)), len(self.jobs))
            if number == len(self.jobs):
                self.jobs.append(job)
            numbers.append(number)
        return numbers


def is_sweep(directory: Path) -> bool:
    """Return whether this directory is a sweep's."""
    return (directory / PREPARED / PLAN).is_file()


def own_overrides(overrides: Sequence[str]) -> list[str]:
    """Return what tells jobs of a sweep apart: where they write, and how they are launched, does not."""
    return [word for word in overrides if not word.lstrip("+~").startswith(("run_dir=", "hydra.", "hydra/"))]


class Sweep:
    """A sweep's directory; nothing is touched until a method is called.

    Attributes:
        directory: where it is.
        folder: its folder `jobs`.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = expanded(directory)
        self.folder = self.directory / PREPARED

    def ask(
        self, jobs: Sequence[Sequence[str]], *, flags: Sequence[str] = (), single: bool = False, more: bool = False
    ) -> list[int]:
        """Note jobs that are asked for; makes the directory. A job that is there already is the same one.

        Args:
            jobs: the overrides of each.
            flags: what they were typed with.
            single: whether this is a run alone.
            more: whether the command asked for others before.

        Returns:
            Their numbers.

        Raises:
            RunDirectoryError: the directory holds something else, or cannot be written.
        """
        try:
            if not is_sweep(self.directory):
                self._check_free()
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock("sweep.lock", f"'{self.directory}' is being written").acquire(_WAIT_SECONDS):
                before = self.plan().asked if more and is_sweep(self.directory) else ()
                asked, plan = self.preview(jobs, single=single)
                plan.asked, plan.flags = sorted({*asked, *before}), list(flags)
                self._write(plan)
                return asked
        except OSError as error:
            raise RunDirectoryError(f"run_dir: cannot write '{self.folder}': {reason_of(error)}") from error

    def preview(self, jobs: Sequence[Sequence[str]], *, single: bool = False) -> tuple[list[int], Plan]:
        """Return the numbers that `ask` would give, and the plan then; nothing is written.

        Raises:
            RunDirectoryError: the directory holds something else.
        """
        if not is_sweep(self.directory):
            self._check_free()
        plan = self.plan() if is_sweep(self.directory) else Plan(single=single)
        if plan.single != single:
            other = "one run alone" if plan.single else "a sweep"
            raise RunDirectoryError(f"run_dir: '{self.directory}' is the directory of {other}; give another one")
        asked = plan.take(jobs)
        if single and len(plan.jobs) > 1:
            raise RunDirectoryError(
                f"run_dir: '{self.directory}' was made for {' '.join(plan.jobs[0])}; give another one"
            )
        return asked, plan

    def add_submission(self, submission: Submission) -> None:
        """Note what was handed to SLURM."""
        with self._lock("sweep.lock", f"'{self.directory}' is being written").acquire(_WAIT_SECONDS):
            plan = self.plan()
            plan.submissions.append(submission)
            self._write(plan)

    def plan(self) -> Plan:
        """Read what was asked for.

        Raises:
            RunDirectoryError: it cannot be read, or is another version's.
        """
        values = _read(self.folder / PLAN)
        if values is None:
            raise RunDirectoryError(f"'{self.directory}' is no sweep of rlx: it holds no {PREPARED}/{PLAN}")
        try:
            if values["version"] != _VERSION:
                raise RunDirectoryError(f"'{self.folder / PLAN}' has version {values['version']}, expected {_VERSION}")
            submissions = [_submission(one) for one in values["submissions"]]
            return Plan(values["jobs"], values["asked"], values["flags"], values["single"], submissions)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RunDirectoryError(f"'{self.folder / PLAN}' is damaged: {error!r}") from error

    def run_directory(self, number: int, plan: Plan | None = None) -> Path:
        """Return where a job's run writes."""
        return self.directory if (plan or self.plan()).single else self.directory / str(number)

    def job(self, number: int, plan: Plan | None = None) -> Job:
        """Read what became of a job.

        Raises:
            RunDirectoryError: there is no such job, or it cannot be read.
        """
        jobs = (plan or self.plan()).jobs
        if not 0 <= number < len(jobs):
            raise RunDirectoryError(f"'{self.directory}' has no job {number}; its jobs are 0 to {len(jobs) - 1}")
        values = _read(self.folder / f"{number}.json")
        if values is None:
            return Job(number, jobs[number])
        try:
            return Job(number, jobs[number], values["state"], values["reason"], values["attempts"])
        except KeyError as error:
            raise RunDirectoryError(f"'{self.folder / f'{number}.json'}' is damaged: it lacks {error}") from error

    def jobs(self) -> list[Job]:
        """Read what became of every job."""
        plan = self.plan()
        return [self.job(number, plan) for number in range(len(plan.jobs))]

    def hold(self, number: int) -> RunLock:
        """Return what keeps others from running a job; acquire it, or use it in a `with`."""
        return self._lock(f"{number}.lock", f"job {number} of '{self.directory}' is being run")

    def is_held(self, number: int) -> bool:
        """Return whether a process runs a job now, here or elsewhere."""
        if not (self.folder / f"{number}.lock").exists():
            return False
        try:
            self.hold(number).acquire().release()
        except RunDirectoryError:
            return True
        except OSError:  # it is another user's, say
            return False
        return False

    def is_done(self, job: Job, plan: Plan | None = None) -> bool:
        """Return whether nothing is left to do; also where a job was killed between its end and the note of it."""
        if job.state == DONE:
            return True
        directory = self.run_directory(job.number, plan)
        if not is_run_directory(directory):
            return False
        summary = read_summary(directory)
        return summary is not None and summary.get("status") == DONE

    def finish(self, job: Job) -> None:
        """Note that a job is done, where that was missed."""
        if job.state != DONE:
            job.state, job.reason = DONE, None
            self._write_job(job)

    @contextmanager
    def attempt(self, job: Job) -> Generator[dict[str, Any]]:
        """Note an attempt at a job, which the caller holds, and how it ends.

        Yields:
            The notes on it.

        Raises:
            RunWriteError: it cannot be noted that it begins, or that it is done.
        """
        now: dict[str, Any] = {"began": time.time(), "host": platform.node(), "process": os.getpid(), "state": RUNNING}
        if "SLURM_JOB_ID" in os.environ:
            now |= {"slurm_job": slurm_name(), "restarts": restarts()}
        if job.attempts and job.attempts[-1]["state"] == RUNNING:
            job.attempts[-1] |= {"state": FAILED, "reason": "it was killed"}
        job.attempts.append(now)
        job.state, job.reason = RUNNING, None
        self._write_job(job)
        try:
            yield now
        except BaseException as error:
            job.state = FAILED if isinstance(error, Exception) else STOPPED
            job.reason = _reason(error)
            with suppress(RunWriteError, RunDirectoryError):  # what ended it is what counts
                self._end(job, now)
            raise
        job.state = DONE
        self._end(job, now)

    def _end(self, job: Job, now: dict[str, Any]) -> None:
        """Note how an attempt has ended."""
        directory = self.run_directory(job.number)
        summary = read_summary(directory) if is_run_directory(directory) else None
        now |= {"ended": time.time(), "state": job.state, "reason": job.reason}
        now["env_steps"] = (summary or {}).get("env_steps", 0)
        self._write_job(job)

    def set_aside(self, job: Job) -> None:
        """Move what an attempt left that came to no checkpoint into the folder `jobs`, for whoever wants to know."""
        directory = self.run_directory(job.number)
        if not directory.is_dir():
            return
        left = [path for path in directory.iterdir() if path != self.folder]
        if left:
            place = self.folder / f"{job.number}.attempt-{len(job.attempts) - 1}"
            while place.exists():
                place = place.with_name(f"{place.name}x")
            place.mkdir()
            for path in left:
                shutil.move(path, place / path.name)
        if directory != self.directory:
            directory.rmdir()

    def _check_free(self) -> None:
        """Raise RunDirectoryError where something else is in the directory."""
        if not os.path.lexists(self.directory):
            return
        if not self.directory.is_dir():
            raise RunDirectoryError(f"run_dir: '{self.directory}' is no folder; give a path that does not exist yet")
        others = sorted(path.name for path in self.directory.iterdir() if path.name not in _OTHERS)
        if others:
            held = "a run" if is_run_directory(self.directory) else f"something else ({others[0]})"
            raise RunDirectoryError(
                f"run_dir: '{self.directory}' exists already, and holds {held}; give a path that does not exist yet"
            )

    def _lock(self, name: str, taken: str) -> RunLock:
        return RunLock(self.folder, name, taken)

    def _write(self, plan: Plan) -> None:
        submissions = [vars(one) for one in plan.submissions]
        write_json_atomic(self.folder / PLAN, {"version": _VERSION, **vars(plan), "submissions": submissions})

    def _write_job(self, job: Job) -> None:
        try:
            write_json_atomic(self.folder / f"{job.number}.json", vars(job))
        except OSError as error:
            raise RunWriteError(f"cannot write '{error.filename}': {reason_of(error)}") from error


def slurm_name() -> str | None:
    """Return SLURM's name of the job that this process is of, such as `12` or, of an array, `12_3`."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _submission(values: dict[str, Any]) -> Submission:
    jobs = {int(task): int(job) for task, job in values["jobs"].items()}
    return Submission(str(values["slurm_job"]), jobs, str(values["script"]), float(values["submitted"]))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise RunDirectoryError(f"'{path}' is damaged: it holds no JSON object")
    return cast("dict[str, Any]", values)


def _reason(error: BaseException) -> str:
    text = message_of(error).splitlines()
    if isinstance(error, RlxError | KeyboardInterrupt) and text:
        return text[0]
    return f"{type(error).__name__}: {' '.join(text)}"

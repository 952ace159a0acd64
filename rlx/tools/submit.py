"""`rlx submit`: runs and sweeps handed to SLURM, by scripts that a user can read, keep and change."""

import os
import re
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.errors import RlxError, RunDirectoryError, RunWriteError, UserError
from rlx.run.files import reason_of, write_text_atomic
from rlx.run.sweep import Submission, Sweep
from rlx.tools import slurm
from rlx.tools.cluster import fit

_SPECIAL = re.compile(r"""[\s'"\\#]""")
"""What would end a word of an #SBATCH line, or begin a quotation or a comment."""
_SHOWN = 5
"""Jobs that a line names one by one."""


@dataclass(frozen=True)
class Asked:
    """Jobs that are to be submitted.

    Attributes:
        directory: of the sweep, or of the run alone.
        jobs: the overrides of each.
        configs: resolved, of some of them: of every kind that needs something else of a machine.
        flags: what each needs to be composed.
        single: whether this is a run alone.
        is_named: whether the user named the directory.
    """

    directory: Path
    jobs: list[list[str]]
    configs: list[Mapping[str, Any]]
    flags: list[str]
    single: bool
    is_named: bool


@dataclass(frozen=True)
class Batch:
    """One script, and what it is of.

    Attributes:
        name: its file's.
        text: its content.
        jobs: numbers of the sweep's jobs, by the number of the task in SLURM's array; -1 for a run alone.
    """

    name: str
    text: str
    jobs: dict[int, int]


@dataclass(frozen=True)
class Done:
    """What was submitted.

    Attributes:
        directory: of the sweep, or of the run alone.
        batches: the scripts.
        submissions: what SLURM took; nothing in a dry run.
        notes: what the user should know besides.
    """

    directory: Path
    batches: list[Batch]
    submissions: list[Submission]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-ready data."""
        return {
            "run_dir": str(self.directory),
            "scripts": [{"name": batch.name, "text": batch.text} for batch in self.batches],
            "slurm_jobs": {str(number): name for number, name in slurm_names(self.submissions).items()},
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """Give what the user reads."""
        for one in self.submissions:
            what = "1 job" if len(one.jobs) == 1 else f"{len(one.jobs)} jobs"
            yield f"submitted {what} as {one.slurm_job}: {self.directory / 'jobs' / one.script}"
        if self.submissions:
            yield f"how they stand: rlx runs {shlex.quote(str(self.directory))}"


def submit_jobs(asked: Asked, wanted: dict[str, Any], *, dry_run: bool = False) -> Done:
    """Submit those jobs that are neither done nor in the queue.

    Args:
        asked: the jobs.
        wanted: what SLURM is asked for, see `rlx.tools.cluster`.
        dry_run: whether to make the scripts only.

    Raises:
        UserError: something contradicts something else, the directory is no good, or SLURM refused.
    """
    notes = fit(wanted, asked.configs)
    sweep = Sweep(asked.directory)
    check_folder(sweep.directory)
    is_new = not sweep.directory.exists()
    numbers, plan = sweep.preview(asked.jobs, single=asked.single)
    if not dry_run:
        sweep.ask(asked.jobs, flags=asked.flags, single=asked.single)
        check_folder(sweep.directory)
    names, queue = slurm_names(plan.submissions), slurm.queue() if plan.submissions else {}
    if queue is None:
        notes.append("squeue does not answer: which jobs are in the queue already is not known")
    done = [number for number in numbers if sweep.is_done(sweep.job(number, plan), plan)]
    queued = [number for number in numbers if number not in done and names.get(number) in (queue or {})]
    running = [number for number in numbers if number not in (*done, *queued) and sweep.is_held(number)]
    left = sorted({*numbers}.difference(done, queued, running))
    counts = [(done, "done already"), (queued, "in the queue already"), (running, "run by other processes")]
    notes.extend(f"{_listed(found)} {what}" for found, what in counts if found)
    batches = make_batches(sweep, left, wanted, len(plan.submissions) + 1, asked.single)
    if dry_run:
        return Done(sweep.directory, batches, [], notes)
    try:
        submissions = submit_batches(sweep, batches)
    except UserError:  # nothing that SLURM has taken is without its note
        if is_new and not asked.is_named and not sweep.plan().submissions:
            shutil.rmtree(sweep.directory, ignore_errors=True)
        raise
    return Done(sweep.directory, batches, submissions, notes)


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) > _SHOWN:
        return f"{len(numbers)} jobs are"
    return f"job{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} {'are' if len(numbers) > 1 else 'is'}"


def check_folder(directory: Path) -> None:
    """Check that nobody else can change what will be run.

    Raises:
        RunDirectoryError: everybody may write it.
    """
    for path in (directory, directory / "jobs"):
        try:
            mode = path.stat().st_mode
        except OSError:  # not there yet; making it tells the rest
            continue
        if mode & stat.S_IWOTH:
            raise RunDirectoryError(
                f"run_dir: '{path}' can be written by everybody, who could change what you run: chmod o-w '{path}'"
            )


def make_batches(
    sweep: Sweep, numbers: Sequence[int], wanted: Mapping[str, Any], first: int, single: bool
) -> list[Batch]:
    """Return the scripts for these jobs: one, or one for each array that SLURM takes.

    Args:
        sweep: where the jobs are.
        numbers: of the jobs.
        wanted: see `rlx.tools.cluster`.
        first: number of the first script.
        single: whether this is a run alone.
    """
    size = wanted["array_size"]
    if single:
        return [Batch(f"submit-{first}.sh", _script(sweep, None, 0, wanted), {-1: number}) for number in numbers]
    batches: list[Batch] = []
    for base in sorted({number - number % size for number in numbers}):
        tasks = {number - base: number for number in numbers if number - number % size == base}
        batches.append(Batch(f"submit-{first + len(batches)}.sh", _script(sweep, list(tasks), base, wanted), tasks))
    return batches


def _script(sweep: Sweep, tasks: list[int] | None, base: int, wanted: Mapping[str, Any]) -> str:
    directory = sweep.directory.absolute()
    alone = tasks is None
    at_once = f"%{wanted['at_once']}" if wanted["at_once"] is not None else ""
    log = f"{sweep.folder.absolute()}".replace("%", "%%") + ("/slurm-%j.txt" if alone else "/slurm-%A_%a.txt")
    asked: dict[str, Any] = {
        "job-name": _SPECIAL.sub("-", directory.name),
        "array": None if alone else f"{slurm.task_ranges(tasks)}{at_once}",
        **{key: wanted[key] for key in ("partition", "account", "qos", "constraint", "time", "mem")},
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": wanted["cpus"],
        "gpus-per-node": wanted["gpus"] or None,
        "signal": f"B:USR1@{wanted['signal_seconds']}",
        "open-mode": "append",
        "output": '"' + log.replace("\\", "\\\\").replace('"', '\\"') + '"',
    }
    number = "0" if alone else '"$SLURM_ARRAY_TASK_ID"' if not base else f"$((SLURM_ARRAY_TASK_ID + {base}))"
    command = f"{shlex.quote(sys.executable)} -m rlx job {shlex.quote(str(directory))} {number} --requeue"
    return "\n".join(
        [
            "#!/bin/bash",
            f"# Written by `rlx submit`: {'a run' if alone else 'jobs of a sweep, one a task of the array'}.",
            *(f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None),
            "#SBATCH --requeue",
            *(f"#SBATCH {option}" for option in wanted["options"]),
            "",
            "# SLURM's signals reach this process, which exec makes rlx's own:",
            "# SIGUSR1, before the time limit and when it is preempted: rlx saves and queues the job again;",
            "# SIGTERM, from scancel, scontrol requeue and at a preemption's end: rlx saves, and the rest is SLURM's.",
            "# Started again, the job goes on from there in the same directory.",
            "trap '' USR1  # until rlx hears it",
            f"cd {shlex.quote(os.getcwd())} || exit 1",
            *wanted["setup"],
            f"exec {command}",
            "",
        ]
    )


def submit_batches(sweep: Sweep, batches: Sequence[Batch]) -> list[Submission]:
    """Write the scripts and hand them to SLURM, one after the other; each is noted as soon as it is taken.

    Raises:
        SubmitError: SLURM refused one; says which jobs were taken before.
        RunDirectoryError: the folder cannot be written.
        RunWriteError: SLURM took jobs, and that cannot be noted.
    """
    made: list[Submission] = []
    for batch in batches:
        path = sweep.folder / batch.name
        try:
            write_text_atomic(path, batch.text)
            path.chmod(0o755)
        except OSError as error:
            raise RunDirectoryError(f"cannot write '{path}': {reason_of(error)}") from error
        try:
            number = slurm.submit(str(path))
        except RlxError as error:
            path.unlink(missing_ok=True)
            if not made:
                raise slurm.SubmitError(f"{str(error).rstrip('.')}. Nothing was submitted.") from error
            taken = ", ".join(f"{len(one.jobs)} as {one.slurm_job}" for one in made)
            left = sum(len(one.jobs) for one in batches) - sum(len(one.jobs) for one in made)
            raise slurm.SubmitError(
                f"{error} (jobs submitted: {taken}; not submitted: {left}; "
                f"the same command with run_dir={sweep.directory} goes on)"
            ) from error
        made.append(Submission(number, batch.jobs, batch.name, time.time()))
        try:
            sweep.add_submission(made[-1])
        except (OSError, RunDirectoryError) as error:
            raise RunWriteError(
                f"SLURM has taken {len(batch.jobs)} jobs as {number}, but cannot note that in '{sweep.folder}': "
                f"{reason_of(error)}; before the same command submits them again: scancel {number}"
            ) from error
    return made


def slurm_names(submissions: Sequence[Submission]) -> dict[int, str]:
    """Return SLURM's name of each job that was submitted, by the job's number; of several, the last one."""
    return {
        number: one.slurm_job if task < 0 else f"{one.slurm_job}_{task}"
        for one in submissions
        for task, number in one.jobs.items()
    }

"""What sweeps know of runs beyond their directories: jobs that have not begun, and what SLURM says of each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rlx.errors import RunDirectoryError
from rlx.run.sweep import PENDING, RUNNING, Job, Plan, Sweep, is_sweep
from rlx.tools import slurm
from rlx.tools.record import RunRecord, typed_overrides
from rlx.tools.submit import slurm_names


def sweeps_of(folder: Path, found: Iterable[Path], runs: Iterable[Path]) -> list[Sweep]:
    """Return the sweeps that lie in a folder, and those that runs in it belong to."""
    places = {path.absolute() for path in (folder, *found)}
    for run in runs:
        places |= {run.absolute(), run.absolute().parent}
    return [Sweep(path) for path in sorted(places) if is_sweep(path)]


def with_jobs(
    records: Sequence[RunRecord], sweeps: Sequence[Sweep], folder: Path, problems: list[str]
) -> list[RunRecord]:
    """Return runs with what SLURM says of them, and a record of each job in the folder that has no run yet.

    Args:
        records: the runs that there are.
        sweeps: their sweeps, and others.
        folder: only jobs below it get records of their own.
        problems: takes a line for each sweep that cannot be read.
    """
    plans: list[tuple[Sweep, Plan, dict[int, str]]] = []
    for sweep in sweeps:
        try:
            plan = sweep.plan()
            plans.append((sweep, plan, slurm_names(plan.submissions)))
        except RunDirectoryError as error:
            problems.append(str(error))
    submitted = {name for _, _, names in plans for name in names.values()}
    states = slurm.states(submitted) if submitted else {}
    found = {record.directory.absolute(): record for record in records}
    order = list(found)
    for sweep, plan, names in plans:
        try:
            for job in _jobs(sweep, plan):
                path = sweep.run_directory(job.number, plan).absolute()
                name = names.get(job.number)
                said = None if name is None else " ".join(filter(None, (name, states.get(name))))
                if path in found:
                    found[path] = replace(found[path], slurm=said)
                elif path.is_relative_to(folder.absolute()):
                    found[path] = _record(folder / path.relative_to(folder.absolute()), job, said)
                    order.append(path)
        except RunDirectoryError as error:
            problems.append(str(error))
    return [found[path] for path in order]


def _jobs(sweep: Sweep, plan: Plan) -> Iterator[Job]:
    for number in range(len(plan.jobs)):
        yield sweep.job(number, plan)


def _record(directory: Path, job: Job, said: str | None) -> RunRecord:
    """Return the record of a job that has no run directory; it may have failed before there was one."""
    known, shown = typed_overrides(job.overrides)
    # Told of a job as it starts, before its directory is there; so it is also where it was killed then.
    status = PENDING if job.state == RUNNING else job.state
    assert status in ("pending", "done", "stopped", "failed")
    return RunRecord(
        directory=directory,
        algo=known.get("algo", ""),
        env=known.get("env", ""),
        status=status,
        reason=job.reason,
        env_steps=0,
        total_steps=None,
        best=None,
        last=None,
        steps_per_second=None,
        began=job.attempts[0]["began"] if job.attempts else 0.0,
        overrides=shown,
        slurm=said,
    )

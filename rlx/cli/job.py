"""`rlx job SWEEP NUMBER`: one job of a sweep, in this process; what a script of `rlx submit` runs."""

import signal
import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rlx.cli.train import JobError, run_hydra, run_sweep_job
from rlx.run.sweep import Sweep, slurm_name
from rlx.tools import slurm

_FUTILE = 3
"""So many attempts in a row that made no step end a job's returns into the queue."""


def run_one(sweep: Sweep, number: int, *, requeue: bool) -> None:
    """Run a job, or go on with it.

    Args:
        sweep: its sweep.
        number: its number there.
        requeue: after SIGUSR1, put the SLURM job that this process is back into the queue.

    Raises:
        RlxError: it failed.
        StopRequested: a signal ended it.
    """

    def task(config: DictConfig) -> None:
        try:
            run_sweep_job(sweep, number, config, HydraConfig.get())
        except Exception as error:
            raise JobError(error) from error

    plan = sweep.plan()
    try:
        run_hydra([*plan.jobs[number], *plan.flags], task)
    except KeyboardInterrupt as stop:
        if requeue and getattr(stop, "signal", None) == signal.SIGUSR1:
            sys.stderr.write(f"{_put_back(sweep, number)}\n")
        raise


def _put_back(sweep: Sweep, number: int) -> str:
    """Put this process's SLURM job back into the queue, unless it comes no further; return what was done."""
    name = slurm_name()
    if name is None:
        return "this is no job of SLURM: it is not put into a queue"
    steps = [attempt.get("env_steps", 0) for attempt in sweep.job(number).attempts[-_FUTILE - 1 :]]
    if len(steps) > _FUTILE and len(set(steps)) == 1:
        return f"{_FUTILE} attempts in a row made no step: SLURM job {name} is not put back into the queue"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which is SLURM's answer
    problem = slurm.requeue(name)
    if problem is not None:
        return f"SLURM job {name} could not be put back into the queue ({problem}); rlx submit goes on with it"
    return f"SLURM job {name} is back in the queue, and goes on from its checkpoint"

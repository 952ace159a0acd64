"""`rlx submit` and `rlx job`: runs and sweeps on a SLURM cluster.

As in `rlx.cli.app`, everything heavy is imported inside the command that needs it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rlx.cli.complete import complete_override
from rlx.cli.report import only_json_on_stdout, reported_errors
from rlx.cli.start import run_job

cluster = typer.Typer(rich_markup_mode=None)


@cluster.command("submit")
def submit(
    overrides: Annotated[
        list[str],
        typer.Argument(help="What follows rlx train, behind --: -m too.", autocompletion=complete_override),
    ],
    partition: Annotated[str | None, typer.Option("--partition", "-p", help="Where to run.")] = None,
    time: Annotated[str | None, typer.Option("--time", "-t", help="Limit: minutes, H:MM:SS or D-HH:MM:SS.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", "-c", min=1, help="Cores of each job.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", "-G", min=0, help="GPUs of each job.")] = None,
    mem: Annotated[str | None, typer.Option("--mem", help="Memory of each job, such as 8G.")] = None,
    account: Annotated[str | None, typer.Option("--account", "-A", help="Who pays.")] = None,
    qos: Annotated[str | None, typer.Option("--qos", "-q", help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option("--constraint", "-C", help="Features of the nodes.")] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", min=1, help="Jobs of a sweep that run at once.")] = None,
    signal_seconds: Annotated[
        int | None, typer.Option("--signal-seconds", min=10, help="How long before its limit a job saves.")
    ] = None,
    array_size: Annotated[int | None, typer.Option("--array-size", min=1, help="Jobs in one array.")] = None,
    setup: Annotated[
        list[str] | None, typer.Option("--setup", help="A shell line before Python starts (repeatable).")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", help="Another option of sbatch: --sbatch=--exclusive (repeatable).")
    ] = None,
    cluster_name: Annotated[
        str, typer.Option("--cluster", help="Defaults: NAME of conf/slurm/, or of slurm/ in --config-dir.")
    ] = "default",
    config_dir: Annotated[
        Path | None, typer.Option("--config-dir", help="A configuration directory of your own.", file_okay=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the scripts; write and submit nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Hand a run, or a sweep (-m), to SLURM and return: rlx submit --time 2:00:00 -- -m algo=ppo 'seed=range(5)'."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.cli.compose import compose_jobs
        from rlx.cli.members import config_directory
        from rlx.tools import cluster as options
        from rlx.tools import submit as tool

        given: dict[str, Any] = {
            **{"partition": partition, "time": time, "cpus": cpus, "gpus": gpus, "mem": mem, "account": account},
            **{"qos": qos, "constraint": constraint, "at_once": at_once, "signal_seconds": signal_seconds},
            **{"array_size": array_size, "setup": setup or [], "options": sbatch or []},
        }
        wanted = options.read_options(given, cluster_name, config_dir, config_directory())
        asked = compose_jobs(overrides, config_dir)
        done = tool.submit_jobs(asked, wanted, dry_run=dry_run)
        for line in done.notes:
            typer.echo(line, err=True)
        if as_json:
            emit(json.dumps(done.to_dict()))
        elif dry_run and done.batches:
            emit("\n".join(batch.text for batch in done.batches).rstrip("\n"))
        else:
            for line in done.lines():
                emit(line)


@cluster.command("job")
def job(
    directory: Annotated[Path, typer.Argument(help="A sweep's directory, or that of a run that was submitted.")],
    number: Annotated[int, typer.Argument(min=0, help="The job's number.")] = 0,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="After SIGUSR1 put the SLURM job back into the queue, too.")
    ] = False,
) -> None:
    """Run one job of a sweep here, or go on with it: what the scripts of rlx submit do."""
    run_job(directory, number, requeue=requeue)

"""Commands on runs that exist: what was found, and what to make of it.

As in `rlx.cli.app`, everything heavy is imported inside the command that needs it.
"""

import json
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlx.cli.report import only_json_on_stdout, reported_errors

results = typer.Typer(rich_markup_mode=None)

AgentInfo = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE, which policy it is where the agent is several: skill=3 (repeatable)."),
]


class Kind(StrEnum):
    """What `rlx plot` can draw."""

    curves = "curves"
    profile = "profile"
    improvement = "improvement"


class Statistic(StrEnum):
    """What seeds are put together by."""

    mean = "mean"
    iqm = "iqm"
    median = "median"


class Format(StrEnum):
    """What `rlx export` can write."""

    onnx = "onnx"
    torchscript = "torchscript"


class Status(StrEnum):
    """How a run stands."""

    pending = "pending"
    running = "running"
    done = "done"
    stopped = "stopped"
    failed = "failed"


class Sort(StrEnum):
    """What `rlx runs` can sort by."""

    run = "run"
    status = "status"
    algo = "algo"
    env = "env"
    steps = "steps"
    progress = "progress"
    best = "best"
    last = "last"
    speed = "speed"
    began = "began"


@results.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="A folder of runs, at any depth.")] = Path("runs"),
    status: Annotated[list[Status] | None, typer.Option(help="Only these (repeatable).")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only runs with KEY=VALUE: algo, env, any key (repeatable).")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="What to sort by.")] = Sort.run,
    descending: Annotated[bool, typer.Option("--descending", help="The greatest first.")] = False,
    metric: Annotated[str, typer.Option(help="What best and last are of: a column of metrics.csv.")] = "episode/return",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Show how runs stand and what they reached: rlx runs runs/CartPole (default folder: runs)."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.run.files import expanded, json_ready
        from rlx.tools import runs

        records, problems = runs.list_runs(
            folder,
            metric=metric,
            status=[one.value for one in status or []],
            where=where or [],
            sort=sort.value,
            descending=descending,
        )
        if as_json:
            emit(json.dumps(json_ready({"runs": [record.to_dict() for record in records], "problems": problems})))
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
        if records:
            emit("\n".join(runs.table(records, expanded(folder), width)))
        else:
            typer.echo(f"no runs in '{folder}'{' that fit' if status or where else ''}", err=True)
        for problem in problems:
            typer.echo(problem, err=True)


@results.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, and folders of runs such as a multirun's.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.  [default: KIND.png]")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Learning curves, performance profiles, who beats whom.")] = Kind.curves,
    metric: Annotated[str, typer.Option(help="A column of metrics.csv, such as eval/return.")] = "episode/return",
    axis: Annotated[str, typer.Option(help="What curves go over: env_steps, wall_time or iteration.")] = "env_steps",
    statistic: Annotated[Statistic, typer.Option(help="Over seeds; iqm: interquartile mean.")] = Statistic.mean,
    by: Annotated[
        list[str] | None, typer.Option(help="A key that tells groups apart (repeatable); else those that differ.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Each run as a thin line, too.")] = False,
    last: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A run's score is its mean over this last part of it.")
    ] = 0.1,
    scale: Annotated[
        list[str] | None,
        typer.Option(help="ENV=LOW:HIGH, scores that count as 0 and 1 over environments (repeatable)."),
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the bootstrap intervals.")] = 0.95,
    title: Annotated[str, typer.Option(help="Above the picture.")] = "",
) -> None:
    """Draw runs, seeds averaged: rlx plot runs/multirun/..."""
    with reported_errors():
        from rlx.tools.plot import PlotOptions, parse_scales, plot_runs

        out = out or Path(f"{kind.value}.png")
        options = PlotOptions(
            kind=kind.value,
            metric=metric,
            axis=axis,
            statistic=statistic.value,
            by=by,
            each=each,
            last=last,
            scales=parse_scales(scale or []),
            level=level,
            title=title,
        )
        about, *notes = plot_runs(runs, out, options)
        for note in notes:
            typer.echo(note, err=True)
        typer.echo(about)
        typer.echo(out)


@results.command()
def compare(
    ours: Annotated[Path, typer.Argument(help="A run directory, or a folder of runs: their means.")],
    theirs: Annotated[Path, typer.Argument(help="Another.")],
    metric: Annotated[str, typer.Option(help="What best and last are of: a column of metrics.csv.")] = "episode/return",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Show what two runs were told differently, and what they reached."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.run.files import json_ready
        from rlx.tools.compare import compare_runs, describe_comparison

        found = compare_runs(ours, theirs, metric)
        for note in found["notes"]:
            typer.echo(note, err=True)
        emit(json.dumps(json_ready(found)) if as_json else "\n".join(describe_comparison(found, ours, theirs)))


@results.command()
def export(
    path: Annotated[Path, typer.Argument(help="A run directory (its newest checkpoint) or a checkpoint.")],
    format: Annotated[Format, typer.Option(help="What runs the file: onnxruntime, or torch alone.")] = Format.onnx,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file.  [default: policy.onnx or policy.pt]")
    ] = None,
    agent_info: AgentInfo = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import the code that the checkpoint names, whatever it is.")
    ] = False,
    config_dir: Annotated[
        Path | None, typer.Option("--config-dir", help="A configuration directory of your own.", file_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Write the acting policy as a file that runs without rlx, checked against it: rlx export runs/CartPole/ppo/..."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        if trust or config_dir is not None:
            from rlx.cli.members import see_own_code

            see_own_code()
        from rlx.tools.export import export_policy

        output = output or Path("policy.onnx" if format is Format.onnx else "policy.pt")
        written = export_policy(
            path, output, format=format.value, agent_info=agent_info or [], trust=trust, config_dir=config_dir
        )
        if as_json:
            emit(json.dumps(written.to_dict()))
            return
        emit(f"{written.path}")
        for kind in ("inputs", "outputs"):
            emit(f"  {kind}: {', '.join(f'{key} {what}' for key, what in written.metadata[kind].items())}")
        emit(
            f"  the same actions as rlx's on {written.num_checked:,} observations of {written.metadata['env_id']} "
            f"(largest difference {written.difference:.2g})"
        )

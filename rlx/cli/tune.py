"""`rlx tune`: search for the numbers with which an algorithm does best."""

import importlib.util
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from rlx.cli.complete import complete_override
from rlx.cli.report import only_json_on_stdout, reported_errors
from rlx.errors import ConfigError, MissingPackageError, RlxError

tuning = typer.Typer(rich_markup_mode=None)


@tuning.command("tune")
def tune(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GROUP=MEMBER] [KEY=VALUE] [tune=NAME] [study_dir=PATH] | STUDY",
            help="What rlx train takes, or a study's directory alone: to go on with it.",
            autocompletion=complete_override,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Of the study in all, those of other processes included.")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at once, here.")] = 1,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each trial; their mean counts.  [default: 1]")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database, such as sqlite:////home/me/rlx.db.  [default: a file]")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Run nothing: tell what the study has found.")] = False,
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", help="A configuration directory of your own, laid over rlx's.", file_okay=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")
    ] = False,
) -> None:
    """Search for the best numbers: rlx tune algo=ppo env=CartPole --trials 50 (the same again goes on)."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        if importlib.util.find_spec("optuna") is None:
            raise MissingPackageError.of("rlx tune", "Optuna", "tune")
        import optuna

        from rlx.cli.plan import make_plan, read_words
        from rlx.cli.trial import CODE
        from rlx.tools.study import open_study
        from rlx.tools.tune import OUTPUT, run_trials

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna 4 has some for common options
        if config_dir is not None and not config_dir.is_dir():
            raise ConfigError(f"--config-dir: there is no directory '{config_dir}'")
        typed = read_words(words or [])
        if typed.study is not None:
            study = _join(typed.study, seeds=seeds, storage=storage, config_dir=config_dir)
        else:
            plan, usual, notes = make_plan(typed, config_dir, seeds=seeds or 1, jobs=jobs, storage=storage)
            directory = typed.study_dir or usual
            for note in notes:
                typer.echo(note, err=True)
            study = _join(directory) if report else open_study(directory, plan)
        with study:
            if not report:
                typer.echo(f"study: {_short(study.directory)}", err=True)
                root = str(Path(__file__).resolve().parents[2])
                command = [sys.executable, "-P", "-c", CODE.format(root=root)]
                run_trials(study, trials=trials, jobs=jobs, command=command, tell=_tell)
            found, lines = _found(study)
        emit(json.dumps(found) if as_json else "\n".join(lines))
        if not report and found["count"].keys() == {"failed"}:
            raise RlxError(f"every trial failed; what they printed is in '{_short(study.directory / OUTPUT)}'")


def _join(
    directory: Path, *, seeds: int | None = None, storage: str | None = None, config_dir: Path | None = None
) -> Any:
    """Return the study that is in a directory.

    Raises:
        RunDirectoryError: there is none.
        ConfigError: an option says something else than the study.
    """
    from rlx.run.files import expanded
    from rlx.tools.study import Study, read_plan

    plan = read_plan(directory)
    own = None if config_dir is None else str(config_dir.absolute())
    typed = {
        "--seeds": (seeds, plan.seeds),
        "--storage": (storage, plan.storage),
        "--config-dir": (own, plan.config_dir),
    }
    for option, (got, there) in typed.items():
        if got not in (None, there):
            raise ConfigError(f"{option}: got {got}, but the study in '{directory}' was begun with {there}")
    return Study(expanded(directory).absolute(), plan)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _found(study: Any) -> tuple[dict[str, Any], list[str]]:
    """Return what a study has found, and the same as lines; the recipe and the pictures are written on the way."""
    from rlx.cli.plan import RECIPE, write_recipe
    from rlx.tools.runs import CONF
    from rlx.tools.search_space import as_override
    from rlx.tools.study import writing
    from rlx.tools.tune_report import describe_study, draw_study, table

    found = describe_study(study)
    lines, notes = list(table(found, study)), list[str]()
    if found["best"] is not None:
        best = study.trials()[found["best"]]
        runs = [str(run) for run in study.runs(best.number)]
        heading = [
            f"{found['title']}: trial {best.number} of {len(found['trials'])}, mean return {best.value:.2f}.",
            f"Its run: {', '.join(runs)}",
        ]
        with writing(study.directory):
            path, wrong = write_recipe(study.plan, study.overrides(best), heading, study.directory)
        conf = shlex.quote(str(_short(study.directory / CONF)))
        again = f"rlx train experiment={RECIPE} --config-dir {conf}"
        if study.plan.config_dir is not None:
            where = shlex.quote(as_override("hydra.searchpath", [f"file://{study.directory / CONF}"]))
            again = f"rlx train experiment={RECIPE} --config-dir {shlex.quote(study.plan.config_dir)} {where}"
        found |= {"runs": runs, "recipe": str(path), "command": again}
        lines += ["", again]
        notes += wrong
    pictures, missing = draw_study(found, study.directory)
    found["pictures"] = [str(picture) for picture in pictures]
    lines += [str(_short(picture)) for picture in pictures]
    for note in (*notes, *missing):
        typer.echo(note, err=True)
    return found, lines


def _short(path: Path) -> Path:
    """Return a path as seen from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

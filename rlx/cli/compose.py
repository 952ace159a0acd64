"""The jobs that a command line describes, composed without running them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from rlx.cli.explain import Composition, explain_sweep, explained, load
from rlx.cli.members import config_directory, see_own_code
from rlx.cli.sweep import last, new_directory, one_directory, searched_besides
from rlx.cli.train import Arguments, check_trains, choices_of, parse, resolve, without_hydra
from rlx.errors import ConfigError
from rlx.run.directory import default_run_directory
from rlx.run.files import expanded
from rlx.run.sweep import own_overrides
from rlx.tools.submit import Asked

_DECIDE = ("batcher.", "device=", "num_threads=")
"""Keys on which it depends what a job needs of a machine; groups are the others."""
_SECONDS = 2.0
"""Many jobs may differ in these; after so long, those that were composed speak for the others."""


def compose_jobs(arguments: Sequence[str], config_dir: Path | None) -> Asked:
    """Return the jobs that `rlx train` would run, where they would write, and what they need.

    Args:
        arguments: what follows `rlx train`.
        config_dir: the user's own configuration directory, where it is not among them.

    Raises:
        ConfigError: what was typed makes no configuration.
    """
    extra = [] if config_dir is None else [f"--config-dir={config_dir}"]
    parsed = parse([*arguments, *extra])
    _check(parsed)
    composition = Composition(
        overrides=parsed.overrides,
        config_name=parsed.config_name,
        directories=[path for path in (parsed.config_dir, str(config_directory())) if path is not None],
        multirun=parsed.multirun,
    )
    if message := explain_sweep(composition) if parsed.multirun else None:
        raise ConfigError(message)
    jobs = _jobs(parsed, composition)
    configs = [load(composition, jobs[0])]
    seen, end = {_decisive(jobs[0], composition)}, time.monotonic() + _SECONDS
    for job in jobs[1:]:
        if (decisive := _decisive(job, composition)) not in seen and time.monotonic() < end:
            seen.add(decisive)
            configs.append(load(composition, job))
    for config in configs:
        check_trains(choices_of(config.hydra))
    values: list[Mapping[str, Any]] = [resolve(without_hydra(config)) for config in configs]
    _check_values(values)
    flags = [] if parsed.config_dir is None else [f"--config-dir={Path(parsed.config_dir).absolute()}"]
    flags += searched_besides(configs[0].hydra)
    typed = values[0]["run_dir"]
    if typed is not None:
        directory = expanded(typed)
    elif parsed.multirun:
        directory = new_directory()
    else:
        choices, name = choices_of(configs[0].hydra), values[0]["env"].get("id")
        shown = choices.get("env", "env")
        directory = default_run_directory(str(name) if shown == "gym" else shown, choices.get("algo", "algo"))
    return Asked(directory, [own_overrides(job) for job in jobs], values, flags, not parsed.multirun, typed is not None)


def _check_values(configs: Sequence[Mapping[str, Any]]) -> None:
    """Check names, types and ranges as each job will, but for what only its machine knows: better than in a queue."""
    from rlx.run.cores import Cores, fitted
    from rlx.run.launch import read_config

    see_own_code()
    for config in configs:
        read_config(fitted(config, Cores(1, "its own")))


def _check(parsed: Arguments) -> None:
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir: there is no directory '{parsed.config_dir}'")
    launcher, resumed = last(parsed.overrides, "hydra/launcher"), last(parsed.overrides, "resume")
    if launcher is not None:
        raise ConfigError(f"{launcher.input_line}: SLURM launches the jobs of rlx submit; leave it out")
    if resumed is not None and resumed.value() is not None:
        raise ConfigError(
            f"{resumed.input_line}: rlx submit goes on with what it began itself, by the same command with run_dir=; "
            "for another run see scripts/slurm/one_run.sh"
        )
    known = ("-m", "--multirun", "-cd", "--config-dir")
    flags = [flag for flag in parsed.flags if flag.startswith("-") and flag.split("=")[0] not in known]
    if flags:
        raise ConfigError(f"{flags[0]}: rlx submit takes KEY=VALUE, -m and --config-dir only")
    if parsed.multirun:
        one_directory(parsed.overrides)


def _jobs(parsed: Arguments, composition: Composition) -> list[list[str]]:
    try:
        if parsed.multirun:
            settings: Any = composition.loader.load_configuration(
                composition.config_name, list(parsed.overrides), RunMode.MULTIRUN
            ).hydra
            # As Hydra's own sweeper has it: what an experiment sweeps over comes first.
            swept: dict[str, Any] = settings.sweeper.get("params") or {}
            words = [f"{key}={values}" for key, values in swept.items()]
            overrides = OverridesParser.create(composition.loader).parse_overrides([*words, *parsed.overrides])
            jobs: list[Any] = BasicSweeper.split_arguments(overrides, None)[0]
            return jobs
    except Exception as error:
        raise explained(error, composition) from None
    return [list(parsed.overrides)]


def _decisive(job: Sequence[str], composition: Composition) -> tuple[str, ...]:
    return tuple(word for word in job if word.startswith(_DECIDE) or word.split("=")[0] in composition.groups)

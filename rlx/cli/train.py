"""`rlx train`: Hydra's own `main`, so that sweeps, launchers and all of Hydra's flags work, and rlx's messages."""

import contextlib
import io
import os
import shlex
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlx.cli.explain import Composition, explain, explain_sweep, load, public_groups
from rlx.cli.joblib_jobs import ended_with_their_command, saved_before_a_signal_ends_them
from rlx.cli.members import config_directory, see_own_code
from rlx.cli.report import describe
from rlx.cli.sweep import (
    OWN,
    PRIMARY,
    SweepError,
    current_sweep,
    is_joblib,
    job_of,
    last,
    own_flags,
    side_by_side,
    sweep_overrides,
    tell_failed,
)
from rlx.errors import ConfigError, RlxError, did_you_mean
from rlx.run.job import run_job
from rlx.run.signals import StopRequested
from rlx.run.sweep import Sweep

_SUBMITITS = "SIGUSR2"
"""What submitit tells its jobs with that their time is over."""
_FLAG_CUTOFF = 0.75
"""How like a flag a word must be to be a slip of one, rather than a key written as one: --seed is no --resolve."""


class JobError(BaseException):
    """Carries what a job raised past Hydra, which would print its own lines about it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Arguments:
    """The command line of `rlx train`, told apart.

    Attributes:
        overrides: `group=member` and `key=value`, in order.
        flags: all the rest, values of flags included.
        multirun: whether `-m` is among them, or `hydra.mode=MULTIRUN`, which is the same.
        config_dir: the user's own configuration directory.
        config_path: what replaces rlx's own.
        config_name: name of the primary configuration.
    """

    overrides: list[str]
    flags: list[str]
    multirun: bool
    config_dir: str | None
    config_path: str | None
    config_name: str


def parse(arguments: Sequence[str]) -> Arguments:
    """Tell overrides from flags.

    Hydra refuses overrides on both sides of a flag (`a=1 -m b=2`); here they may stand anywhere.

    Raises:
        ConfigError: a flag that Hydra does not have, or one with a wrong value.
    """
    parser = get_args_parser()
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            known, rest = parser.parse_known_args(list(arguments))
    except SystemExit as end:
        if end.code in (0, None):  # --version: it has been printed
            raise
        raise ConfigError(message.getvalue().strip().splitlines()[-1].split("error: ")[-1]) from None
    for word in rest:
        if word.startswith("-"):
            flags = [flag for action in parser._actions for flag in action.option_strings]  # pyright: ignore[reportPrivateUsage]
            name = word.split("=")[0]
            near = did_you_mean(name, flags) if get_close_matches(name, flags, cutoff=_FLAG_CUTOFF) else ""
            advice = near or f" Keys take no dashes: {name.lstrip('-').replace('-', '_')}=VALUE."
            raise ConfigError(f"{word}: there is no such flag.{advice}")
    overrides = [*known.overrides, *rest]
    for key in ("resume", "run_dir"):
        if f"{key}=" in overrides:  # as a shell makes of run_dir=$NOTHING
            raise ConfigError(f"{key}: got nothing, expected a directory, or null")
    mode, left = last(overrides, "hydra.mode"), Counter(overrides)
    flags: list[str] = []
    for word in arguments:
        if left[word]:
            left[word] -= 1
        else:
            flags.append(word)
    return Arguments(
        overrides=overrides,
        flags=flags,
        multirun=known.multirun or (mode is not None and str(mode.value()).upper() == RunMode.MULTIRUN.name),
        config_dir=known.config_dir,
        config_path=known.config_path,
        config_name=known.config_name or PRIMARY,
    )


def run_hydra(arguments: Sequence[str], task: Callable[[DictConfig], None] | None = None) -> None:
    """Compose the configuration and run the job, or the jobs, that it describes.

    Args:
        arguments: what follows `rlx train`.
        task: what to do with the configuration; None to train.

    Raises:
        ConfigError: what was typed makes no configuration.
        RlxError: what the job raised.
    """
    parsed = parse(arguments)
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir: there is no directory '{parsed.config_dir}'")
    overrides = list(parsed.overrides)
    shown = [flag for flag in parsed.flags if flag.split("=")[0] in ("-c", "--cfg", "-i", "--info")]
    if parsed.multirun and shown:
        raise ConfigError(f"{shown[0]}: shows the configuration of one run; leave out -m and lists of values")
    if parsed.multirun:
        overrides.extend(sweep_overrides(overrides))
    conf = str(config_directory())
    composition = Composition(
        overrides=parsed.overrides,
        config_name=parsed.config_name,
        directories=[path for path in (parsed.config_dir, parsed.config_path or conf) if path is not None],
        multirun=parsed.multirun,
    )
    if parsed.multirun and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("-m: the jobs of a multirun are runs of their own, and torchrun starts one; leave out either")
    if parsed.multirun and (message := explain_sweep(composition)):
        raise ConfigError(message)
    OmegaConf.register_new_resolver("rlx_groups", partial(_list_groups, composition), replace=True)
    flags = parsed.flags
    if parsed.config_path is not None and "://" not in parsed.config_path:  # which Hydra looks for beside this file
        flags = [*flags, f"--config-path={os.path.abspath(parsed.config_path)}"]
    try:
        launcher = last(overrides, "hydra/launcher") if parsed.multirun else None
        by_joblib = launcher is not None and launcher.value() == "joblib"
        with (
            _hydra_process(["rlx", *overrides, *flags]),
            saved_before_a_signal_ends_them(current_sweep) if by_joblib else nullcontext(),
        ):
            hydra.main(version_base="1.3", config_path=conf, config_name="config")(task or job)()
    except JobError as carrier:
        raise carrier.error from carrier.error.__cause__
    except Exception as error:
        if parsed.multirun and (failed := tell_failed()):
            raise SweepError(failed) from None
        if isinstance(error, RlxError):
            raise
        message = explain(error, composition)
        if message is None:
            raise
        raise ConfigError(message) from None


def _list_groups(composition: Composition) -> str:
    """Return what `rlx train --help` says of groups; Hydra's own listing has those of other commands, too."""
    shown = sorted(public_groups(composition.groups).items())
    return "\n".join(f"{group}: {', '.join(sorted(members))}" for group, members in shown)


def job(config: DictConfig) -> None:
    """Run one job: the task that Hydra calls, in this process or wherever a launcher takes it.

    Raises:
        JobError: whatever a single run raised.
        Exception: whatever a job of a multirun raised; Hydra goes on with the next job, and raises it at the end.
    """
    settings = HydraConfig.get()
    if settings.mode is not RunMode.MULTIRUN:
        try:
            see_own_code(settings.runtime.cwd)
            from rlx.run.launch import launch

            launch(resolve(config), check_trains(choices_of(settings)), command_of(settings))
        except Exception as error:
            raise JobError(error) from error
        return
    sweep, number = job_of(config, settings)
    sys.stderr.write(f"job {number}: {' '.join(sweep.job(number).overrides)}\n")
    try:
        with ended_with_their_command() if is_joblib(settings) else nullcontext():
            run_sweep_job(sweep, number, config, settings)
    except StopRequested as stop:
        if stop.signal.name == _SUBMITITS and callable(signal.getsignal(stop.signal)):
            signal.raise_signal(stop.signal)  # all is saved: now its own handler puts the job back into the queue
        raise
    except Exception as error:
        text = describe(error) if isinstance(error, RlxError) else traceback.format_exc().rstrip()
        sys.stderr.write(f"{text}\nJob {number} failed: {' '.join(sweep.job(number).overrides)}\n")
        _let_go(error)
        raise


def _let_go(error: BaseException | None) -> None:
    """Free what the functions held that an error ended, a replay buffer say: Hydra keeps it until all jobs have run."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def run_sweep_job(sweep: Sweep, number: int, config: DictConfig, settings: Any) -> None:
    """Run a job of a sweep with the configuration that was composed for it."""
    see_own_code(settings.runtime.cwd)
    jobs = side_by_side(settings, len(sweep.plan().asked)) if settings.mode is RunMode.MULTIRUN else 1
    command, choices = command_of(settings), check_trains(choices_of(settings))
    run_job(sweep, number, partial(resolve, config), choices, command, tell=_tell, side_by_side=jobs)


def choices_of(settings: Any) -> dict[str, str]:
    """Return which member of each group was chosen.

    Args:
        settings: Hydra's own part of the configuration.
    """
    return {
        group: str(member)
        for group, member in settings.runtime.choices.items()
        if member is not None and not group.startswith("hydra/")
    }


def check_trains(choices: Mapping[str, str]) -> Mapping[str, str]:
    """Return the choices, where a run can be made of them.

    Raises:
        ConfigError: a search space was chosen, which is for another command.
    """
    if "tune" in choices:
        raise ConfigError(f"tune={choices['tune']}: a search space is for rlx tune; rlx train takes a value a key")
    return choices


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a configuration without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def command_of(settings: Any) -> str:
    """Return the command that runs this one job, wherever it runs and whichever sweep it is of."""
    return shlex.join(["rlx", "train", *settings.overrides.task, *own_flags(settings)])


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def compose_env(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the group `env` that overrides describe, checked and resolved, for commands that train nothing.

    Raises:
        ConfigError: what was typed makes none, or is about something else.
    """
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] != "env":
            raise ConfigError(f"{word}: expected env=MEMBER or env.KEY=VALUE.{did_you_mean(key, ['env'])}")
    composition = Composition(overrides=overrides, config_name="config", directories=[str(config_directory())])
    return resolve(OmegaConf.masked_copy(load(composition), "env"))["env"]


def compose_loggers(word: str, config_dir: Path | None) -> dict[str, Any]:
    """Return the loggers that `logger=[...]` names, with their keys, checked and resolved.

    Raises:
        ConfigError: there is no such logger.
    """
    directories = [str(path) for path in (config_dir, config_directory()) if path is not None]
    group = resolve(without_hydra(load(Composition([word], "config", directories))))["logger"]
    return {name: values for name, values in group.items() if isinstance(values, dict)}


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, with every interpolation resolved and no value missing.

    Raises:
        ConfigError: a value that must be given was not, or an interpolation names nothing.
    """
    try:
        return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).split(": ")[-1]
        raise ConfigError(f"{key}: a value is needed, give it as {key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None


@contextmanager
def _hydra_process(argv: list[str]) -> Generator[None]:
    """Give Hydra the command line it reads, and have it raise its errors instead of printing them.

    It puts `--config-dir` behind rlx's own configuration, where a user's `algo/ppo.yaml` would never be read: here it
    comes before, as everywhere else in rlx.
    """
    old_argv, old_setting = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    prepend = ConfigSearchPathImpl.prepend

    def users_first(self: ConfigSearchPathImpl, provider: str, path: str, anchor: Any = None) -> None:
        prepend(self, provider, path, "main" if provider == OWN else anchor)

    sys.argv = argv
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ConfigSearchPathImpl.prepend = users_first
    try:
        yield
    finally:
        ConfigSearchPathImpl.prepend = prepend
        sys.argv = old_argv
        if old_setting is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = old_setting

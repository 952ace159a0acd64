"""The jobs of a multirun: which are left to do, where they write, and what became of them."""

import contextlib
import importlib.util
import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from rlx.cli.members import config_directory
from rlx.errors import ConfigError, MissingPackageError, RlxError
from rlx.run.cores import find_cores
from rlx.run.files import expanded
from rlx.run.sweep import FAILED, RUNNING, Job, Sweep, is_sweep, own_overrides
from rlx.tools import slurm

_CURRENT: ContextVar[tuple[Sweep, list[int] | None] | None] = ContextVar("current sweep", default=None)
"""The sweep of the command that this process runs, once its configuration has said where it is, and the jobs asked for.

Where the sweeper is not rlx's, these are found as it goes, and stand in the sweep's plan; there others may ask for
others meanwhile.
"""
OWN = "command-line"
"""What Hydra calls where --config-dir came from."""
_RLXS = "main"
"""And where rlx's own configuration did, or what --config-path gives in its place."""
PRIMARY = "config"
"""The primary configuration, unless --config-name says another."""
_LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher", "submitit"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher", "submitit"),
}
"""What brings a launcher: the module, its package, and the extra of rlx."""
_NAMED = re.compile(r"\$\{\s*([\w.]+)\s*\}")


class SweepError(RlxError):
    """Jobs of a multirun failed; all others ran."""


def sweep_overrides(overrides: Sequence[str]) -> list[str]:
    """Return what is to be added to a multirun's overrides, so that Hydra knows where its jobs go.

    Raises:
        ConfigError: `run_dir` is a list of choices, or depends on one.
        MissingPackageError: the launcher is not installed.
        SubmitError: it needs SLURM, which is not here or does not remember enough.
    """
    launcher = last(overrides, "hydra/launcher")
    brought = None if launcher is None else _LAUNCHERS.get(str(launcher.value()))
    if brought is not None and not _is_installed(brought[0]):
        assert launcher is not None
        raise MissingPackageError.of(f"hydra/launcher={launcher.value()}", brought[1], brought[2])
    if launcher is not None and launcher.value() == "submitit_slurm":
        slurm.check_accounting()
    if last(overrides, "hydra.sweep.dir") is not None:
        return []
    typed = one_directory(overrides)
    if typed is not None and typed.value() is not None:
        return ["hydra.sweep.dir=${run_dir}"]
    return [f"hydra.sweep.dir='{new_directory()}'"]


def one_directory(overrides: Sequence[str]) -> Override | None:
    """Return what a multirun was told for `run_dir`, None where nothing was.

    Raises:
        ConfigError: it is a list of choices, or depends on one.
    """
    typed = last(overrides, "run_dir")
    if typed is not None and typed.is_sweep_override():
        raise ConfigError(f"{typed.input_line}: expected one directory; each job gets a folder of its own in it")
    if typed is not None and (swept := _swept_in(typed, overrides)) is not None:
        raise ConfigError(
            f"{typed.input_line}: it depends on {swept}, of which there are several; expected one directory: each job "
            "gets a folder of its own in it"
        )
    return typed


def new_directory() -> Path:
    """Return where a sweep goes that was told no `run_dir`.

    Hydra's own default is a time: two sweeps of the same second would write into each other.
    """
    return Path("runs/multirun") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"


def left_to_do(config: DictConfig | None, jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Note the jobs of a multirun in its directory, and return the overrides of those that are left to do.

    Args:
        config: of the multirun itself.
        jobs: the overrides of each.

    Raises:
        RunDirectoryError: the directory holds something else.
    """
    assert config is not None
    sweep = _sweep_of(config)
    known = is_sweep(sweep.directory)
    asked = sweep.ask(jobs, flags=own_flags(config.hydra))
    _CURRENT.set((sweep, sorted(set(asked))))
    unique = {number: list(job) for number, job in zip(asked, jobs, strict=True)}
    plan = sweep.plan()
    found = {number: sweep.job(number, plan) for number in unique}
    done = [number for number, job in found.items() if sweep.is_done(job, plan)]
    for number in done:
        sweep.finish(found[number])
    elsewhere = [number for number in unique if number not in done and sweep.is_held(number)]
    left = [job for number, job in unique.items() if number not in done and number not in elsewhere]
    counts = [(len(done), "done already"), (len(elsewhere), "run by other processes"), (len(left), "to run")]
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    again = "" if known or config.get("run_dir") else f"; to go on with it later: run_dir={sweep.directory}"
    sys.stderr.write(f"sweep '{sweep.directory}': {len(unique)} jobs, {told}{again}\n")
    return left


def job_of(config: DictConfig, settings: Any) -> tuple[Sweep, int]:
    """Return the sweep and the number there of the job that this process runs for a launcher."""
    sweep, current = _sweep_of(config), _CURRENT.get()
    if current is None or current[0].directory.absolute() != sweep.directory.absolute():
        _CURRENT.set((sweep, None))
    wanted = sorted(own_overrides(settings.overrides.task))
    if is_sweep(sweep.directory):
        for number, job in enumerate(sweep.plan().jobs):
            if sorted(job) == wanted:
                return sweep, number
    # Another sweeper than rlx's finds its jobs as it goes.
    return sweep, sweep.ask([settings.overrides.task], flags=own_flags(settings), more=True)[0]


def own_flags(settings: Any) -> list[str]:
    """Return the flags that a job's command needs, as they hold in any working directory."""
    flags: list[str] = []
    for source in settings.runtime.config_sources:
        path = os.path.abspath(source.path)
        if source.provider == OWN:
            flags.append(f"--config-dir={path}")
        elif source.provider == _RLXS and path != str(config_directory()):
            flags.append(f"--config-path={path}")
    name = settings.job.config_name
    return [*flags, *([] if name in (None, PRIMARY) else [f"--config-name={name}"]), *searched_besides(settings)]


def searched_besides(settings: Any) -> list[str]:
    """Return the override by which Hydra looks for members in further places, as it holds in any working directory."""
    places = [str(place).rpartition("://") for place in settings.get("searchpath") or ()]
    found = [
        f"file://{os.path.abspath(path)}" if scheme in ("", "file") else f"{scheme}://{path}"
        for scheme, _, path in places
    ]
    quoted = (QuotedString(place, Quote.single).with_quotes() for place in found)
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if found else []


def current_sweep() -> Sweep | None:
    """Return the sweep of this command, None before its configuration has said where it is."""
    current = _CURRENT.get()
    return None if current is None else current[0]


def tell_failed() -> str | None:
    """Return a message that lists the jobs of this command's multirun that failed, or None where none did."""
    current = _CURRENT.get()
    if current is None:
        return None
    sweep, asked = current
    plan = sweep.plan()
    failed = [
        job for number in (plan.asked if asked is None else asked) if _failed(sweep, job := sweep.job(number, plan))
    ]
    if not failed:
        return None
    told = "\n".join(
        f"  job {job.number} ({' '.join(job.overrides)}): {job.reason or 'it was killed'}" for job in failed
    )
    many = "s" if len(failed) > 1 else ""
    return f"{len(failed)} job{many} failed, all others ran; see '{sweep.directory}':\n{told}"


def side_by_side(settings: Any, jobs: int) -> int:
    """Return how many jobs share this machine's cores, as the launcher has it."""
    launcher = str(settings.launcher.get("_target_", "")).rpartition(".")[2]
    if launcher == "LocalLauncher":
        return jobs
    if is_joblib(settings):
        wanted = int(settings.launcher.n_jobs or 1)
        return min(jobs, wanted if wanted > 0 else max(1, find_cores().count + 1 + wanted))
    return 1


def is_joblib(settings: Any) -> bool:
    """Return whether joblib launches the jobs: in processes of its own, which take one after the other."""
    return str(settings.launcher.get("_target_", "")).rpartition(".")[2] == "JoblibLauncher"


def last(overrides: Sequence[str], key: str) -> Override | None:
    """Return the last override of a key, or None where there is none."""
    with contextlib.suppress(OverrideParseException):  # composing the configuration tells of it
        found = [one for one in OverridesParser.create().parse_overrides(list(overrides)) if one.key_or_group == key]
        return found[-1] if found else None
    return None


def _swept_in(typed: Override, overrides: Sequence[str]) -> str | None:
    """Return the first key with several values that an override's interpolations name; None where there is none."""
    named = _NAMED.findall(str(typed.value()))
    swept = (
        one.key_or_group for one in OverridesParser.create().parse_overrides(list(overrides)) if one.is_sweep_override()
    )
    return next((key for key in swept if any(f"{name}.".startswith(f"{key}.") for name in named)), None)


def _sweep_of(config: DictConfig) -> Sweep:
    settings = config.hydra if "hydra" in config else HydraConfig.get()
    directory, given = expanded(str(config.get("run_dir") or settings.sweep.dir)), settings.runtime.cwd
    # A job may work elsewhere than where the command was given (hydra.job.chdir); its sweep is the command's.
    return Sweep(directory if os.getcwd() == given else Path(given) / directory)


def _failed(sweep: Sweep, job: Job) -> bool:
    return job.state == FAILED or (job.state == RUNNING and not sweep.is_held(job.number))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # there is no hydra_plugins at all
        return False

"""`launch`: from a composed configuration to a run that has ended."""

import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
from omegaconf import OmegaConf

from rlx.batcher.batcher import Batcher
from rlx.errors import RunDirectoryError
from rlx.run.build import maker
from rlx.run.compute import (
    Precision,
    accept_scattered_weights,
    find_device,
    keep_freed_memory,
    set_float32_products,
)
from rlx.run.cores import describe_use, find_cores, fitted
from rlx.run.directory import default_run_directory, is_taken
from rlx.run.early_stop import obey_lost_signal
from rlx.run.evaluate import Evaluator, kinds_of
from rlx.run.files import expanded
from rlx.run.lock import RunLock
from rlx.run.loggers import LoggerMaker, logger_targets, read_loggers
from rlx.run.migrate import KEY, SCHEMA, read_stored
from rlx.run.options import RunOptions
from rlx.run.policy import check_trust, watched_by
from rlx.run.rank_states import state_of_rank
from rlx.run.ranks import Ranks
from rlx.run.rendezvous import device_of, join, read_learner
from rlx.run.resume import Resumption, check_belongs, check_left, check_run, find_resumption
from rlx.run.run import Run
from rlx.run.samplers import read_samplers, sampler_targets
from rlx.run.subnormal import prepare_threads
from rlx.run.tracked import seed_global_generators
from rlx.seeding import derive
from rlx.validate import Range, validate

_log = logging.getLogger(__name__)

_FREEZES = count(1)

MOST_THREADS = 4096
"""Of the learner, at most: where the system gives OpenMP fewer than it asks for, it ends the process then and there."""
PLAIN_LOGGER_KEYS = ("console", "every")
GROUPS = ("algo", "env", "agent", "batcher", "logger", "checkpoint", "evaluation", "learner")


def top_level(
    *,
    seed: Annotated[int, Range(0)],
    total_steps: Annotated[int, Range(1)],
    device: str,
    resume: str | None,
    run_dir: str | None,
    compile: bool,
    precision: Precision,
    num_threads: Annotated[int, Range(1, MOST_THREADS)],
    stop_at_return: float | None,
) -> dict[str, Any]:
    """Return the keys of conf/config.yaml that belong to no group; the signature is their schema.

    Args:
        seed: root of all seeds.
        total_steps: environment steps at which training ends.
        device: the learner's: `cpu`, `cuda`, `cuda:1`.
        resume: the run to go on with; None for a new one. `rlx train` looks at it before anything else.
        run_dir: where the run writes; None for a new name under `runs/`.
        compile: whether losses are compiled by torch.compile, forward and backward.
        precision: of the losses' matrix products: `float32`, `tf32` or `bfloat16`; see `rlx.run.compute`.
        num_threads: threads of the learner's tensor operations; more than 1 pays for large networks only. What `auto`
            stands for is known by now: see `rlx.run.cores.fitted`.
        stop_at_return: end early once the mean return of the last 100 training episodes is at least this.
    """
    return dict(locals())


def logger(*, console: bool, every: Annotated[int, Range(0)]) -> dict[str, Any]:
    """Return the keys of `logger` that are no loggers: progress on the terminal, environment steps between rows."""
    return dict(locals())


def checkpoint(
    *,
    minutes: Annotated[float, Range(0)],
    every: Annotated[int, Range(0)],
    keep_last: Annotated[int, Range(1)],
    keep_every: Annotated[int, Range(0)],
    buffer: bool,
) -> dict[str, Any]:
    """Return the keys of `checkpoint`: when they are written, which are kept, and whether they hold replay buffers."""
    return dict(locals())


def evaluation(*, every: Annotated[int, Range(0)], episodes: Annotated[int, Range(1)]) -> dict[str, Any]:
    """Return the keys of `evaluation`: environment steps between two (0: never), and episodes of each."""
    return dict(locals())


class Parts(NamedTuple):
    """A configuration whose every key has been checked: plain values by name, and makers."""

    top: dict[str, Any]
    loggers: dict[str, LoggerMaker]
    writes: dict[str, Any]
    saves: dict[str, Any]
    evaluates: dict[str, Any]
    train: "partial[Any]"
    make_env: "partial[Any]"
    make_agent: "partial[Any]"
    make_batcher: "partial[Any]"
    samplers: dict[str, Any]


def read_config(config: Mapping[str, Any]) -> Parts:
    """Check a configuration; imports what it names, and makes nothing.

    Args:
        config: resolved, plain data, the number of workers a number.

    Raises:
        ConfigError: a wrong key, type, range or target; names it.
    """
    part: dict[str, Any] = {**dict.fromkeys(GROUPS), **config}  # a group may have been taken away: ~env
    samplers = read_samplers(part["batcher"])
    loggers = cast("Mapping[str, Any]", part["logger"] or {})
    return Parts(
        top=validate(top_level, {key: value for key, value in config.items() if key not in GROUPS}),
        loggers=read_loggers(loggers, PLAIN_LOGGER_KEYS),
        writes=validate(logger, {key: loggers[key] for key in PLAIN_LOGGER_KEYS if key in loggers}, "logger"),
        saves=validate(checkpoint, part["checkpoint"], "checkpoint"),
        evaluates=validate(evaluation, part["evaluation"], "evaluation"),
        train=maker("algo", part["algo"]),
        make_env=maker("env", part["env"]),
        make_agent=maker("agent", part["agent"]),
        make_batcher=maker("batcher", _with(part["batcher"], samplers)),
        samplers=samplers,
    )


def launch(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    command: str | None = None,
    resume: Resumption | None = None,
    lock: RunLock | None = None,
    *,
    side_by_side: int = 1,
) -> None:
    """Check a configuration, build what it describes, and train; of several ranks, with the others.

    Args:
        config: the resolved configuration, plain data.
        choices: which member of each group was chosen: `{"algo": "ppo", "env": "CartPole", ...}`.
        command: what started the run, as a shell would take it, for its `log.txt`; None for this process's own.
        resume: the run to go on with, whose configuration `config` is; None for a new one.
        lock: of its directory; given back at the end.
        side_by_side: runs that share this machine's cores.

    Raises:
        RlxError: something in it is wrong (nothing has been written then), or training failed.
        StopRequested: a signal ended the run.
    """
    with _back_here(), join(read_learner(config.get("learner")), command) as ranks:
        _train(ranks, config, choices, command, resume, lock, side_by_side)


@contextmanager
def _back_here() -> Generator[None]:
    """Leave the working directory as it was, where it is still there: an environment of this process may change it."""
    here = os.getcwd()
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(here)


def _train(
    ranks: Ranks,
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    command: str | None,
    resume: Resumption | None,
    lock: RunLock | None,
    side_by_side: int = 1,
) -> None:
    """Do what `launch` does, once all ranks are there."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.size > 1 else 1
    cores = find_cores().shared_by(side_by_side * here)
    config = fitted(config, cores)
    parts = read_config(config)
    top, make_env, make_agent = parts.top, parts.make_env, parts.make_agent
    place = {"rank": ranks.rank} if ranks.size > 1 else {}
    device = find_device(device_of(top["device"], ranks))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what `cuda` alone means from here on
        here_alone = config["batcher"].get("workers") != "ray"
        if here_alone and make_env.keywords.get("device") == "cuda":  # in this machine's other processes as well
            make_env = partial(make_env, device=str(device))
    make_batcher = cast(
        "partial[Batcher]", partial(parts.make_batcher, make_agent, make_env, seed=top["seed"], **place)
    )
    env_name = str(make_env.keywords.get("id", choices.get("env", "env")))
    shown = choices.get("env", env_name) if choices.get("env") != "gym" else env_name
    algo = choices.get("algo", "algo")
    directory = Path(top["run_dir"]) if top["run_dir"] else default_run_directory(shown, algo)
    if resume is not None:
        directory = resume.directory
    elif ranks.rank == 0 and is_taken(directory):
        raise RunDirectoryError(f"run_dir: '{directory}' exists already; give a path that does not exist yet")
    directory = expanded(directory).absolute()  # from here on: an environment of this process may change where it is
    directory = Path(ranks.exchange_text(str(directory))[0])  # whose name rank 0 has made up
    torch.set_num_threads(top["num_threads"])
    prepare_threads()
    keep_freed_memory()
    set_float32_products(top["precision"])
    accept_scattered_weights()
    seed_global_generators(derive(top["seed"], "learner"))
    use, warning = describe_use(config, cores)
    options = RunOptions(
        directory=directory,
        config=config,
        config_text=OmegaConf.to_yaml(OmegaConf.create({KEY: SCHEMA, **config})),
        title=f"{algo} on {shown}" if resume is None else resume.checkpoint.meta["title"],
        command=command or shlex.join(sys.argv),
        seed=top["seed"],
        total_steps=top["total_steps"],
        device=device,
        compile=top["compile"],
        precision=top["precision"],
        stop_at_return=top["stop_at_return"],
        checkpoint_minutes=parts.saves["minutes"],
        checkpoint_every=parts.saves["every"],
        keep_last=parts.saves["keep_last"],
        keep_every=parts.saves["keep_every"],
        save_buffer=parts.saves["buffer"],
        evaluate_every=parts.evaluates["every"],
        cores=use,
        resume=resume,
        lock=lock,
        loggers=parts.loggers,
        **parts.writes,
    )
    obey_lost_signal()
    evaluator = None
    if parts.evaluates["every"] and ranks.rank == 0:
        kind = {key: config["batcher"][key] for key in ("workers", "address") if key in config["batcher"]}
        evaluator = Evaluator(
            make_agent,
            make_env,
            episodes=parts.evaluates["episodes"],
            seed=top["seed"],
            kinds=kinds_of(config["env"]),
            **kind,
            **watched_by(config["batcher"]),
            **parts.samplers,
        )
    _spare_the_collector()
    with Run(options, evaluator, ranks) as run:
        if warning is not None and ranks.rank == 0:
            _log.warning(warning)
        parts.train(run, make_agent, make_batcher)


def _spare_the_collector() -> None:
    """Leave out what was imported when garbage is looked for: it stays, and need not be walked through again and again.

    What an earlier run of this process has left is collected first: it would stay, too, with its memory and its files.
    That walks through what came since; only each eighth time through all, for what has died of what was spared.
    """
    if gc.get_freeze_count():
        if next(_FREEZES) % 8 == 0:
            gc.unfreeze()
        gc.collect()
    gc.freeze()


def _with(group: Any, samplers: Mapping[str, Any]) -> Any:
    return {**cast("Mapping[str, Any]", group), **samplers} if samplers else group


def resume_run(
    run: Path,
    changes: Mapping[str, Any],
    command: str | None = None,
    *,
    tell: Callable[[str], None],
    trust: bool = False,
    config_dir: Path | None = None,
    even_if_done: bool = False,
) -> None:
    """Go on with a run from its newest whole checkpoint, in its own directory.

    Args:
        run: its directory.
        changes: new values by dotted key, of those in `rlx.run.resume.MAY_CHANGE`.
        command: as for `launch`.
        tell: told what differs from before, and which checkpoints are damaged, a line a call.
        trust: import whatever code the checkpoint names.
        config_dir: a user's configuration directory, whose names are trusted.
        even_if_done: where nothing is left to do, write the summary that its end may have lacked, and raise nothing.

    Raises:
        RlxError: it cannot be resumed (nothing has been written then), or training failed.
        StopRequested: a signal ended the run.
    """
    directory = expanded(run).absolute()
    check_run(directory)
    written, _ = read_stored(directory)  # what was older in it, its checkpoint tells
    learner = written.get("learner")
    if learner is not None and "learner.timeout" in changes:
        learner = {**learner, "timeout": changes["learner.timeout"]}
    with (
        join(read_learner(learner), command, resumed=True) as ranks,
        RunLock(directory) if ranks.rank == 0 else nullcontext() as lock,
    ):
        if ranks.rank:
            tell = _say_nothing
        found = find_resumption(directory, changes, tell)
        config = found.checkpoint.config
        if not trust:
            also = sampler_targets(config["batcher"]) | logger_targets(config["logger"])
            for group in ("algo", "agent", "batcher"):
                check_trust(found.path, config["env"], config[group], config_dir, also=also)
        check_belongs(found, written)
        read_config(fitted(config, find_cores()))  # what is refused is refused before anything is told
        if not even_if_done:
            check_left(found)
        for key, (old, new) in found.changes.items():
            tell(f"resume: {key}: {old} -> {new}")
        tell(f"resume: '{directory}' goes on from {found.path.name}")
        own = state_of_rank(found.checkpoint.state, ranks.rank, ranks.size)
        found = replace(found, checkpoint=found.checkpoint._replace(state=own))
        _train(ranks, config, {}, command, found, lock)


def _say_nothing(line: str) -> None:
    """Leave it to rank 0."""

"""Resuming: a run goes on from its newest whole checkpoint, in its own directory, as if it had never stopped."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rlx.batcher.batcher import Batcher
from rlx.batcher.state import is_of_another_device
from rlx.data import EnvSpecs, ReplayBuffer
from rlx.errors import CheckpointError, ConfigError, EnvironmentFault, RunDirectoryError, did_you_mean
from rlx.run.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, load_checkpoint, step_of
from rlx.run.counters import Counters
from rlx.run.directory import CHECKPOINTS, CONFIG, is_run_directory
from rlx.run.tracked import Tracked, check_fits, load_into
from rlx.seeding import derive

MAY_CHANGE = (
    "total_steps",
    "stop_at_return",
    "device",
    "env.device",
    "num_threads",
    "learner.timeout",
    "logger",
    "logger.every",
    "logger.console",
    "checkpoint.minutes",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "checkpoint.buffer",
    "evaluation.every",
    "evaluation.episodes",
    "batcher.on_failure",
    "batcher.step_timeout",
    "batcher.address",
    "batcher.cpus_per_worker",
)
"""Keys that may be given with `resume=`; all others are the run's own, for good."""

_DEVICES = ("device", "env.device")


@dataclass(frozen=True)
class Resumption:
    """What a run is resumed from.

    Attributes:
        directory: the run directory.
        path: the checkpoint.
        checkpoint: what it holds.
        damaged: newer checkpoints that are not whole; they go, once the run has taken up its state.
        changes: keys that have another value now: the old one and the new one.
        evaluates: whether an evaluation was due, or under way.
    """

    directory: Path
    path: Path
    checkpoint: Checkpoint
    damaged: list[Path] = field(default_factory=list[Path])
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    evaluates: bool = False

    @property
    def buffer_was_saved(self) -> bool:
        """Return whether the run saved its replay buffers, when it wrote the checkpoint."""
        now = self.checkpoint.config["checkpoint"]["buffer"]
        return bool(self.changes.get("checkpoint.buffer", (now, now))[0])


def check_run(run: Path) -> None:
    """Check that this is the directory of a run.

    Raises:
        RunDirectoryError: it is something else, or nothing.
    """
    if not is_run_directory(run):
        what = "is no run directory" if run.exists() else "does not exist"
        hint = f"; its run is '{run.parent.parent}'" if run.parent.name == CHECKPOINTS else ""
        raise RunDirectoryError(f"resume: '{run}' {what}; expected the directory of a run{hint}")


def check_belongs(found: Resumption, config: Any) -> None:
    """Check that a checkpoint is of the run that it lies in: of its algorithm, environments and agent.

    Raises:
        CheckpointError: it is not; names the group, and both.
    """
    # Of the batcher, what names code; a few of its other keys may change, as may where the environments are.
    for group in ("algo", "env", "agent", "batcher._target_", "batcher.agent_info", "batcher.env_info"):
        there, here = (_lookup(of, group.split(".")) for of in (found.checkpoint.config, config))
        if _differ(there, here) and (group != "env" or _differ(_without_place(there), _without_place(here))):
            raise CheckpointError(
                f"'{found.path}' belongs to another run: its {group} is {there}, this run's {CONFIG} has {here}"
            )


def _differ(one: Any, other: Any) -> bool:
    return one != other and json.dumps(one) != json.dumps(other)  # where a NaN is a NaN


def _without_place(env: Any) -> Any:
    if not isinstance(env, dict):
        return env
    return {key: value for key, value in cast("dict[str, Any]", env).items() if key != "device"}


def find_resumption(run: Path, changes: Mapping[str, Any], tell: Callable[[str], None]) -> Resumption:
    """Return what a run is resumed from, with the changes made in its configuration.

    Args:
        run: the run directory, an absolute path.
        changes: new values by dotted key; of `logger`, the members that the run is to have, by name.
        tell: told of checkpoints that are not whole, and of what an older rlx had written otherwise.

    Raises:
        CheckpointError: it has no whole checkpoint.
        ConfigError: a key that may not change.
    """
    path = find_checkpoint(run, tell)
    checkpoint = load_checkpoint(path, tell)
    config = checkpoint.config
    made: dict[str, tuple[Any, Any]] = {}
    rest, new_loggers = dict(changes), set[str]()
    if "logger" in rest:
        made["logger"], new_loggers = _change_loggers(config, rest.pop("logger"))
    for key, new in rest.items():
        made[key] = _change(config, key, new, new_loggers), new
    made = {key: (old, new) for key, (old, new) in made.items() if old != new}
    damaged = [other for other in list_checkpoints(run) if step_of(other) > step_of(path)]
    turns = _lookup(checkpoint.state, ["run", "evaluation"])
    evaluates = any(_lookup(turns, [name]) is not None for name in ("playing", "due"))
    return Resumption(run, path, checkpoint, damaged, made, evaluates)


def _change_loggers(config: dict[str, Any], asked: Mapping[str, Any]) -> tuple[tuple[str, str], set[str]]:
    """Let a configuration have other loggers; those that it had stay as they are.

    Returns:
        How its loggers are called before and after, and which are new.

    Raises:
        ConfigError: `csv` would go, whose file is what a run is read by.
    """
    group: dict[str, Any] = config["logger"]
    had = [name for name, values in group.items() if isinstance(values, dict)]
    if "csv" in had and "csv" not in asked:
        raise ConfigError(
            f"logger: got [{','.join(asked)}], but csv stays in a run that has it: metrics.csv is to have all its rows"
        )
    plain = {key: value for key, value in group.items() if key not in had}
    config["logger"] = {name: group.get(name, values) for name, values in asked.items()} | plain
    return (f"[{','.join(had)}]", f"[{','.join(asked)}]"), set(asked).difference(had)


def _change(config: dict[str, Any], key: str, value: Any, new_loggers: Collection[str] = ()) -> Any:
    """Set a key of a configuration, and return what it was."""
    if key not in MAY_CHANGE and not (key.startswith("logger.") and key.split(".")[1] in new_loggers):
        known = _lookup(config, key.split("."))
        what = "may not change when a run is resumed" if known is not None else "is no key that may change here"
        raise ConfigError(f"{key}: it {what}; {', '.join(MAY_CHANGE)} may.{did_you_mean(key, MAY_CHANGE)}")
    *groups, name = key.split(".")
    group = _lookup(config, groups)
    if not isinstance(group, dict) or name not in group:
        raise ConfigError(f"{key}: this run has no such key")
    owner = cast("dict[str, Any]", group)
    old, owner[name] = owner[name], value
    return old


def _lookup(config: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        config = cast("dict[str, Any]", config).get(part) if isinstance(config, dict) else None
    return config


def check_left(found: Resumption) -> None:
    """Check that there is something left to do.

    Raises:
        ConfigError: the run has done all it was to do.
        CheckpointError: its checkpoint is no whole run's.
    """
    config, state = found.checkpoint.config, found.checkpoint.state
    run = state.get("run")
    if not isinstance(run, dict):
        raise CheckpointError(f"checkpoint '{found.path}' holds weights, but not what a run could go on from")
    if found.evaluates:
        return
    total, steps = int(config["total_steps"]), found.checkpoint.meta["env_steps"]
    if steps >= total:
        raise ConfigError(
            f"resume: '{found.directory}' has done {steps:,} steps, and total_steps is {total:,}; "
            "give total_steps=MORE to go on"
        )
    if _lookup(run, ["counters", "ended_early"]) and "stop_at_return" not in found.changes:
        raise ConfigError(
            f"resume: '{found.directory}' was ended by stop_at_return={config['stop_at_return']} at {steps:,} steps; "
            "give another one, or stop_at_return=null, to go on"
        )


def take_up(
    found: Resumption, tracked: Mapping[str, Tracked], batcher: Batcher, own: Mapping[str, Mapping[str, Any] | None]
) -> list[str]:
    """Let what a run is made of take up a checkpoint's state; publishes the agent's weights.

    All of it is held against the checkpoint first: where something does not fit, nothing has changed.

    Args:
        found: the checkpoint.
        tracked: by name; `agent` among them.
        batcher: between two pieces, not yet given weights.
        own: what the run itself has to find, by name: states of now.

    Returns:
        What could not be taken up, and begins anew: nothing, where all goes on as if it had never stopped.

    Raises:
        CheckpointError: something does not fit; names the field, and both shapes.
    """
    state, specs = found.checkpoint.state, EnvSpecs.from_dict(found.checkpoint.meta["specs"])
    if batcher.specs != specs:
        raise CheckpointError(
            f"'{found.path}' belongs to another environment: it was trained on {specs}, this one is {batcher.specs}"
        )
    _check_names("run", dict.fromkeys(own), state.get("run"))
    for name, now in own.items():
        if now is not None and state["run"][name] is not None:  # evaluations may come and go
            _check_names(f"run.{name}", now, state["run"][name])
    turns = state["run"]["evaluation"]
    if own["evaluation"] is not None and turns is not None and turns["playing"] is not None:
        _check_names("run.evaluation.playing", {"env_steps": 0, "iteration": 0}, turns["playing"])
        check_fits("run.evaluation.weights", tracked["agent"], turns["weights"])
    moves = _moves(found)
    now = torch.get_num_threads()  # what `auto` stands for, too
    others = [*moves, ("num_threads", (found.changes.get("num_threads", (now, now))[0], now))]
    problems = [f"{key} is {new} and was {old}: sums are rounded otherwise" for key, (old, new) in others if old != new]
    load = dict(tracked)
    for name, value in tracked.items():
        if moves and isinstance(value, torch.Generator) and _was_elsewhere(value, state.get(name)):
            problems.append(f"{name}: drawn anew, by the generator of another device")
            value.manual_seed(derive(value.initial_seed(), "resumed", int(found.checkpoint.meta["env_steps"])))
            del load[name]
        elif isinstance(value, ReplayBuffer) and name not in state and not found.buffer_was_saved:
            which = "the replay buffer" if name == "buffer" else f"the replay buffer {name!r}"
            held = (
                f"begins with {len(value):,} steps that the algorithm put there" if len(value) else "fills again first"
            )
            problems.append(f"{which} was not saved (checkpoint.buffer=false), and {held}")
            del load[name]
        else:
            check_fits(name, value, state.get(name))
    if "batcher" not in state:
        raise CheckpointError("batcher: the checkpoint has none")
    unknown = [name for name in state if name not in tracked and name not in ("batcher", "run")]
    if unknown:
        raise CheckpointError(f"'{found.path}' holds '{unknown[0]}', which this algorithm does not have")
    try:
        Counters().load_state_dict(state["run"]["counters"])  # the run does so itself, when it is too late to refuse
        others = {name: value for name, value in load.items() if isinstance(value, Batcher)}
        for name, value in load.items():
            if name not in others:
                load_into(name, value, state[name])
        agent = tracked["agent"]
        assert isinstance(agent, nn.Module)
        batcher.publish(agent)
        for name, each in {"batcher": batcher, **others}.items():
            told = each.load_state_dict(state[name], int(found.checkpoint.meta["env_steps"]))
            about = "" if each is batcher else f"{name}: "
            problems.extend(about + problem for problem in dict.fromkeys(told))  # once, whoever says the same
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{found.path}' lacks something that this run needs: {error!r}") from error
    except EnvironmentFault as error:  # which is asked by then to be where it was
        raise CheckpointError(f"'{found.path}' cannot be gone on from: {error}") from error
    return problems


def _was_elsewhere(generator: torch.Generator, state: Any) -> bool:
    drawn = _lookup(state, ["generator"])
    return isinstance(drawn, torch.Tensor) and is_of_another_device(generator, drawn)


def _moves(found: Resumption) -> list[tuple[str, tuple[str, str]]]:
    """Return which devices are of another kind than before, with both names: `cuda:0` and `cuda:1` are of one."""
    kinds = {key: [str(name).partition(":")[0] for name in found.changes.get(key, ())] for key in _DEVICES}
    return [(key, found.changes[key]) for key, both in kinds.items() if len({*both}) > 1]


def _check_names(name: str, own: Mapping[str, Any], state: Any) -> None:
    """Check that a state has the fields that it needs, and those within them."""
    there = cast("dict[str, Any]", state) if isinstance(state, dict) else {}
    for key, value in own.items():
        if key not in there:
            raise CheckpointError(f"{name}.{key} is missing in the checkpoint")
        if isinstance(value, dict):
            _check_names(f"{name}.{key}", cast("dict[str, Any]", value), there[key])

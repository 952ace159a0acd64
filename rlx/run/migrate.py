"""Configurations of an older rlx, brought up to date step by step from the schema that they were written in.

`config.yaml` and `checkpoint.json` note the schema. Whoever adds a key that a configuration must have, renames one or
drops one raises `SCHEMA` and adds a step here: it says what the run did before the key was there, which need not be
today's default. `tests/run/test_migrate.py` fails where a step is missing.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from rlx import __version__
from rlx.errors import RunDirectoryError, UserError
from rlx.run.directory import CONFIG

SCHEMA = 5
"""Version of what this rlx writes, configurations and checkpoints; it reads every version up to it."""

KEY = "schema"
"""In `config.yaml`; one without it is of schema 1."""

_SHOWN = 4
_BESIDE_HEAD = re.compile(r"(?<!head\.)\blog_std\.")
_Config = dict[str, Any]


def check_schema(schema: Any, where: str, refusal: type[UserError], by: Any = None) -> int:
    """Return the schema of something that this rlx can read.

    Args:
        schema: the version that it was written in.
        where: what it is, for messages.
        refusal: the error that refuses it.
        by: the version of the rlx that wrote it, where that is known.

    Raises:
        UserError: of type `refusal`: it is of a newer rlx, or its schema is no version.
    """
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise refusal(f"{where}: got format version {schema!r}, expected 1 to {SCHEMA}")
    if schema > SCHEMA:
        writer = f"written by rlx {by}" if by else "written by a newer rlx"
        raise refusal(
            f"{where} has format version {schema}, {writer}; rlx {__version__} reads up to {SCHEMA}: upgrade rlx"
        )
    return schema


def bring_up_to_date(
    config: Mapping[str, Any], schema: Any, where: str, refusal: type[UserError]
) -> tuple[dict[str, Any], str | None]:
    """Return a stored configuration as this rlx would have written it.

    Args:
        config: nested, plain data; it stays as it is.
        schema: the version that it was written in.
        where: what it is of, for messages.
        refusal: the error that refuses it.

    Returns:
        The configuration, and one line that says what was added, renamed and dropped; None where nothing was.

    Raises:
        UserError: of type `refusal`: see `check_schema`; or it is no configuration of its schema.
    """
    check_schema(schema, where, refusal)
    new = deepcopy(dict(config))
    try:
        changes = [change for version in range(schema, SCHEMA) for change in _STEPS[version](new)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refusal(f"{where} holds no configuration of format version {schema}: {error!r}") from error
    if not changes:
        return new, None
    shown = ", ".join(changes[:_SHOWN]) + (f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
    return new, f"{where} was written by an older rlx (format version {schema}); it is read with {shown}"


def bring_state_up_to_date(state: dict[str, Any], config: Mapping[str, Any], schema: int) -> None:
    """Change a checkpoint's state, in place, to what this rlx would have written.

    Up to schema 4 what a row is made of was kept as sums, and versions of weights were not counted. Up to schema 3 the
    standard deviations of `ActorCritic` lay beside its head, and workers did not note what their environments had
    paid, nor seeds apart.

    Args:
        state: of the checkpoint.
        config: its configuration.
        schema: the version that it was written in.
    """
    if schema > 4:
        return
    run = cast("dict[str, Any]", state.get("run") or {})
    averages = cast("dict[str, Any]", (run.get("counters") or {}).get("averages") or {})
    if "sums" in averages:
        sums = cast("dict[str, float]", averages.pop("sums"))
        averages["means"] = {key: total / averages["counts"].get(key, 1) for key, total in sums.items()}
    ranks = cast("dict[str, dict[str, Any]]", state.get("ranks") or {})
    for holder in (state, *ranks.values()):
        if isinstance(holder.get("batcher"), dict):
            holder["batcher"].setdefault("versions", 0)
    if schema > 3:
        return
    for worker in _workers_in([state.get("batcher"), state.get("ranks")]):
        worker["apart"] = None
        if isinstance(worker["journal"], dict):
            worker["journal"]["paid"] = None
    if "rlx.agent.ActorCritic" not in json.dumps(config.get("agent"), default=str):
        return
    evaluation = cast("dict[str, Any]", run.get("evaluation") or {})
    for holder, key in ((state, "agent"), (evaluation, "weights")):
        weights = cast("dict[str, Any]", holder.get(key) or {})
        for name in [name for name in weights if _BESIDE_HEAD.search(name)]:
            weights[_BESIDE_HEAD.sub("head.log_std.", name)] = weights.pop(name)


def _workers_in(state: Any) -> Iterator[dict[str, Any]]:
    """Yield the states of workers, wherever they lie: of several ranks each has its own."""
    if isinstance(state, Mapping) and "rollout" in state and "journal" in state:
        yield cast("dict[str, Any]", state)
    elif isinstance(state, Mapping | list):
        for part in cast("Iterable[Any]", state.values() if isinstance(state, Mapping) else state):
            yield from _workers_in(part)


def read_stored(directory: Path) -> tuple[dict[str, Any], str | None]:
    """Read the `config.yaml` of a run, nested, and bring it up to date; takes about 1 ms.

    Returns:
        The configuration, and what was changed in it: see `bring_up_to_date`.

    Raises:
        RunDirectoryError: it cannot be read, is no configuration, or is of a newer rlx.
    """
    import yaml

    path = directory / CONFIG
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
    try:
        loaded: Any = yaml.load(path.read_bytes(), Loader=loader)
    except OSError as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RunDirectoryError(f"'{path}' is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise RunDirectoryError(f"'{path}' holds no configuration")
    config = cast("dict[str, Any]", loaded)
    return bring_up_to_date(config, config.pop(KEY, 1), f"'{path}'", RunDirectoryError)


def told_together(notes: Sequence[str]) -> list[str]:
    """Return one line for what was told of several runs; none where nothing was."""
    others = f" (and {len(notes) - 1} other{'s' if len(notes) > 2 else ''} likewise)" if len(notes) > 1 else ""
    return [f"{notes[0]}{others}"] if notes else []


_NORMALISED: _Config = {"normalize_observation": False, "normalize_return": False}
_DRAWN: _Config = {"agent_info": None, "env_info": None}
_WATCHED: _Config = {"on_failure": "raise", "step_timeout": 0}
_ADDED_IN_2: dict[str, _Config] = {
    "": {
        "resume": None,
        "compile": False,
        "precision": "float32",
        "num_threads": 1,
        "stop_at_return": None,
        "logger": {"csv": True, "tensorboard": True},
    },
    "learner": {"kind": "alone"},
    "logger": {"console": True, "every": 0},
    "checkpoint": {"minutes": 0, "every": 0, "keep_last": 3, "keep_every": 0, "buffer": False},
    "evaluation": {"every": 0, "episodes": 10},
    "rlx.env.make": {"action_mask": False},
    "rlx.env.make_legacy_gym": {"action_mask": False},
    "rlx.env.Errand": {"empty_handed": 0.01},
    "rlx.agent.ActorCritic": _NORMALISED,
    "rlx.agent.GRUActorCritic": _NORMALISED,
    "rlx.agent.LSTMActorCritic": _NORMALISED,
    "rlx.agent.OptionActorCritic": _NORMALISED,
    "rlx.agent.TransformerActorCritic": _NORMALISED,
    "rlx.agent.QNetwork": {"normalize_observation": False},
    "rlx.agent.RecurrentQNetwork": {"normalize_observation": False},
    "rlx.agent.SoftActorCritic": {"normalize_observation": False, "num_skills": 0},
    "rlx.agent.RecurrentSoftActorCritic": {"normalize_observation": False},
    "rlx.algo.dqn.train": {"hindsight": None},
    "rlx.algo.sac.train": {"hindsight": None, "sequence_length": None, "burn_in_steps": None},
    "rlx.batcher.EpisodeBatcher": {**_WATCHED, **_DRAWN, "address": None},
    "rlx.batcher.Batcher": _DRAWN,
    "rlx.batcher.Batcher process": {**_WATCHED, "asynchronous": False},
}
"""What schema 1 came to lack as it grew, and what runs did without it; by the group that has it, or by its `_target_`,
or by that and the kind of workers."""


def _from_1(config: _Config) -> list[str]:
    """Bring schema 1 to 2: keys that came later; schedules as lists; loggers by name; replay saved by checkpoints."""
    changes: list[str] = []
    for name in ("", "learner", "logger", "checkpoint", "evaluation"):
        changes += _add(config.setdefault(name, {}) if name else config, name, _ADDED_IN_2[name])
    for name in ("env", "agent", "algo", "batcher"):
        group: _Config = config.get(name) or {}
        for kind in ("{_target_}", "{_target_} {workers}"):
            known = kind.format_map(defaultdict(str, group))
            changes += _add(group, name, _ADDED_IN_2.get(known, {}))
    algo: _Config = config.get("algo") or {}
    if not str(algo.get("_target_")).startswith("rlx.algo."):
        algo = {}  # whose keys are not ours to rename
    if "save_buffer" in algo:
        config["checkpoint"]["buffer"] = algo.pop("save_buffer")
        changes.append(f"checkpoint.buffer={_text(config['checkpoint']['buffer'])} for algo.save_buffer")
    for key in ("learning_rate", "clip_coef"):
        falls = algo.pop(f"anneal_{key}", None)
        if falls:
            algo[key] = ["linear", algo[key], 0]
        if falls is not None:
            changes.append(f"algo.{key}={_text(algo[key])} for algo.anneal_{key}")
    if "epsilon_start" in algo:
        start, end, fraction = (algo.pop(f"epsilon_{part}") for part in ("start", "end", "fraction"))
        algo["epsilon"] = ["linear", start, end, {"fraction": fraction}]
        changes.append(f"algo.epsilon={_text(algo['epsilon'])} for algo.epsilon_start, _end and _fraction")
        if isinstance(algo.get("prioritized_beta"), float | int):  # it rose to 1 of itself
            algo["prioritized_beta"] = ["linear", algo["prioritized_beta"], 1.0]
    return changes + _name_loggers(config["logger"])


def _name_loggers(group: _Config) -> list[str]:
    """Turn `csv: true` into the logger that it meant, and leave out what was false."""
    meant: _Config = {
        "csv": {"_target_": "rlx.run.loggers.csv"},
        "tensorboard": {"_target_": "rlx.run.loggers.tensorboard", "hparams": False},
    }
    changes: list[str] = []
    for name, values in meant.items():
        if isinstance(group.get(name), bool):
            changes.append(f"logger.{name} as a logger" if group[name] else f"no logger.{name}")
            if group.pop(name):
                group[name] = values
    return changes


def _from_2(config: _Config) -> list[str]:
    """Bring schema 2 to 3: A2C's V-trace."""
    algo: _Config = config.get("algo") or {}
    return _add(algo, "algo", {"vtrace": False} if algo.get("_target_") == "rlx.algo.a2c.train" else {})


def _from_3(config: _Config) -> list[str]:
    """Bring schema 3 to 4: replay on disk. Weights have other names, too: see `bring_state_up_to_date`."""
    algo: _Config = config.get("algo") or {}
    kept = algo.get("_target_") in {f"rlx.algo.{name}.train" for name in ("dqn", "hdqn", "sac", "diayn")}
    return _add(algo, "algo", {"buffer_directory": None} if kept else {})


_STEPS: dict[int, Callable[[_Config], list[str]]] = {1: _from_1, 2: _from_2, 3: _from_3, 4: lambda _: []}
"""For each older schema, what brings a configuration, in place, to the next one; returns what it changed."""


def _add(group: _Config, name: str, values: Mapping[str, Any]) -> list[str]:
    missing = {key: deepcopy(value) for key, value in values.items() if key not in group}
    group.update(missing)
    return [f"{name}.{key}={_text(value)}".removeprefix(".") for key, value in missing.items()]


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

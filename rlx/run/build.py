"""From config groups to the makers that an algorithm is given: every key checked before anything starts."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rlx.errors import ConfigError, did_you_mean, message_of, nearest
from rlx.validate import validate

GIVEN: dict[str, tuple[str, ...]] = {
    "algo": ("run", "make_agent", "make_batcher"),
    "agent": ("specs",),
    "env": ("num_envs",),
    "batcher": ("make_agent", "make_env", "num_steps", "seed", "evaluation", "stop_at_episode_end", "rank"),
}
"""For each group, the parameters that the code gives to the group's target."""
_SIZED = {"agent": "lower its sizes", "env": "lower its sizes, or batcher.envs_per_worker"}
"""Groups whose numbers say how much memory their target takes at once, and what to do where there is less."""
_NO_ROOM = ("can't allocate memory", "out of memory", "calculation overflowed", "multiplication overflow")
"""What a RuntimeError of torch says then."""


def find_target(group: str, values: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what `_target_` of a group names, imported.

    Raises:
        ConfigError: there is no such module or name in it.
    """
    dotted = values.get("_target_")
    parts = dotted.split(".") if isinstance(dotted, str) else []
    if not isinstance(dotted, str) or len(parts) < 2 or not all(part.isidentifier() for part in parts):
        got = f"got {dotted!r}" if "_target_" in values else "no value given"
        raise ConfigError(f"{group}._target_: {got}, expected a dotted name such as 'rlx.algo.ppo.train'")
    module_name, _, name = dotted.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it needs is not
        hint = _nearest_target(error.name, dotted)
        raise ConfigError(f"{group}._target_: there is no module '{error.name}' (for '{dotted}').{hint}") from None
    target = getattr(module, name, None)
    if target is None and hasattr(module, "__path__"):
        with suppress(ModuleNotFoundError):
            target = importlib.import_module(dotted)
    if isinstance(target, ModuleType):
        match = nearest("train", _functions(target))
        hint = f" Did you mean '{dotted}.{match}'?" if match is not None else ""
        raise ConfigError(f"{group}._target_: '{dotted}' is a module, expected a function or a class in one.{hint}")
    if not callable(target):
        hint = did_you_mean(name, _functions(module))
        raise ConfigError(f"{group}._target_: '{module_name}' has no function or class '{name}'.{hint}")
    return target


def _functions(module: ModuleType) -> list[str]:
    """Return the public names of a module: those in its `__all__`, or the functions and classes that it defines."""
    told = getattr(module, "__all__", None)  # a package's: it defines nothing itself
    if told is not None:
        return list(told)
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _modules(places: Iterable[str]) -> set[str]:
    """Return the names of the modules and packages in directories; a package needs no `__init__.py`."""
    names = {module.name for module in pkgutil.iter_modules(list(places))}
    for place in places:
        with suppress(OSError):
            names.update(path.parent.name for path in Path(place).glob("*/*.py"))
    return {name for name in names if name.isidentifier()}


def _nearest_target(missing: str, dotted: str) -> str:
    """Return ` Did you mean '...'?` with the nearest module in place of `missing`, the first part that is not there."""
    parent, _, name = missing.rpartition(".")
    # What was found before the missing part has been imported; nothing else is, only looked for in the file system.
    places: Any = getattr(sys.modules.get(parent), "__path__", []) if parent else sys.path
    match = nearest(name, _modules(places))
    if match is None:
        return ""
    found, rest = f"{parent}.{match}".lstrip("."), dotted[len(missing) :]
    return f" Did you mean '{found}{rest}'?"


def check_fit(make_env: Callable[..., Any], make_agent: Callable[..., Any], num_envs: int) -> None:
    """Make the environments of one worker and an agent for them, as training will; close them again.

    Raises:
        RlxError: the environment cannot be made, or the agent does not fit it; in the words of `rlx train`.
    """
    env = make_env(num_envs=num_envs)
    try:
        make_agent(env.specs)
    finally:
        env.close()


def maker(group: str, values: Any, given: Collection[str] | None = None) -> "partial[Any]":
    """Return the group's target with the group's values as keywords; the rest is given when it is called.

    Args:
        group: `algo`, `agent`, `env` or `batcher`.
        values: the group's values, `_target_` included.
        given: parameters that the config may not hold; None for the group's usual ones.

    Raises:
        ConfigError: a wrong target, key, type or range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{group}: got {values!r}, expected a member of conf/{group}, as in {group}=NAME")
    named = cast("Mapping[str, Any]", values)
    target = find_target(group, named)
    checked = validate(target, named, group, given=GIVEN[group] if given is None else given)
    keywords = {key: value for key, value in checked.items() if not key.startswith("_")}
    return partial(_built, group, target, **keywords) if group in _SIZED else partial(target, **keywords)


def _built(group: str, target: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Return what the group's target makes.

    Raises:
        ConfigError: it does not fit into memory; or what should be an agent is none.
    """
    try:
        made = target(*arguments, **keywords)
    except (MemoryError, RuntimeError) as error:
        text = message_of(error)
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _NO_ROOM):
            raise
        reason = text.partition("\n")[0].rpartition("] ")[2].rpartition("CPUAllocator: ")[2]
        raise ConfigError(f"{group}: memory has no room for it ({reason or 'MemoryError'}); {_SIZED[group]}") from None
    if group == "agent" and not hasattr(made, "initial_state"):
        told = getattr(target, "__name__", str(target))
        raise ConfigError(f"agent._target_: '{told}' made a {type(made).__name__}, expected an rlx.agent.Agent")
    return made

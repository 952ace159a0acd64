"""From config groups to the makers that an algorithm is given: every key checked before anything starts."""

import importlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

from rlx.errors import ConfigError, did_you_mean
from rlx.validate import validate

GIVEN: dict[str, tuple[str, ...]] = {
    "algo": ("run", "make_agent", "make_batcher"),
    "agent": ("specs",),
    "env": ("num_envs",),
    "batcher": ("make_agent", "make_env", "num_steps", "seed", "evaluation", "stop_at_episode_end"),
}
"""For each group, the parameters that the code gives to the group's target."""


def find_target(group: str, values: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what `_target_` of a group names, imported.

    Raises:
        ConfigError: there is no such module or name in it.
    """
    dotted = values.get("_target_")
    if not isinstance(dotted, str) or "." not in dotted:
        raise ConfigError(f"{group}._target_: got {dotted!r}, expected a dotted name such as 'rlx.algo.ppo.train'")
    module_name, _, name = dotted.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it needs is not
        raise ConfigError(f"{group}._target_: there is no module '{error.name}' (for '{dotted}')") from None
    target = getattr(module, name, None)
    if not callable(target):
        raise ConfigError(f"{group}._target_: '{module_name}' has no '{name}'.{did_you_mean(name, dir(module))}")
    return target


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
    return partial(target, **{key: value for key, value in checked.items() if not key.startswith("_")})

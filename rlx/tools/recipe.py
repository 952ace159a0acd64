"""A configuration as a recipe: the groups' members, and the values that they do not give already."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

_LEFT_OUT = ("run_dir", "resume", "tune", "hydra", "experiment")


def recipe(
    config: Mapping[str, Any], members: Mapping[str, Any], choices: Mapping[str, str], heading: Sequence[str]
) -> str:
    """Return a recipe for the group `experiment`.

    Args:
        config: what it is to give, plain data.
        members: what the chosen members give alone.
        choices: the member of each group.
        heading: lines of its comment.
    """
    comment = "".join(f"# {line}\n" for line in ("@package _global_", *heading))
    defaults = "".join(f"  - override /{group}: {name}\n" for group, name in choices.items())
    values = difference(members, config)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None) if values else ""
    return f"{comment}defaults:\n{defaults}{text}"


def difference(members: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `config` that differ from those of `members`, nested; what it lacks cannot be told."""
    return _difference(members, {key: value for key, value in config.items() if key not in _LEFT_OUT})


def _difference(members: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key not in members:
            found[key] = value
            continue
        other = members[key]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            inner = _difference(cast("Mapping[str, Any]", other), cast("Mapping[str, Any]", value))
            if inner:
                found[key] = inner
        elif repr(cast("Any", value)) != repr(other):  # 1 and 1.0 and true are not the same
            found[key] = value
    return found

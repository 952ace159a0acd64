"""What a configuration says of `batcher.agent_info` and `batcher.env_info`: what is drawn for each episode."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from rlx.batcher.draws import Draws
from rlx.batcher.sampler import Sampler
from rlx.errors import ConfigError
from rlx.run.build import find_target
from rlx.validate import validate

KINDS = ("agent_info", "env_info")


def read_samplers(batcher: Any) -> dict[str, Any]:
    """Return the samplers that the group `batcher` describes, by kind; none where both are null.

    A mapping with a `_target_` names a function `sample(row, generator, *, ...)`, or a class whose objects are called
    so; its other keys are keywords. Any other mapping is as `rlx.batcher.draws` has it.

    Raises:
        ConfigError: a wrong target, key or form.
    """
    return {kind: _sampler(f"batcher.{kind}", value) for kind, value in _described(batcher).items()}


def sampler_targets(batcher: Any) -> set[str]:
    """Return the dotted names that the samplers of the group `batcher` would have imported."""
    told = [cast("Mapping[str, Any]", value) for value in _described(batcher).values() if isinstance(value, Mapping)]
    return {str(value["_target_"]) for value in told if "_target_" in value}


def _described(batcher: Any) -> dict[str, Any]:
    """Return what the group says of each kind that is not null."""
    values: dict[str, Any] = dict(cast("Mapping[str, Any]", batcher)) if isinstance(batcher, Mapping) else {}
    return {kind: values[kind] for kind in KINDS if values.get(kind) is not None}


def _sampler(key: str, value: Any) -> Sampler:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{key}: got {value!r}, expected {{FIELD: {{uniform: [0, 1]}}, ...}}, {{_target_: ...}} or null"
        )
    named = cast("Mapping[str, Any]", value)
    if "_target_" not in named:
        return Draws(named, key)
    target = find_target(key, named)
    if not inspect.isclass(target):
        _check_call(f"{key}._target_: {named['_target_']}", target)
    # What is given when it is called are its first two parameters, however they are named.
    given = [] if inspect.isclass(target) else [*inspect.signature(target).parameters][:2]
    keywords = {name: part for name, part in validate(target, named, key, given=given).items() if name[0] != "_"}
    if not inspect.isclass(target):
        return partial(target, **keywords)
    made = target(**keywords)
    if not callable(made):
        raise ConfigError(f"{key}._target_: objects of {named['_target_']} cannot be called; expected (row, generator)")
    _check_call(f"{key}._target_: an object of {named['_target_']}", made)
    return cast("Sampler", made)


def _check_call(what: str, sampler: Callable[..., Any]) -> None:
    """Refuse what cannot be called with a row and a generator."""
    try:
        parameters = inspect.signature(sampler).parameters.values()
    except ValueError:  # of C code that does not tell
        return
    count = sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )
    if count < 2 and not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        raise ConfigError(f"{what} takes {inspect.signature(sampler)}, expected (row, generator)")

"""Keyword arguments held against the signature of what will be called with them."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rlx.errors import ConfigError, did_you_mean


def check_keywords(
    function: Callable[..., Any],
    keywords: Mapping[str, Any],
    key: str,
    *,
    given: int = 0,
    allowed: Collection[str] = (),
    whole: bool = False,
) -> None:
    """Refuse keyword arguments that a function or a class does not take, or goes without, before it is called.

    Args:
        function: a function or a class. What has no signature is passed over.
        keywords: what it will be called with.
        key: where the keywords stand in the config, for messages.
        given: how many of its first parameters are given by position.
        allowed: keywords to let through although the signature does not name them.
        whole: whether it will be called with these alone, so that none that it needs may be missing.

    Raises:
        ConfigError: names the key and the nearest that there is.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[given:]
    except (TypeError, ValueError):
        return
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.kind not in variadic and p.default is inspect.Parameter.empty]
    missing = [name for name in needed if whole and name not in keywords]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: no value given; it takes {', '.join(needed)}")
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    for name in keywords:
        if name not in names and name not in allowed:
            there_are = ", ".join(names) or "none"
            raise ConfigError(f"{key}.{name}: there is no such key.{did_you_mean(name, names)} There are: {there_are}")

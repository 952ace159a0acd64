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
) -> None:
    """Refuse keyword arguments that a function or a class does not take, before it is called.

    Args:
        function: a function or a class. What has no signature is passed over.
        keywords: what it will be called with.
        key: where the keywords stand in the config, for messages.
        given: how many of its first parameters are given by position.
        allowed: keywords to let through although the signature does not name them.

    Raises:
        ConfigError: names the key and the nearest that there is.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[given:]
    except (TypeError, ValueError):
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    for name in keywords:
        if name not in names and name not in allowed:
            there_are = ", ".join(names) or "none"
            raise ConfigError(f"{key}.{name}: there is no such key.{did_you_mean(name, names)} There are: {there_are}")

"""Gymnasium wrappers named in a config."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import gymnasium

from rlx.env.signature import check_keywords
from rlx.errors import ConfigError, did_you_mean

GymEnv = gymnasium.Env[Any, Any]
Wrap = Callable[[GymEnv], GymEnv]


def find_wrappers(wrappers: Sequence[str | Mapping[str, Any]] | None) -> list[tuple[str, Wrap]]:
    """Return names and functions that wrap an environment, the innermost first.

    Args:
        wrappers: names, or `{name: keyword arguments}`. A name without a dot is one of `gymnasium.wrappers`; one with
            dots is imported.

    Raises:
        ConfigError: an item is neither, a name does not exist, or a keyword argument is unknown or missing.
    """
    found: list[tuple[str, Wrap]] = []
    for place, (name, keywords) in enumerate(_items(wrappers)):
        key = f"env.wrappers[{place}]"
        wrapper = _find(name, key)
        check_keywords(wrapper, keywords, f"{key}.{name}", given=1, whole=True)
        found.append((name, _applied(wrapper, keywords)))
    return found


def _items(wrappers: Sequence[str | Mapping[str, Any]] | None) -> list[tuple[str, dict[str, Any]]]:
    items: list[tuple[str, dict[str, Any]]] = []
    for place, item in enumerate(wrappers or ()):
        pairs: list[tuple[Any, Any]] = [(item, None)] if isinstance(item, str) else _pairs(item)
        keywords: Any = pairs[0][1] if len(pairs) == 1 else None
        if len(pairs) != 1 or not isinstance(keywords, (Mapping, type(None))):
            raise ConfigError(
                f"env.wrappers[{place}]: got {item!r}; expected a name, or {{name: {{keyword: value, ...}}}}"
            )
        items.append((str(pairs[0][0]), dict(cast("Mapping[str, Any]", keywords or {}))))
    return items


def _pairs(item: Any) -> list[tuple[Any, Any]]:
    return list(cast("Mapping[Any, Any]", item).items()) if isinstance(item, Mapping) else []


def _find(name: str, key: str) -> Callable[..., GymEnv]:
    module_name, _, attribute = name.rpartition(".")
    module_name = module_name or "gymnasium.wrappers"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}: '{name}': {error}; expected a module that can be imported from here") from None
    modules = {known for known, value in vars(module).items() if inspect.ismodule(value)}
    names = [known for known in dir(module) if not known.startswith("_") and known not in modules]
    wrapper: Any = None
    with contextlib.suppress(AttributeError, ImportError):
        wrapper = getattr(module, attribute)
    if not callable(wrapper):
        raise ConfigError(f"{key}: '{module_name}' has no wrapper '{attribute}'.{did_you_mean(attribute, names)}")
    return cast("Callable[..., GymEnv]", wrapper)


def _applied(wrapper: Callable[..., GymEnv], keywords: Mapping[str, Any]) -> Wrap:
    """Return what wraps an environment; lists, all that YAML has, become the tuples that it declares."""
    declared: dict[str, str] = {}
    with contextlib.suppress(TypeError, ValueError):
        declared = {name: str(each.annotation) for name, each in inspect.signature(wrapper).parameters.items()}
    told: dict[str, Any] = {
        name: tuple(cast("list[Any]", value))
        if isinstance(value, list) and "tuple[" in declared.get(name, "").lower()
        else value
        for name, value in keywords.items()
    }
    return lambda env: wrapper(env, **told)

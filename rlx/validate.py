"""Config values checked against the signature of the function that they are for.

YAML keys are the function's keywords, so the signature is the schema: its names say which keys there are, its
annotations say what each may hold, and `Annotated[float, Range(0, 1)]` says which numbers.

    def train(run, make_agent, make_batcher, *, gamma: Annotated[float, Range(0, 1)], num_steps: int): ...

    numbers = validate(train, {"gama": 0.99, ...}, "algo", given=("run", "make_agent", "make_batcher"))
    # ConfigError: algo.gama: there is no such key. Did you mean 'algo.gamma'? ...
"""

import inspect
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, cast

from rlx.errors import ConfigError, did_you_mean, nearest


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; used in an annotation, `Annotated[float, Range(0, 1)]`.

    Attributes:
        low: least number.
        high: greatest number.
        low_open: True to leave `low` itself out.
        high_open: True to leave `high` itself out.
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or value in (math.inf, -math.inf):
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.low > -math.inf and self.high < math.inf:
            left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
            return f"in {left}{self.low:g}, {self.high:g}{right}"
        if self.low > -math.inf:
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        if self.high < math.inf:
            return f"{'<' if self.high_open else '<='} {self.high:g}"
        return "of any size"


class Parsed(ABC):
    """A type whose values YAML writes as a list, and that finds out itself what is wrong with one.

    As an annotation it takes such lists: `Annotated[float | Schedule, Range(0, 1)]`. A range holds for all numbers of
    the value; one of them may be an open end, not all: a learning rate may fall to 0, and not be 0 throughout.
    """

    @property
    @abstractmethod
    def numbers(self) -> Sequence[float]:
        """Return the numbers that must lie in a range."""

    @classmethod
    @abstractmethod
    def describe(cls) -> str:
        """Return what it is, for messages."""

    @classmethod
    @abstractmethod
    def parse(cls, value: Sequence[Any] | Mapping[Any, Any]) -> Self:
        """Return the value that YAML writes so.

        Raises:
            ConfigError: what is wrong with it; `validate` says of which key.
        """


def validate(
    function: Callable[..., Any], values: Mapping[str, Any], prefix: str = "", *, given: Collection[str] = ()
) -> dict[str, Any]:
    """Check config values against the parameters of `function`, before anything is started.

    Args:
        function: a function or a class; its parameters' names and annotations are the schema.
        values: a config group as plain data. Keys that start with an underscore (`_target_`) are Hydra's: passed over.
        prefix: the group's name, put before each key in messages: `algo` gives `algo.gamma`; empty for the top level.
        given: parameters that the code gives, so that the config need not and may not.

    Returns:
        A copy of `values`, with what YAML cannot say set right: a whole float where an integer is wanted (`1e5`)
        becomes one, a list where a tuple is wanted becomes a tuple, text where a Path is wanted becomes a Path.

    Raises:
        ConfigError: an unknown key, a missing one, a wrong type or a number out of range.
    """
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] (it is what a user typed)
        raise ConfigError(f"{prefix}: expected {_describe(dict)}, got {_show(values)}.")
    parameters = {
        name: parameter for name, parameter in inspect.signature(function).parameters.items() if name not in given
    }
    known = [name for name, parameter in parameters.items() if parameter.kind not in _VARIADIC]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    annotations = _annotations(function)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("_"):
            checked[key] = value
        elif key in known:
            checked[key] = _check(annotations.get(key, Any), value, _join(prefix, key))
        elif key in given or not takes_any:
            raise ConfigError(unknown_key(key, known, prefix))
        else:
            checked[key] = value
    for name in known:
        if name not in values and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(
                f"{_join(prefix, name)}: no value given, expected {_describe(annotations.get(name, Any))}"
            )
    return checked


def unknown_key(key: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the message for a key that is not there: the nearest right one, then all of them."""
    names = sorted(known)
    match = nearest(key, names)
    hint = f" Did you mean '{_join(prefix, match)}'?" if match is not None else ""
    listing = f" {f'Keys of {prefix}' if prefix else 'Keys'}: {', '.join(names)}." if names else ""
    return f"{_join(prefix, key)}: there is no such key.{hint}{listing}"


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}
_NO_MATCH = object()
MOST_INT = 2**63 - 1
"""The greatest integer that a tensor holds."""
MOST_FLOAT = (2 - 2**-23) * 2.0**127
"""The greatest finite number of float32, which tensors compute with."""


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the evaluated annotations of `function`; what cannot be evaluated here is left out, hence unchecked."""
    source = cast(Any, function).__init__ if inspect.isclass(function) else inspect.unwrap(function)
    try:
        return typing.get_type_hints(source, include_extras=True)
    except Exception:  # a name that exists under TYPE_CHECKING only: keep those that need no evaluation
        raw: dict[str, Any] = getattr(source, "__annotations__", {})
        return {name: annotation for name, annotation in raw.items() if not isinstance(annotation, str)}


def _check(annotation: Any, value: Any, key: str) -> Any:
    """Return `value` as `annotation` has it, or raise the ConfigError that names `key`."""
    try:
        converted = _convert(annotation, value)
    except ConfigError as error:  # of a Parsed, which knows no key
        raise ConfigError(f"{key}: {error}") from None
    if converted is not _NO_MATCH:
        return converted
    hint = did_you_mean(value, _choices(annotation)) if isinstance(value, str) else _too_great(annotation, value)
    raise ConfigError(f"{key}: expected {_describe(annotation)}, got {_show(value)}.{hint}")


def _convert(annotation: Any, value: Any) -> Any:
    """Return `value` as `annotation` has it, or _NO_MATCH."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        converted = _convert(arguments[0], value)
        ranges = [extra for extra in arguments[1:] if isinstance(extra, Range)]
        return converted if all(_is_within(converted, limits) for limits in ranges) else _NO_MATCH
    if origin in (Union, types.UnionType):
        # What fits as it stands comes before what fits after a conversion: 1.0 for `int | float` stays 1.0.
        found = [converted for converted in (_convert(part, value) for part in arguments) if converted is not _NO_MATCH]
        same = [converted for converted in found if type(converted) is type(value)]
        return (same or found or [_NO_MATCH])[0]
    if origin is Literal:
        same = [choice for choice in arguments if type(choice) is type(value) and choice == value]
        return same[0] if same else _NO_MATCH
    if annotation is None or annotation is types.NoneType:
        return None if value is None else _NO_MATCH
    if annotation in _SCALARS:
        return _convert_scalar(annotation, value)
    if inspect.isclass(annotation) and issubclass(annotation, Parsed):
        if isinstance(value, annotation):
            return value
        return annotation.parse(cast(Any, value)) if isinstance(value, (list, tuple, Mapping)) else _NO_MATCH
    container = origin or annotation
    if container in (list, tuple, Sequence, Iterable, Collection):
        return _convert_sequence(container, arguments, value)
    if container in (dict, Mapping):
        return _convert_mapping(arguments, value)
    return value  # Any, a callable, a class: nothing that YAML could get wrong in a way known here


def _is_within(value: Any, limits: Range) -> bool:
    """Return whether the numbers of `value`, a number, a list of numbers or a Parsed, are in the range."""
    if isinstance(value, Parsed):
        closed = replace(limits, low_open=False, high_open=False)
        return all(number in closed for number in value.numbers) and any(number in limits for number in value.numbers)
    items = cast("list[Any] | tuple[Any, ...]", value) if isinstance(value, (list, tuple)) else (value,)
    return all(item in limits for item in items if isinstance(item, (int, float)))


def _convert_scalar(annotation: type, value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return _NO_MATCH  # whatever is compared with it
    if isinstance(value, (int, float)) and not _is_held(annotation, value):
        return _NO_MATCH
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is Path and isinstance(value, (str, Path)):
        return Path(value) if str(value) else _NO_MATCH  # an empty text would be the working directory
    matches = isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
    return value if matches else _NO_MATCH


def _is_held(annotation: type, value: float) -> bool:
    """Return whether a tensor holds such a number."""
    most = MOST_INT if annotation is int else MOST_FLOAT
    return abs(value) <= most or value in (math.inf, -math.inf)


def _too_great(annotation: Any, value: Any) -> str:
    """Return what ends a message about numbers that would do if a tensor held them; nothing where there are none."""
    arguments = typing.get_args(annotation)
    if any(isinstance(extra, Range) and not _is_within(value, extra) for extra in arguments):
        return ""
    items = cast("list[Any] | tuple[Any, ...]", value) if isinstance(value, (list, tuple)) else (value,)
    if all(item != item or _is_held(int, item) for item in items if isinstance(item, (int, float))):  # nan is no number
        return ""
    return f" Integers are at most 2^63 - 1, other numbers {MOST_FLOAT:.1e} (float32's greatest)."


def _convert_sequence(container: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return _NO_MATCH
    items = cast("list[Any] | tuple[Any, ...]", value)
    if container is tuple and arguments and Ellipsis not in arguments:
        parts: Sequence[Any] = () if arguments == ((),) else arguments
        if len(parts) != len(items):
            return _NO_MATCH
    else:
        parts = [arguments[0] if arguments else Any] * len(items)
    converted = [_convert(part, item) for part, item in zip(parts, items, strict=True)]
    if any(item is _NO_MATCH for item in converted):
        return _NO_MATCH
    return tuple(converted) if container is tuple else converted


def _convert_mapping(arguments: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _NO_MATCH
    key_type, value_type = arguments or (Any, Any)
    items = cast("Mapping[Any, Any]", value).items()
    converted = [(_convert(key_type, key), _convert(value_type, item)) for key, item in items]
    if any(key is _NO_MATCH or item is _NO_MATCH for key, item in converted):
        return _NO_MATCH
    return dict(converted)


def _choices(annotation: Any) -> list[str]:
    """Return the words that `annotation` allows by name."""
    if typing.get_origin(annotation) is Literal:
        return [choice for choice in typing.get_args(annotation) if isinstance(choice, str)]
    return [word for part in typing.get_args(annotation) for word in _choices(part)]


def _describe(annotation: Any) -> str:
    """Return `annotation` in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        ranges = " and ".join(str(extra) for extra in arguments[1:] if isinstance(extra, Range))
        return f"{_describe(arguments[0])} {ranges}".rstrip()
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(part) for part in arguments)
    if origin is Literal:
        return f"one of {', '.join(repr(choice) for choice in arguments)}"
    if annotation is None or annotation is types.NoneType:
        return "null"
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, Parsed):
        return annotation.describe()
    container = origin or annotation
    if container in (list, tuple, Sequence, Iterable, Collection):
        if container is tuple and arguments and Ellipsis not in arguments and arguments != ((),):
            return f"a list of {len(arguments)}: {', '.join(_describe(part) for part in arguments)}"
        return f"a list, each {_describe(arguments[0])}" if arguments and arguments[0] is not Any else "a list"
    if container in (dict, Mapping):
        if arguments and arguments[1] is not Any:
            return f"a mapping of names, each to {_describe(arguments[1])}"
        return "a mapping of names to values"
    return "a value" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _show(value: Any) -> str:
    """Return `value` as a message shows what it got."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."

"""Search spaces: which keys are tuned, and what each may be.

A space maps keys of `rlx train` to what is drawn for them: `{low, high}` with `log` or `step`, whole numbers where both
ends are, or `{choices: [...]}`. `as` says where in a longer value the drawn one stands: `[linear, value, 0]`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.override_parser.types import Quote, QuotedString
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rlx.errors import ConfigError, did_you_mean

Drawn = bool | int | float | str | None

_FIELDS = ("low", "high", "log", "step", "choices", "as")
_PLACE = "value"
_ROUNDING = 1e-8  # of steps, as Optuna has it
_INSIDE = 0.382  # of a range: a place that is no whole number where its ends are
_EXPECTED = "expected {low, high} or {choices: [...]}"


@dataclass(frozen=True)
class Parameter:
    """A key that is tuned.

    Attributes:
        key: as `rlx train` takes it: `algo.gamma`; or a group, `agent`.
        distribution: what is drawn.
        choices: what each drawn word stands for, where choices are no plain values; else empty.
        form: the value that the drawn one is a part of, at the places called `value`; None where it is the whole.
    """

    key: str
    distribution: BaseDistribution
    choices: Mapping[str, Any]
    form: Any = None

    def value(self, drawn: Drawn) -> Any:
        """Return the key's value for what was drawn."""
        whole = self.choices.get(drawn, drawn) if isinstance(drawn, str) else drawn
        return whole if self.form is None else _put(self.form, whole)

    def override(self, drawn: Drawn) -> str:
        """Return what `rlx train` is given."""
        return as_override(self.key, self.value(drawn))

    def ends(self) -> list[Drawn]:
        """Return what may be drawn: all choices, or the two ends and, of fractions, one in between."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            return list(one.choices)
        assert isinstance(one, FloatDistribution | IntDistribution)
        if isinstance(one, IntDistribution):
            return [one.low, one.high]
        inside = _INSIDE * (one.high - one.low)
        return [one.low, one.high, one.low + (inside if one.step is None else one.step * round(inside / one.step))]

    def drawn_for(self, value: Any) -> tuple[Drawn] | None:
        """Return what would have to be drawn for `value`, in a tuple of one; None where nothing would give it."""
        found = [value] if self.form is None else list(_taken(self.form, value))
        if not found or any(one != found[0] for one in found):
            return None
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            fits = [drawn for drawn in one.choices if self.choices.get(str(drawn), drawn) == found[0]]
            return (fits[0],) if fits else None
        assert isinstance(one, FloatDistribution | IntDistribution)
        number = found[0]
        if isinstance(number, bool) or not isinstance(number, int | float) or not one.low <= number <= one.high:
            return None
        if isinstance(one, IntDistribution) and number != int(number):
            return None
        steps = 0.0 if one.step is None else (number - one.low) / one.step
        return (number,) if abs(steps - round(steps)) < _ROUNDING else None


def read_space(space: Any) -> list[Parameter]:
    """Return the parameters of a search space.

    Args:
        space: as YAML has it: `{key: {low, high, log, step, choices, as}}`; a key with null is left out.

    Raises:
        ConfigError: an entry that makes no sense; names it, and the nearest right field.
    """
    entries = cast("Mapping[Any, Any]", space) if isinstance(space, Mapping) else dict[Any, Any]()
    found = [_read(str(key), entry) for key, entry in entries.items() if entry is not None]
    if not found:
        raise ConfigError("tune.space: there is nothing to tune in it; expected KEY: {low, high} or {choices: [...]}")
    return found


def show(drawn: Drawn) -> str:
    """Return what was drawn as people read it."""
    return f"{drawn:.4g}" if isinstance(drawn, float) else _written(drawn)


def as_override(key: str, value: Any) -> str:
    """Return `key=value` as Hydra reads it, whatever the value holds."""
    return f"{key}={_written(value)}"


def _read(key: str, entry: Any) -> Parameter:
    where = f"tune.space: {key}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: got {entry!r}, {_EXPECTED}")
    fields = cast("Mapping[str, Any]", entry)
    for name in fields:
        if name not in _FIELDS:
            hint = did_you_mean(str(name), _FIELDS)
            raise ConfigError(f"{where}: there is no field '{name}'.{hint} Fields: {', '.join(_FIELDS)}.")
    form = fields.get("as")
    if form is not None and _PLACE not in _leaves(form):
        raise ConfigError(
            f"{where}: as: got {form!r}, expected a list with the word '{_PLACE}' where the drawn one goes"
        )
    if "choices" in fields:
        others = [name for name in fields if name not in ("choices", "as")]
        if others:
            raise ConfigError(f"{where}: got choices and {others[0]}, expected one or the other")
        return _of_choices(key, where, fields["choices"], form)
    low, high = (_number(fields, name, where) for name in ("low", "high"))
    log, step = fields.get("log", False), fields.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log: got {log!r}, expected true or false")
    if low > high:
        raise ConfigError(f"{where}: low {low:g} is above high {high:g}")
    if log and low <= 0:
        raise ConfigError(f"{where}: low: got {low:g}, expected above 0 with log: true")
    if step is not None:
        if log:
            raise ConfigError(f"{where}: got step and log: true, expected one or the other")
        if _number(fields, "step", where) <= 0:
            raise ConfigError(f"{where}: step: got {step:g}, expected above 0")
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return Parameter(key, IntDistribution(low, high, log=log, step=step or 1), {}, form)
    return Parameter(key, FloatDistribution(low, high, log=log, step=step), {}, form)


def _of_choices(key: str, where: str, choices: Any, form: Any) -> Parameter:
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ConfigError(f"{where}: choices: got {choices!r}, expected a list of values")
    values = list(cast("Sequence[Any]", choices))
    drawn: list[Any] = [one if isinstance(one, Drawn) else _written(one) for one in values]
    if len(set(map(repr, drawn))) < len(drawn):
        raise ConfigError(f"{where}: choices: {_written(values)} has one of them twice")
    labels = {label: one for label, one in zip(drawn, values, strict=True) if not isinstance(one, Drawn)}
    return Parameter(key, CategoricalDistribution(drawn), labels, form)


def _number(fields: Mapping[str, Any], name: str, where: str) -> int | float:
    if name not in fields:
        raise ConfigError(f"{where}: {name} is missing; {_EXPECTED}")
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {name}: got {value!r}, expected a number")
    return value


def _leaves(form: Any) -> Iterator[Any]:
    if isinstance(form, Mapping):
        for item in cast("Mapping[Any, Any]", form).values():
            yield from _leaves(item)
    elif isinstance(form, list):
        for item in cast("list[Any]", form):
            yield from _leaves(item)
    else:
        yield form


def _put(form: Any, value: Any) -> Any:
    """Return a form with the value at its places."""
    if isinstance(form, Mapping):
        return {key: _put(item, value) for key, item in cast("Mapping[Any, Any]", form).items()}
    if isinstance(form, list):
        return [_put(item, value) for item in cast("list[Any]", form)]
    return value if form == _PLACE else form


def _taken(form: Any, value: Any) -> Iterator[Any]:
    """Give what stands in `value` at a form's places; nothing, or different things, where the two do not fit."""
    if form == _PLACE:
        yield value
    elif isinstance(form, Mapping) and isinstance(value, Mapping):
        ours, theirs = cast("Mapping[Any, Any]", form), cast("Mapping[Any, Any]", value)
        if ours.keys() != theirs.keys():
            yield from (object(), object())
        for key in ours.keys() & theirs.keys():
            yield from _taken(ours[key], theirs[key])
    elif isinstance(form, list) and isinstance(value, list):
        ours, theirs = cast("list[Any]", form), cast("list[Any]", value)
        if len(ours) != len(theirs):
            yield from (object(), object())
        for one, other in zip(ours, theirs, strict=False):
            yield from _taken(one, other)
    elif form != value:
        yield from (object(), object())


def _written(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in items)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, cast('Sequence[Any]', value)))}]"
    if isinstance(value, str) and not (value.isascii() and value.isidentifier() and value.lower() not in _NOT_TEXT):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value) if isinstance(value, str) else repr(value)


_NOT_TEXT = ("true", "false", "null", "nan", "inf")
"""Words that Hydra reads as something else unless they are quoted."""

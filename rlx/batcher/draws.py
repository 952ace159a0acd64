"""`agent_info` and `env_info` as a configuration describes them: for each field a value, or how it is drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from rlx.errors import ConfigError, did_you_mean

_Draw = Callable[[Tensor, int, torch.Generator], Tensor]

_FORMS = "a number, true or false, a list of them, or one of "


class Draws:
    """A `Sampler` made of plain data: `{goal: {uniform: [-3, 3]}, level: {choice: [1, 2, 5]}, hard: true}`.

    | form | what each episode gets |
    |------|------------------------|
    | `3`, `0.5`, `true`, `[1, 2]` | that |
    | `{uniform: [low, high]}` | float32 in [low, high); with two lists, a vector |
    | `{normal: [mean, std]}` | float32; with two lists, a vector |
    | `{integer: [low, high]}` | int64, both ends included; with two lists, a vector |
    | `{choice: [a, b, ...]}` | one of these, all equally often |
    | `{deal: [a, b, ...]}` | by environment: the first gets a, the second b, and so on, round and round |
    """

    def __init__(self, fields: Mapping[str, Any], key: str) -> None:
        """Check the forms.

        Args:
            fields: for each field its form.
            key: where they stand in the configuration, for messages.

        Raises:
            ConfigError: there is no field, or a form is wrong; names its key.
        """
        if not fields:
            raise ConfigError(f"{key}: got no field, expected some such as {{goal: {{uniform: [0, 1]}}}}, or null")
        self._fields = {str(name): _read(f"{key}.{name}", form) for name, form in fields.items()}

    def __call__(self, row: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the fields of a row's next episode."""
        return {name: _DRAWS[kind](values, row, generator) for name, (kind, values) in self._fields.items()}


def _uniform(values: Tensor, row: int, generator: torch.Generator) -> Tensor:
    low, high = values.unbind(0)
    return low + (high - low) * torch.rand(low.shape, generator=generator)


def _normal(values: Tensor, row: int, generator: torch.Generator) -> Tensor:
    mean, std = values.unbind(0)
    return mean + std * torch.randn(mean.shape, generator=generator)


def _integer(values: Tensor, row: int, generator: torch.Generator) -> Tensor:
    low, high = values.unbind(0)
    count = high.double() - low.double() + 1  # as an integer it may be one too many for int64
    drawn = low + (torch.rand(low.shape, generator=generator, dtype=torch.float64) * count).long()
    return drawn.clamp(max=high)


def _choice(values: Tensor, row: int, generator: torch.Generator) -> Tensor:
    return values[int(torch.randint(len(values), (), generator=generator))]


_DRAWS: dict[str, _Draw] = {
    "value": lambda values, row, generator: values,
    "uniform": _uniform,
    "normal": _normal,
    "integer": _integer,
    "choice": _choice,
    "deal": lambda values, row, generator: values[row % len(values)],
}
_PAIRS = {"uniform": "[low, high]", "normal": "[mean, std]", "integer": "[low, high]"}
_LISTS = {"choice": "[a, b, ...]", "deal": "[a, b, ...]"}


def _read(key: str, form: Any) -> tuple[str, Tensor]:
    """Return which kind of draw a form asks for, and its numbers."""
    if not isinstance(form, Mapping):
        return "value", _numbers(key, form, _FORMS + _all_forms())
    named = cast("Mapping[Any, Any]", form)
    known = _PAIRS | _LISTS
    if len(named) != 1:
        raise ConfigError(f"{key}: got {_shown(named)}, expected one of {_all_forms()}")
    kind, values = next(iter(named.items()))
    if kind not in known:
        raise ConfigError(f"{key}.{kind}: there is no such draw.{did_you_mean(str(kind), known)} Draws: {_all_forms()}")
    where, expected = f"{key}.{kind}", known[kind]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ConfigError(f"{where}: got {values!r}, expected {expected}")
    numbers = _numbers(where, values, expected)
    if kind in _LISTS:
        return kind, numbers
    if len(numbers) != 2 or numbers.dtype is torch.bool:
        raise ConfigError(f"{where}: got {values!r}, expected {expected}: two numbers, or two lists of as many")
    if kind == "integer" and numbers.dtype.is_floating_point:
        raise ConfigError(f"{where}: got {values!r}, expected integers")
    if kind == "integer" and bool((numbers[1].double() - numbers[0].double() > 2.0**63).any()):
        raise ConfigError(f"{where}: got {values!r}, expected no more than 2^63 of them")
    first, second = numbers
    if bool((second < (0 if kind == "normal" else first)).any()):
        raise ConfigError(f"{where}: got {values!r}, expected {'std >= 0' if kind == 'normal' else 'low <= high'}")
    return kind, numbers if kind == "integer" else numbers.float()


def _numbers(key: str, values: Any, expected: str) -> Tensor:
    try:
        numbers = torch.tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = None
    if numbers is None or not bool(torch.isfinite(numbers).all()):
        raise ConfigError(f"{key}: got {values!r}, expected {expected}")
    return numbers


def _all_forms() -> str:
    return ", ".join(f"{{{kind}: {values}}}" for kind, values in (_PAIRS | _LISTS).items())


def _shown(form: Mapping[Any, Any]) -> str:
    return " and ".join(map(repr, form)) or "{}"

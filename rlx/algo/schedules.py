"""Schedules: coefficients that move while a run goes on, each a pure function of how much of the run is done.

In YAML and on the command line a coefficient is a number, or a list that begins with the name of a shape:

    learning_rate: 1e-3                                       # stays
    learning_rate: [linear, 1e-3, 0]                          # falls over the whole run
    epsilon: [linear, 1.0, 0.05, {fraction: 0.2}]             # falls over the first fifth, then stays
    learning_rate: [cosine, 1e-3, 1e-5, {warmup: 0.05}]       # rises from 0 over the first twentieth, then falls
    clip_coef: [piecewise, [0, 0.2], [0.5, 0.1], [1, 0.1]]    # straight lines between points of (x, value)

With x from 0 to 1 over the schedule's part of the run, from the end of `warmup` to `fraction`:

| list                            | value at x                                                                     |
|---------------------------------|--------------------------------------------------------------------------------|
| `[constant, V]`                 | V; for a warm-up                                                               |
| `[linear, A, B]`                | A (1 - x) + B x                                                                |
| `[cosine, A, B]`                | A w + B (1 - w), w = (1 + cos(pi x)) / 2   (Loshchilov and Hutter 2017, eq. 5) |
| `[exponential, A, B]`           | A^(1 - x) B^x: the same factor in equal times                                  |
| `[piecewise, [X, V], [X, V]..]` | straight lines between the points; two of one X are a jump                     |

A list and no mapping, since Hydra merges mappings: a recipe's `{cosine: ...}` over a default `{linear: ...}` would be
both. Nothing is kept between calls, so that a resumed run has nothing to restore.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, cast

from rlx.errors import ConfigError, did_you_mean
from rlx.validate import MOST_FLOAT, Parsed

_FORMS = {
    "constant": "[constant, VALUE]",
    "linear": "[linear, START, END]",
    "cosine": "[cosine, START, END]",
    "exponential": "[exponential, START, END], both above 0",
    "piecewise": "[piecewise, [X, VALUE], [X, VALUE], ...], X rising within 0 and 1",
}
_OPTIONS = ("fraction", "warmup")


@dataclass(frozen=True)
class Schedule(Parsed):
    """A coefficient as a function of the part of the run that is done.

    Attributes:
        shape: one of the names in the table above.
        values: what stands in the list, in order.
        places: the X of each value of a piecewise schedule; empty for others.
        fraction: the part of the run at which the shape has ended, in (0, 1]; its last value stays from there on.
        warmup: the part of the run over which the value rises to the first one, linearly from 0, in [0, fraction).
    """

    shape: str
    values: tuple[float, ...]
    places: tuple[float, ...] = ()
    fraction: float = 1.0
    warmup: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the value where the part `progress` of the run is done, from 0 to 1."""
        if progress < self.warmup:
            return self._shaped(0.0) * progress / self.warmup
        return self._shaped(min(1.0, (progress - self.warmup) / (self.fraction - self.warmup)))

    def _shaped(self, x: float) -> float:
        if self.shape == "piecewise":
            return _piecewise(self.places, self.values, x)
        start, end = self.values[0], self.values[-1]
        if self.shape == "exponential":
            return start ** (1 - x) * end**x
        weight = (1 + math.cos(math.pi * x)) / 2 if self.shape == "cosine" else 1 - x
        return start * weight + end * (1 - weight)

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return the values that a range must hold, the 0 of a warm-up among them."""
        return (0.0, *self.values) if self.warmup else self.values

    @classmethod
    def describe(cls) -> str:
        """Return what it is, for messages."""
        return "a schedule such as [linear, START, END]"

    @classmethod
    def parse(cls, value: Sequence[Any] | Mapping[Any, Any]) -> Self:
        """Return the schedule that YAML writes as `value`.

        Raises:
            ConfigError: it is none; says what is wrong, and leaves it to the caller to say of which key.
        """
        shape = value[0] if isinstance(value, Sequence) and value else None
        if not isinstance(value, Sequence) or not isinstance(shape, str):
            raise ConfigError(f"expected {cls.describe()}, got {value!r}.")
        if shape not in _FORMS:
            hint = did_you_mean(shape, _FORMS)
            raise ConfigError(f"there is no schedule '{shape}'.{hint} Schedules: {', '.join(_FORMS)}.")
        given = list(value[1:])
        options: Mapping[Any, Any] = {}
        if given and isinstance(given[-1], Mapping):
            options = cast("Mapping[Any, Any]", given.pop())
        wrong = ConfigError(f"expected {_FORMS[shape]}, got {value!r}.")
        if shape == "piecewise":
            points = [cast("Sequence[Any]", point) if isinstance(point, Sequence) else () for point in given]
            places, values = _numbers(point[:1] for point in points), _numbers(point[1:] for point in points)
            rising = all(before <= after for before, after in pairwise((0.0, *places, 1.0)))
            if len(values) < 2 or not len(places) == len(values) == len(given) or not rising:
                raise wrong
        else:
            places, values = (), _numbers([number] for number in given)
            if not len(values) == len(given) == (1 if shape == "constant" else 2):
                raise wrong
        if shape == "exponential" and min(values) <= 0:
            raise wrong
        return cls(shape, values, places, **_parse_options(options))


Scheduled = float | Schedule
"""A coefficient of an algorithm: a number, or a schedule. `Annotated[Scheduled, Range(0, 1)]` holds for all its values;
one of them may be an open end of the range, such as a learning rate that falls to 0."""


def at(coefficient: Scheduled, progress: float) -> float:
    """Return a coefficient's value where the part `progress` of the run is done, `run.env_steps / run.total_steps`."""
    return coefficient(progress) if isinstance(coefficient, Schedule) else coefficient


def _piecewise(places: tuple[float, ...], values: tuple[float, ...], x: float) -> float:
    """Return the value at x on straight lines between points; outside of them, that of the nearest."""
    last = sum(place <= x for place in places) - 1
    if last < 0 or last == len(places) - 1:
        return values[max(last, 0)]
    weight = (places[last + 1] - x) / (places[last + 1] - places[last])
    return values[last] * weight + values[last + 1] * (1 - weight)


def _numbers(lists: Any) -> tuple[float, ...]:
    """Return the numbers of lists that hold one finite number of float32 each; others are left out."""
    ones = [one[0] for one in lists if len(one) == 1 and isinstance(one[0], (int, float))]
    return tuple(float(n) for n in ones if not isinstance(n, bool) and abs(n) <= MOST_FLOAT)


def _parse_options(options: Mapping[Any, Any]) -> dict[str, float]:
    for name in options:
        if name not in _OPTIONS:
            hint = did_you_mean(str(name), _OPTIONS)
            raise ConfigError(f"schedules have no option '{name}'.{hint} Options: {', '.join(_OPTIONS)}.")
    found = {name: (_numbers([[number]]) or (math.nan,))[0] for name, number in options.items()}
    fraction, warmup = found.get("fraction", 1.0), found.get("warmup", 0.0)
    if not 0 < fraction <= 1:
        raise ConfigError(f"expected a fraction of the run in (0, 1], got {options['fraction']!r}.")
    if not 0 <= warmup < fraction:
        raise ConfigError(
            f"expected a warmup in [0, {fraction:g}), before the schedule ends, got {options['warmup']!r}."
        )
    return found

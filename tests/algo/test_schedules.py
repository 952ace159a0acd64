"""Schedules: every shape by hand, where it begins and ends, and what is refused."""

from typing import Annotated, Any

import pytest

from rlx.algo.schedules import Schedule, Scheduled, at
from rlx.errors import ConfigError
from rlx.validate import Range, validate


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["constant", 3.0], {0: 3.0, 0.5: 3.0, 1: 3.0}),
        (["linear", 8, 0], {0: 8.0, 0.25: 6.0, 0.5: 4.0, 1: 0.0}),
        (["linear", 0.4, 1.0], {0: 0.4, 0.5: 0.7, 1: 1.0}),
        (["linear", 1.0, 0.2, {"fraction": 0.5}], {0: 1.0, 0.25: 0.6, 0.5: 0.2, 0.75: 0.2, 1: 0.2}),
        (["cosine", 4, 2], {0: 4.0, 1 / 3: 3.5, 0.5: 3.0, 2 / 3: 2.5, 1: 2.0}),
        (["exponential", 16, 1], {0: 16.0, 0.25: 8.0, 0.5: 4.0, 0.75: 2.0, 1: 1.0}),
        (["piecewise", [0, 4], [0.5, 2], [1, 0]], {0: 4.0, 0.25: 3.0, 0.5: 2.0, 0.75: 1.0, 1: 0.0}),
        (["piecewise", [0.2, 4], [0.6, 2]], {0: 4.0, 0.2: 4.0, 0.4: 3.0, 0.6: 2.0, 1: 2.0}),
        (["piecewise", [0, 1], [0.5, 1], [0.5, 0.1], [1, 0.1]], {0: 1.0, 0.49: 1.0, 0.5: 0.1, 1: 0.1}),
        (["constant", 2.0, {"warmup": 0.5}], {0: 0.0, 0.25: 1.0, 0.5: 2.0, 1: 2.0}),
        # Up to 8 over the first fifth; then down to 0 at three fifths.
        (["linear", 8, 0, {"warmup": 0.2, "fraction": 0.6}], {0: 0.0, 0.1: 4.0, 0.2: 8.0, 0.4: 4.0, 0.6: 0.0, 1: 0.0}),
    ],
)
def test_values_are_those_worked_by_hand(written: list[Any], expected: dict[float, float]) -> None:
    schedule = Schedule.parse(written)
    assert {place: at(schedule, place) for place in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
def test_both_ends_are_met_exactly(shape: str) -> None:
    schedule = Schedule.parse([shape, 0.1, 0.7])
    assert (schedule(0.0), schedule(1.0)) == (0.1, 0.7)


def test_linear_to_zero_is_the_rate_times_what_is_left_to_the_last_bit() -> None:
    schedule = Schedule.parse(["linear", 2.5e-4, 0])
    assert all(schedule(step / 977) == 2.5e-4 * (1 - step / 977) for step in range(978))


def test_a_number_stays() -> None:
    assert at(0.3, 0.0) == at(0.3, 0.9) == 0.3


def test_no_call_changes_a_later_one() -> None:
    schedule = Schedule.parse(["cosine", 1, 0, {"warmup": 0.1}])
    there = [schedule(step / 10) for step in range(11)]
    back = [schedule(step / 10) for step in reversed(range(11))]
    assert there == back[::-1]


def train(
    *, rate: Annotated[Scheduled, Range(0, 1, low_open=True)], other: Annotated[Scheduled, Range(0)] | None
) -> None:
    """Stand for an algorithm."""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "algo.rate: expected a number or a schedule such as [linear, START, END] in (0, 1], got 0."),
        ("linear", "algo.rate: expected a number or a schedule such as [linear, START, END] in (0, 1], got 'linear'."),
        (["linear", 2, 0], "algo.rate: expected a number or a schedule such as [linear, START, END] in (0, 1], got"),
        (["linear", 1, -0.1], "algo.rate: expected a number or a schedule such as [linear, START, END] in (0, 1], got"),
        (["constant", 0], "algo.rate: expected a number or a schedule such as [linear, START, END] in (0, 1], got"),
        (["piecewise", [0, 1], [1, 2]], "algo.rate: expected a number or a schedule such as [linear, START, END] in"),
        ([], "algo.rate: expected a schedule such as [linear, START, END], got []."),
        ([1, 2], "algo.rate: expected a schedule such as [linear, START, END], got [1, 2]."),
        ({"linear": [1, 0]}, "algo.rate: expected a schedule such as [linear, START, END], got {'linear': [1, 0]}."),
        (["linaer", 1, 0], "algo.rate: there is no schedule 'linaer'. Did you mean 'linear'? Schedules: constant,"),
        (["linear", 1], "algo.rate: expected [linear, START, END], got ['linear', 1]."),
        (["linear", 1, 0, 0.5], "algo.rate: expected [linear, START, END], got"),
        (["linear", 1, "0"], "algo.rate: expected [linear, START, END], got"),
        (["linear", True, 0], "algo.rate: expected [linear, START, END], got"),
        (["linear", float("nan"), 0], "algo.rate: expected [linear, START, END], got"),
        (["constant", 1, 0], "algo.rate: expected [constant, VALUE], got"),
        (["exponential", 1, 0], "algo.rate: expected [exponential, START, END], both above 0, got"),
        (
            ["piecewise", [0, 1]],
            "algo.rate: expected [piecewise, [X, VALUE], [X, VALUE], ...], X rising within 0 and 1",
        ),
        (["piecewise", [0.5, 1], [0.2, 0]], "algo.rate: expected [piecewise, [X, VALUE], [X, VALUE], ...], X rising"),
        (["piecewise", [0, 1], [2, 0]], "algo.rate: expected [piecewise, [X, VALUE], [X, VALUE], ...], X rising"),
        (["piecewise", [0, 1], [1, 0, 3]], "algo.rate: expected [piecewise, [X, VALUE], [X, VALUE], ...], X rising"),
        (["piecewise", [0, 1], 0.5], "algo.rate: expected [piecewise, [X, VALUE], [X, VALUE], ...], X rising"),
        (["linear", 1, 0, {"warmpu": 0.1}], "algo.rate: schedules have no option 'warmpu'. Did you mean 'warmup'?"),
        (["linear", 1, 0, {"fraction": 0}], "algo.rate: expected a fraction of the run in (0, 1], got 0."),
        (["linear", 1, 0, {"fraction": "x"}], "algo.rate: expected a fraction of the run in (0, 1], got 'x'."),
        (["linear", 1, 0, {"fraction": 0.2, "warmup": 0.2}], "algo.rate: expected a warmup in [0, 0.2), before the"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_key(value: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(train, {"rate": value, "other": 0}, "algo")
    assert str(caught.value).startswith(text)


def test_a_schedule_may_fall_to_an_open_end_of_its_range_and_warm_up_from_it() -> None:
    checked = validate(train, {"rate": ["cosine", 1e-3, 0, {"warmup": 0.1}], "other": None}, "algo")
    assert checked == {"rate": Schedule("cosine", (1e-3, 0.0), warmup=0.1), "other": None}
    assert validate(train, {"rate": 1, "other": ["linear", 0, 0]}, "algo")["other"] == Schedule("linear", (0.0, 0.0))

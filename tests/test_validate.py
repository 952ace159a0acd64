from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest

from rlx.errors import ConfigError
from rlx.validate import Range, validate

if TYPE_CHECKING:
    from nowhere import Absent

GREATEST = " Integers are at most 2^63 - 1, other numbers 3.4e+38 (float32's greatest)."


def function(
    run: object,
    *,
    gamma: Annotated[float, Range(0, 1)] = 0.99,
    num_steps: Annotated[int, Range(1)] = 128,
    learning_rate: Annotated[float, Range(0, low_open=True)] = 1e-3,
    target_kl: Annotated[float, Range(0)] | None = None,
    hidden_sizes: tuple[int, ...] = (),
    pair: tuple[int, str] = (0, ""),
    names: list[str] | None = None,
    kwargs: dict[str, float] | None = None,
    mode: Literal["native", "per_instance"] = "native",
    flag: bool = False,
    stop_at: float | None = None,
    path: Path | None = None,
    anything: Any = None,
) -> None: ...


def message(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(function, values, "algo", given=("run",))
    return str(caught.value)


def value(**values: Any) -> Any:
    checked = validate(function, values, "algo", given=("run",))
    assert checked.keys() == values.keys()
    return next(iter(checked.values()))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"gamma": 2}, "algo.gamma: expected a number in [0, 1], got 2."),
        ({"gamma": "high"}, "algo.gamma: expected a number in [0, 1], got 'high'."),
        ({"gamma": True}, "algo.gamma: expected a number in [0, 1], got true."),
        ({"gamma": float("nan")}, "algo.gamma: expected a number in [0, 1], got nan."),
        ({"gamma": None}, "algo.gamma: expected a number in [0, 1], got null."),
        ({"num_steps": 0}, "algo.num_steps: expected an integer >= 1, got 0."),
        ({"num_steps": 1.5}, "algo.num_steps: expected an integer >= 1, got 1.5."),
        ({"num_steps": True}, "algo.num_steps: expected an integer >= 1, got true."),
        ({"learning_rate": 0}, "algo.learning_rate: expected a number > 0, got 0."),
        ({"target_kl": -1}, "algo.target_kl: expected a number >= 0 or null, got -1."),
        ({"hidden_sizes": [64, "x"]}, "algo.hidden_sizes: expected a list, each an integer, got [64, 'x']."),
        ({"hidden_sizes": 64}, "algo.hidden_sizes: expected a list, each an integer, got 64."),
        ({"pair": [1]}, "algo.pair: expected a list of 2: an integer, text, got [1]."),
        ({"names": [1]}, "algo.names: expected a list, each text or null, got [1]."),
        ({"kwargs": [1]}, "algo.kwargs: expected a mapping of names, each to a number or null, got [1]."),
        ({"stop_at": float("nan")}, "algo.stop_at: expected a number or null, got nan."),
        ({"num_steps": 1e30}, f"algo.num_steps: expected an integer >= 1, got 1e+30.{GREATEST}"),
        (
            {"hidden_sizes": [64, 2**63]},
            f"algo.hidden_sizes: expected a list, each an integer, got [64, {2**63}].{GREATEST}",
        ),
        ({"stop_at": 1e300}, f"algo.stop_at: expected a number or null, got 1e+300.{GREATEST}"),
        ({"learning_rate": 10**400}, f"algo.learning_rate: expected a number > 0, got 1{'0' * 116}....{GREATEST}"),
        ({"gamma": 1e300}, "algo.gamma: expected a number in [0, 1], got 1e+300."),
        ({"path": ""}, "algo.path: expected a path or null, got ''."),
        ({"flag": 1}, "algo.flag: expected true or false, got 1."),
        ({"mode": "natve"}, "algo.mode: expected one of 'native', 'per_instance', got 'natve'. Did you mean 'native'?"),
    ],
)
def test_message_names_key_expected_and_got(values: dict[str, Any], text: str) -> None:
    assert message(**values) == text


def test_unknown_key_names_the_nearest() -> None:
    text = message(gama=0.9)
    assert text.startswith("algo.gama: there is no such key. Did you mean 'algo.gamma'? Keys of algo: ")
    assert "run" not in text.split("Keys of algo: ")[1].split(", ")


def test_key_that_is_like_nothing_gets_no_suggestion() -> None:
    assert "Did you mean" not in message(xyzzy=1)


def test_what_the_code_gives_may_not_stand_in_the_config() -> None:
    assert message(run=1).startswith("algo.run: there is no such key.")


def test_missing_key_is_named_with_what_it_takes() -> None:
    def needs(*, num_steps: Annotated[int, Range(1)]) -> None: ...

    with pytest.raises(ConfigError, match=r"^num_steps: no value given, expected an integer >= 1$"):
        validate(needs, {})


def test_group_that_is_no_mapping_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^algo: expected a mapping of names to values, got 3\.$"):
        validate(function, 3, "algo")  # pyright: ignore[reportArgumentType]


def test_underscored_keys_are_passed_over() -> None:
    assert validate(function, {"_target_": "a.b"}, given=("run",)) == {"_target_": "a.b"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_steps": 1e5}, 100_000),
        ({"gamma": 1}, 1.0),
        ({"hidden_sizes": [64, 64]}, (64, 64)),
        ({"pair": [1, "a"]}, (1, "a")),
        ({"names": ["a"]}, ["a"]),
        ({"kwargs": {"a": 1}}, {"a": 1.0}),
        ({"target_kl": None}, None),
        ({"target_kl": 0}, 0.0),
        ({"path": "a/b"}, Path("a/b")),
        ({"num_steps": 2.0**62}, 2**62),
        ({"stop_at": float("inf")}, float("inf")),
        ({"anything": [object]}, [object]),
    ],
)
def test_value_comes_back_as_the_annotation_has_it(given: dict[str, Any], expected: Any) -> None:
    got = value(**given)
    assert got == expected
    assert type(got) is type(expected)


def test_union_keeps_a_value_that_fits_as_it_stands() -> None:
    def either(*, number: int | float) -> None: ...

    assert type(validate(either, {"number": 1.0})["number"]) is float
    assert type(validate(either, {"number": 1})["number"]) is int


def test_keyword_arguments_take_any_key() -> None:
    def free(*, gamma: float, **rest: Any) -> None: ...

    assert validate(free, {"gamma": 1.0, "other": "x"}) == {"gamma": 1.0, "other": "x"}


def test_class_is_checked_by_its_constructor() -> None:
    class Thing:
        def __init__(self, size: Annotated[int, Range(1)]) -> None: ...

    with pytest.raises(ConfigError, match=r"agent\.size: expected an integer >= 1, got 0"):
        validate(Thing, {"size": 0}, "agent")


def test_annotation_that_cannot_be_evaluated_is_not_checked() -> None:
    def later(*, thing: "Absent", size: Annotated[int, Range(1)]) -> None: ...

    assert validate(later, {"thing": 3, "size": 1}) == {"thing": 3, "size": 1}
    with pytest.raises(ConfigError):
        validate(later, {"thing": 3, "size": 0})


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "text"),
    [
        (Range(0, 1), [0, 0.5, 1], [-0.1, 1.1], "in [0, 1]"),
        (Range(0, 1, low_open=True, high_open=True), [0.5], [0, 1], "in (0, 1)"),
        (Range(1), [1, 1e9], [0.9, float("inf")], ">= 1"),
        (Range(high=2, high_open=True), [-5, 1.9], [2, float("-inf")], "< 2"),
        (Range(), [-1e9, 1e9], [float("nan"), float("inf"), "1"], "of any size"),
    ],
)
def test_range_holds_its_ends_unless_open(limits: Range, inside: list[Any], outside: list[Any], text: str) -> None:
    assert all(number in limits for number in inside)
    assert not any(number in limits for number in outside)
    assert str(limits) == text

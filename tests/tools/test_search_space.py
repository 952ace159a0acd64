"""Search spaces: what YAML says, what `rlx train` is given, and what is refused."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

pytest.importorskip("optuna")

from rlx.errors import ConfigError
from rlx.tools.search_space import Parameter, as_override, read_space


def one(entry: Any) -> Parameter:
    return read_space({"algo.key": entry})[0]


@pytest.mark.parametrize(
    ("entry", "fragment"),
    [
        (3, "algo.key: got 3, expected {low, high} or {choices: [...]}"),
        ({"low": 1}, "algo.key: high is missing"),
        ({"low": 1, "hihg": 2}, "there is no field 'hihg'. Did you mean 'high'?"),
        ({"low": 2.0, "high": 1.0}, "low 2 is above high 1"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low: got 0, expected above 0 with log: true"),
        ({"low": 1, "high": 2, "log": "yes"}, "log: got 'yes', expected true or false"),
        ({"low": "1", "high": 2}, "low: got '1', expected a number"),
        ({"low": 1.0, "high": float("nan")}, "high: got nan, expected a number"),
        ({"low": 1.0, "high": 2.0, "step": 0.5, "log": True}, "got step and log: true"),
        ({"low": 1.0, "high": 2.0, "step": 0.0}, "step: got 0, expected above 0"),
        ({"choices": []}, "choices: got [], expected a list of values"),
        ({"choices": "abc"}, "choices: got 'abc', expected a list"),
        ({"choices": [1, 2], "low": 1}, "got choices and low"),
        ({"choices": [[1], [1]]}, "has one of them twice"),
        ({"low": 1, "high": 2, "as": ["linear", 0]}, "expected a list with the word 'value'"),
    ],
)
def test_entry_that_makes_no_sense_is_named(entry: Any, fragment: str) -> None:
    with pytest.raises(ConfigError) as error:
        one(entry)
    assert str(error.value).startswith("tune.space: algo.key: ")
    assert fragment in str(error.value)


@pytest.mark.parametrize("space", [None, {}, {"algo.key": None}, 3])
def test_space_without_a_key_is_refused(space: Any) -> None:
    with pytest.raises(ConfigError, match="nothing to tune"):
        read_space(space)


def test_what_is_drawn_reaches_the_key() -> None:
    rate = one({"low": 1e-5, "high": 1e-2, "log": True, "as": ["linear", "value", {"fraction": "value"}]})
    assert rate.override(1e-5) == "algo.key=[linear,1e-05,{fraction:1e-05}]"
    assert one({"low": 1, "high": 8}).ends() == [1, 8]
    assert all(isinstance(end, float) for end in one({"low": 1.0, "high": 8}).ends())
    sizes = one({"choices": [[64], [64, 64], None, "a b"]})
    assert [sizes.override(drawn) for drawn in sizes.ends()] == [
        *("algo.key=[64]", "algo.key=[64,64]", "algo.key=null", "algo.key='a b'"),
    ]


@pytest.mark.parametrize(
    "value",
    [None, True, "true", "a b", "it's", "c:\\x\\", "x\\'y", "a,b=c", "", "é", 1e-5, [1, {"a": "ALE/x"}], "nan", "3"],
)
def test_hydra_reads_back_what_is_written(value: Any) -> None:
    assert OverridesParser.create().parse_override(as_override("key", value)).value() == value


@pytest.mark.parametrize(
    ("entry", "value", "drawn"),
    [
        ({"low": 1e-4, "high": 1e-2, "log": True, "as": ["linear", "value", 0]}, ["linear", 1e-3, 0], (1e-3,)),
        ({"low": 1e-4, "high": 1e-2, "as": ["linear", "value", 0]}, ["cosine", 1e-3, 0], None),
        ({"low": 1e-4, "high": 1e-2, "as": ["linear", "value", 0]}, 1e-3, None),
        ({"low": 1e-4, "high": 1e-2}, 1e-1, None),
        ({"low": 1, "high": 8}, 2, (2,)),
        ({"low": 1, "high": 8}, 2.5, None),
        ({"low": 0, "high": 8, "step": 4}, 2, None),
        ({"low": 0.8, "high": 1.0, "step": 0.05}, 0.95, (0.95,)),
        ({"low": 0.1, "high": 0.5, "step": 0.1}, 0.3, (0.3,)),
        ({"low": 0.0, "high": 1.0, "step": 0.1}, 0.75, None),
        ({"choices": [64, 128], "as": ["value", "value"]}, [128, 128], (128,)),
        ({"choices": [64, 128], "as": ["value", "value"]}, [64, 128], None),
        ({"choices": [None, [64, 64]]}, [64, 64], ("[64,64]",)),
        ({"choices": [None, 1]}, None, (None,)),
    ],
)
def test_value_that_the_space_holds_is_found_in_it(entry: Any, value: Any, drawn: Any) -> None:
    assert one(entry).drawn_for(value) == drawn

"""What a configuration says is drawn is what is drawn, and what it says wrongly is told by key."""

import pickle

import pytest
import torch

from rlx.batcher.draws import Draws
from rlx.errors import ConfigError

MANY = 4000


def drawn(form: object, row: int = 0, count: int = MANY) -> torch.Tensor:
    draws = pickle.loads(pickle.dumps(Draws({"x": form}, "batcher.env_info")))
    generator = torch.Generator().manual_seed(1)
    return torch.stack([draws(row, generator)["x"] for _ in range(count)])


def test_numbers_of_an_interval_lie_in_it_and_fill_it_evenly() -> None:
    found = drawn({"uniform": [-1, 3]})
    assert found.dtype is torch.float32
    assert found.shape == (MANY,)
    assert (found.min() >= -1) & (found.max() < 3)
    assert torch.histc(found, 4, -1, 3).sub(MANY / 4).abs().max() < 5 * (MANY / 4) ** 0.5
    vectors = drawn({"uniform": [[0, 10], [1, 20]]}, count=50)
    assert vectors.shape == (50, 2)
    assert (vectors[:, 1] >= 10).all()
    assert vectors.unique(dim=0).shape == (50, 2)


def test_normal_numbers_have_their_mean_and_deviation() -> None:
    found = drawn({"normal": [5, 2]})
    assert abs(float(found.mean()) - 5) < 5 * 2 / MANY**0.5
    assert abs(float(found.std()) - 2) < 0.15


def test_integers_include_both_ends_and_come_equally_often() -> None:
    found = drawn({"integer": [-1, 2]})
    assert found.dtype is torch.int64
    values, counts = found.unique(return_counts=True)
    assert values.tolist() == [-1, 0, 1, 2]
    assert (counts - MANY / 4).abs().max() < 5 * (MANY / 4) ** 0.5
    assert (drawn({"integer": [7, 7]}, count=5) == 7).all()
    seeds = drawn({"integer": [0, 2**63 - 1]})
    assert seeds.min() >= 0
    assert len(seeds.unique()) == len(seeds)


def test_choices_come_equally_often_and_are_dealt_by_row() -> None:
    values, counts = drawn({"choice": [0.5, 2, 8]}).unique(return_counts=True)
    assert values.tolist() == [0.5, 2, 8]
    assert (counts - MANY / 3).abs().max() < 5 * (MANY / 3) ** 0.5
    assert [int(drawn({"deal": [4, 5, 6]}, row, 1)[0]) for row in range(5)] == [4, 5, 6, 4, 5]
    assert drawn({"choice": [[1, 0], [0, 1]]}, count=30).sum(1).eq(1).all()


@pytest.mark.parametrize(("form", "dtype"), [(3, torch.int64), (0.5, torch.float32), (True, torch.bool)])
def test_a_value_is_what_every_episode_gets(form: object, dtype: torch.dtype) -> None:
    found = drawn(form, count=3)
    assert found.dtype is dtype
    assert found.tolist() == [form] * 3
    assert drawn([form, form], count=1).tolist() == [[form, form]]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"unifrom": [0, 1]}, r"batcher\.env_info\.x\.unifrom: there is no such draw\. Did you mean 'uniform'\?"),
        ({"uniform": [1, 0]}, r"batcher\.env_info\.x\.uniform: got \[1, 0\], expected low <= high"),
        ({"uniform": [0, 1, 2]}, r"two numbers, or two lists of as many"),
        ({"uniform": [[0, 1], [2]]}, r"x\.uniform: got \[\[0, 1\], \[2\]\], expected \[low, high\]"),
        ({"uniform": [0, float("inf")]}, r"got \[0, inf\], expected \[low, high\]"),
        ({"uniform": 3}, r"got 3, expected \[low, high\]"),
        ({"normal": [0, -1]}, r"expected std >= 0"),
        ({"integer": [0, 1.5]}, r"expected integers"),
        ({"integer": [-(2**63), 2**63 - 1]}, r"expected no more than 2\^63 of them"),
        ({"integer": [False, True]}, r"two numbers"),
        ({"choice": []}, r"got \[\], expected \[a, b, \.\.\.\]"),
        ({"choice": ["a"]}, r"got \['a'\], expected \[a, b, \.\.\.\]"),
        ({"choice": [1], "deal": [2]}, r"got 'choice' and 'deal', expected one of \{uniform: \[low, high\]\}"),
        ({}, r"got \{\}, expected one of"),
        ("far", r"got 'far', expected a number, true or false, a list of them, or one of"),
        (None, r"got None, expected a number"),
        (10**30, r"expected a number"),
    ],
)
def test_a_wrong_form_is_told_by_its_key(form: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Draws({"x": form}, "batcher.env_info")


def test_no_field_is_told() -> None:
    with pytest.raises(ConfigError, match=r"batcher\.env_info: got no field"):
        Draws({}, "batcher.env_info")

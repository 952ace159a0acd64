"""Means of what updates reported."""

import pytest
import torch

from rlx.algo.means import mean_terms


def test_mean_is_over_the_updates_that_report_a_term() -> None:
    critic, policy = [torch.tensor(float(value)) for value in (1, 2, 6)], torch.tensor(5.0)
    first, second = {"critic": critic[0]}, {"policy": policy, "critic": critic[1]}
    assert mean_terms([first, second, {"critic": critic[2]}]) == {"critic": 3.0, "policy": 5.0}
    assert mean_terms([second, first]) == {"policy": 5.0, "critic": 1.5}
    assert mean_terms([{}, {}]) == mean_terms([]) == {}


@pytest.mark.parametrize("count", [3, 7, 1000])
def test_mean_of_equal_numbers_is_that_number(count: int) -> None:
    value = torch.tensor(0.1)
    assert mean_terms([{"loss": value}] * count) == {"loss": float(value)}

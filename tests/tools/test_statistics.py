"""Statistics of runs, against cases worked out by hand."""

import numpy as np
import pytest

from rlx.tools.statistics import (
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
    summarize,
)


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, -7.0])) == 2.0  # one of five at each end
    assert interquartile_mean(np.array([6.0, 0.0, 8.0, 2.0, 1.0, 90.0])) == 4.25  # of six, too
    assert interquartile_mean(np.array([5.0])) == 5.0


def test_summaries_are_over_the_axis_that_is_named() -> None:
    values = np.array([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]])
    assert summarize(values, "mean").tolist() == [2.0, 3.0, 7.0]
    assert summarize(values, "median", axis=1).tolist() == [2.0, 4.0]


def test_bootstrap_interval_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, "mean", level=0.95, draws=4000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_bootstrap_interval_is_the_same_each_time_and_in_any_number_of_pieces() -> None:
    values = np.random.default_rng(1).normal(size=(5, 7))
    one, two = (bootstrap_interval(values, "iqm", level=0.9, draws=500) for _ in range(2))
    assert np.array_equal(one, two)
    many = np.broadcast_to(values[:, :1], (5, 100_000))  # so wide that draws come in pieces
    low, high = bootstrap_interval(many, "mean", level=0.9, draws=60)
    assert np.ptp(low) == np.ptp(high) == 0.0
    assert low[0] < high[0]


def test_bootstrap_interval_of_one_run_is_its_value() -> None:
    low, high = bootstrap_interval(np.array([[3.0, 4.0]]), "mean", level=0.95, draws=10)
    assert low.tolist() == high.tolist() == [3.0, 4.0]


def test_profile_is_the_share_above_and_counts_tasks_alike() -> None:
    tasks = [np.array([0.0, 1.0]), np.array([2.0, 2.0, 2.0, 2.0])]
    assert performance_profile(tasks, np.array([-1.0, 0.0, 1.0, 2.0])).tolist() == [1.0, 0.75, 0.5, 0.0]


def test_probability_of_improvement_counts_ties_half_and_averages_tasks() -> None:
    assert probability_of_improvement([np.array([1.0, 2.0])], [np.array([1.0])]) == 0.75
    ours, theirs = [np.array([1.0]), np.array([1.0, 1.0])], [np.array([0.0]), np.array([2.0])]
    assert probability_of_improvement(ours, theirs) == 0.5


def test_stratified_draws_stay_within_their_task() -> None:
    tasks = [np.zeros(3), np.full(5, 10.0)]
    low, high = stratified_interval(lambda drawn: [one.mean() for one in drawn], tasks, level=0.95, draws=50)
    assert low.tolist() == high.tolist() == [0.0, 10.0]

"""Advantages: a case worked by hand, a slow reference, and what must cut the recursion."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.algo.returns import explained_variance, gae, n_step_returns, normalize


def slow_gae(
    rewards, values, next_values, terminated, truncated, gamma, gae_lambda, lengths, ratio=None, rho_max=1.0, c_max=1.0
):
    """Return the sum of discounted errors for each step, by its definition; with ratios by V-trace's (eq. 1)."""
    advantages = torch.zeros_like(rewards)
    for b, length in enumerate(lengths):
        for t in range(length):
            weight = 1.0
            for k in range(t, length):
                rho = 1.0 if ratio is None else min(rho_max, float(ratio[b, k]))
                trace = 1.0 if ratio is None else min(c_max, float(ratio[b, k]))
                after = 0.0 if terminated[b, k] else float(next_values[b, k])
                advantages[b, t] += weight * rho * (rewards[b, k] + gamma * after - values[b, k])
                if terminated[b, k] or truncated[b, k]:
                    break
                weight *= gamma * gae_lambda * trace  # c_k = lambda * min(c_max, ratio_k)
    return advantages


def test_gae_of_a_case_worked_by_hand() -> None:
    # gamma 0.5, lambda 0.5; step 1 is truncated (bootstrap 4), step 2 ends the piece (bootstrap 8).
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 2.0]])
    next_values = torch.tensor([[1.0, 4.0, 8.0]])
    truncated, terminated = torch.tensor([[False, True, False]]), torch.zeros(1, 3, dtype=torch.bool)
    # errors: 1 + .5 - 1 = .5; 2 + 2 - 1 = 3; 3 + 4 - 2 = 5
    found = gae(rewards, values, next_values, terminated, truncated, gamma=0.5, gae_lambda=0.5)
    assert found.tolist() == [[0.5 + 0.25 * 3.0, 3.0, 5.0]]
    # the same end as a termination: no bootstrap, 2 - 1 = 1
    found = gae(rewards, values, next_values, truncated, terminated, gamma=0.5, gae_lambda=0.5)
    assert found.tolist() == [[0.5 + 0.25 * 1.0, 1.0, 5.0]]


def test_gae_of_a_discount_for_each_step_or_row_worked_by_hand() -> None:
    # A model's chances to go on, times gamma. Errors: 1 + .5 - 1 = .5; 2 + 0 - 1 = 1; 3 + .25 * 8 - 2 = 3. lambda .5.
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 2.0]])
    next_values, never = torch.tensor([[1.0, 4.0, 8.0]]), torch.zeros(1, 3, dtype=torch.bool)
    given = rewards, values, next_values, never, never
    found = gae(*given, gamma=torch.tensor([[0.5, 0.0, 0.25]]), gae_lambda=0.5)
    assert found.tolist() == [[0.5 + 0.25 * 1.0, 1.0, 3.0]]
    two = [torch.cat([field, field]) for field in given]
    found = gae(*two, gamma=torch.tensor([[0.9], [0.5]]), gae_lambda=0.5)
    each = [gae(*given, gamma=gamma, gae_lambda=0.5) for gamma in (0.9, 0.5)]
    torch.testing.assert_close(found, torch.cat(each))


def test_vtrace_of_a_case_worked_by_hand() -> None:
    # The errors of the case above, .5, 3 and 5. Ratios .5, 4 (cut at 1) and .8.
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 2.0]])
    next_values, ratio = torch.tensor([[1.0, 4.0, 8.0]]), torch.tensor([[0.5, 4.0, 0.8]])
    truncated, terminated = torch.tensor([[False, True, False]]), torch.zeros(1, 3, dtype=torch.bool)
    found = gae(rewards, values, next_values, terminated, truncated, gamma=0.5, gae_lambda=0.5, ratio=ratio)
    torch.testing.assert_close(found, torch.tensor([[0.5 * (0.5 + 0.25 * 3.0), 3.0, 0.8 * 5.0]]))


def test_vtrace_of_two_thresholds_worked_by_hand() -> None:
    # Errors 1, 2 and 4, gamma and lambda 1. Ratios 2, 4 and .5: rho (at most 3) 2, 3, .5; c (at most 1.5) 1.5, 1.5, .5.
    rewards, ratio, zero = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[2.0, 4.0, 0.5]]), torch.zeros(1, 3)
    given, never = (rewards, zero, zero), zero.bool()
    found = gae(*given, never, never, gamma=1.0, gae_lambda=1.0, ratio=ratio, rho_max=3.0, c_max=1.5)
    last = 0.5 * 4
    middle = 3 * 2 + 1.5 * last
    assert found.tolist() == [[2 * 1 + 1.5 * middle, middle, last]]
    # No c: rho-weighted errors of one step. No bound: plain importance sampling, products of ratios.
    found = gae(*given, never, never, gamma=1.0, gae_lambda=1.0, ratio=ratio, rho_max=3.0, c_max=0.0)
    assert found.tolist() == [[2.0, 6.0, 2.0]]
    found = gae(*given, never, never, gamma=1.0, gae_lambda=1.0, ratio=ratio, rho_max=torch.inf, c_max=torch.inf)
    assert found.tolist() == [[2 * (1 + 4 * (2 + 0.5 * 4)), 4 * (2 + 0.5 * 4), 2.0]]


def test_vtrace_of_the_policy_that_acted_is_gae_and_its_gradient_weight_is_the_papers() -> None:
    torch.manual_seed(0)
    rewards, values, after, ratio = torch.randn(4, 3, 6, dtype=torch.float64)
    after[:, :-1] = values[:, 1:]
    ratio, never = ratio.exp(), torch.zeros(3, 6, dtype=torch.bool)
    given = rewards, values, after, never, never
    same = gae(*given, gamma=0.9, gae_lambda=0.7, ratio=torch.ones_like(ratio))
    torch.testing.assert_close(same, gae(*given, gamma=0.9, gae_lambda=0.7))
    found = gae(*given, gamma=0.9, gae_lambda=1.0, ratio=ratio)
    targets = torch.cat([(found + values)[:, 1:], after[:, -1:]], dim=1)  # v_{s+1}
    torch.testing.assert_close(found, ratio.clamp(max=1) * (rewards + 0.9 * targets - values))


def test_termination_wins_a_tie() -> None:
    both = torch.ones(1, 1, dtype=torch.bool)
    found = gae(torch.ones(1, 1), torch.zeros(1, 1), torch.full((1, 1), 9.0), both, both, gamma=0.9, gae_lambda=0.9)
    assert found.item() == 1.0


@pytest.mark.parametrize("vtrace", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_gae_and_vtrace_equal_their_definitions(vtrace: bool, data: st.DataObject) -> None:
    size, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    rewards, values, after = torch.randn(3, size, steps, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, size, steps, generator=generator) < 0.3
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=size, max_size=size))
    gamma, gae_lambda = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    mask = torch.arange(steps) < torch.tensor(lengths).unsqueeze(1)
    ratio = 3 * torch.rand(size, steps, generator=generator, dtype=torch.float64) if vtrace else None
    if ratio is not None:
        ratio[~mask] = torch.nan  # padding has no policy
    given = rewards, values, after, terminated, truncated
    bounds = data.draw(st.sampled_from([(1.0, 1.0), (2.0, 1.0), (1.5, 0.5), (torch.inf, 2.5)]))
    found = gae(*given, gamma=gamma, gae_lambda=gae_lambda, mask=mask, ratio=ratio, rho_max=bounds[0], c_max=bounds[1])
    expected = slow_gae(*given, gamma, gae_lambda, lengths, ratio, *bounds)
    torch.testing.assert_close(found, expected)


def test_padding_may_hold_anything() -> None:
    torch.manual_seed(0)
    mask, never = torch.tensor([[True, True, False, False]]), torch.zeros(1, 4, dtype=torch.bool)
    padded = torch.rand(4, 1, 4).masked_fill(~mask, torch.nan)  # rewards, values, those behind, discounts
    *given, discount = padded
    found = gae(*given, never, never, gamma=discount, gae_lambda=0.9, mask=mask)
    *given, discount = padded[:, :, :2]
    expected = gae(*given, never[:, :2], never[:, :2], gamma=discount, gae_lambda=0.9)
    torch.testing.assert_close(found, torch.cat([expected, torch.zeros(1, 2)], dim=1))


def test_a_piece_cut_in_two_gives_the_one_step_errors_of_the_whole() -> None:
    torch.manual_seed(0)
    rewards, values, after = torch.randn(3, 2, 6)
    after[:, :-1] = values[:, 1:]
    never = torch.zeros(2, 6, dtype=torch.bool)
    whole = gae(rewards, values, after, never, never, gamma=0.9, gae_lambda=0.0)
    halves = [
        gae(rewards[:, s], values[:, s], after[:, s], never[:, s], never[:, s], gamma=0.9, gae_lambda=0.0)
        for s in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.cat(halves, dim=1), whole)


def test_explained_variance_is_one_for_perfect_and_zero_for_the_mean() -> None:
    target = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(target, target).item() == 1.0
    assert explained_variance(target.mean().expand(3), target).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(target, torch.ones(3)).isnan()
    assert explained_variance(target[:1], target[:1]).isnan()


def test_normalize_gives_mean_zero_and_deviation_one() -> None:
    found = normalize(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0]))
    assert normalize(torch.tensor([3.0])).tolist() == [0.0]


def test_n_step_returns_of_a_case_worked_by_hand() -> None:
    # gamma 0.5; step 1 is truncated (what follows is worth 4), step 4 terminated, step 5 ends the piece (8 follows).
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    next_values = torch.tensor([[1.0, 4.0, 2.0, 1.0, 9.0, 8.0]])
    truncated, terminated = torch.zeros(2, 1, 6, dtype=torch.bool)
    truncated[0, 1], terminated[0, 4] = True, True
    found = n_step_returns(rewards, next_values, terminated, truncated, 0.5, n_step=2)
    assert found.tolist() == [[1 + 1 + 1, 2 + 2, 3 + 2 + 0.25, 4 + 2.5, 5.0, 6 + 4]]
    one = n_step_returns(rewards, next_values, terminated, truncated, 0.5, n_step=1)
    assert one.tolist() == [[1.5, 4.0, 4.0, 4.5, 5.0, 10.0]]


def test_n_step_returns_take_termination_in_a_tie() -> None:
    both = torch.ones(1, 1, dtype=torch.bool)
    assert n_step_returns(torch.ones(1, 1), torch.full((1, 1), 9.0), both, both, 0.9, n_step=3).item() == 1.0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_n_step_returns_equal_their_definition(data: st.DataObject) -> None:
    size, steps, n_step = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7)), data.draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    rewards, after = torch.randn(2, size, steps, generator=generator, dtype=torch.float64)
    discount = torch.rand(size, steps, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, size, steps, generator=generator) < 0.2
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=size, max_size=size))
    expected = torch.zeros_like(rewards)
    for b, length in enumerate(lengths):
        for t in range(length):
            weight = 1.0
            for k in range(t, min(length, t + n_step)):
                expected[b, t] += weight * rewards[b, k]
                weight *= discount[b, k]
                if terminated[b, k]:
                    weight = 0.0
                if terminated[b, k] or truncated[b, k]:
                    break
            expected[b, t] += weight * after[b, k]
    mask = torch.arange(steps) < torch.tensor(lengths).unsqueeze(1)
    found = n_step_returns(rewards, after, terminated, truncated, discount, n_step=n_step, mask=mask)
    torch.testing.assert_close(found, expected)

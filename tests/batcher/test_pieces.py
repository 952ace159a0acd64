"""Returns and lengths of episodes that go through several pieces, beside a walk through their steps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlx.batcher import on_device, pieces

Episodes = list[tuple[int, float, int]]

# Sums of these are exact in any order.
REWARDS = st.sampled_from([0.0, 1.0, -2.5, 0.125, 7.0])


class Walk:
    """The reference: step after step."""

    def __init__(self, size: int) -> None:
        self.returns, self.lengths = [0.0] * size, [0] * size

    def episodes(self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray | None, first_row: int) -> Episodes:
        found: Episodes = []
        for t in range(len(rewards)):
            for row in range(len(self.returns)):
                if valid is not None and not valid[t, row]:
                    continue
                self.returns[row] += float(rewards[t, row])
                self.lengths[row] += 1
                if ended[t, row]:
                    found.append((first_row + row, self.returns[row], self.lengths[row]))
                    self.returns[row], self.lengths[row] = 0.0, 0
        return found


@st.composite
def several_pieces(draw: st.DrawFn) -> tuple[int, list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]]:
    """Return a number of rows, and pieces of theirs: rewards, ends, and which calls are steps."""
    size = draw(st.integers(1, 3))
    has_gaps, often = draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 0.5]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    out = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(0, 4))
        rewards = np.array(draw(st.lists(REWARDS, min_size=length * size, max_size=length * size)), np.float32)
        ended = random.random((length, size)) < often
        valid = random.random((length, size)) < 0.7 if has_gaps else None
        out.append((rewards.reshape(length, size), ended, valid))
    return size, out


@given(several_pieces())
def test_episodes_are_summed_across_pieces(
    given: tuple[int, list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]],
) -> None:
    size, parts = given
    walk = Walk(size)
    returns, lengths = np.zeros(size), np.zeros(size, np.int64)
    on_card = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64)
    for rewards, ended, valid in parts:
        expected = walk.episodes(rewards, ended, valid, 10)
        kept = None if valid is None else valid.copy()
        assert pieces.tally(rewards.copy(), ended.copy(), kept, returns, lengths, 10) == expected
        tensors = [None if each is None else torch.from_numpy(each.copy()) for each in (rewards, ended, valid)]
        assert on_device.tally(*tensors, *on_card, 10) == expected
        for found in ((returns, lengths), on_card):
            assert (found[0].tolist(), found[1].tolist()) == (walk.returns, walk.lengths)


@pytest.mark.parametrize("ends", [False, True])
def test_a_reward_that_is_not_finite_counts_for_its_own_episode_alone(ends: bool) -> None:
    rewards = np.array([[np.inf, 1.0], [-np.inf, 1.0]], np.float32)
    ended = np.array([[False, False], [False, ends]])
    returns, lengths = np.zeros(2), np.zeros(2, np.int64)
    assert pieces.tally(rewards, ended, None, returns, lengths, 0) == ([(1, 2.0, 2)] if ends else [])
    assert math.isnan(returns[0])
    assert returns[1] == (0.0 if ends else 2.0)

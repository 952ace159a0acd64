"""Batches that are drawn many at once, beside batches that are drawn one by one."""

import pytest
import torch

from rlx.data import EnvSpecs, ReplayBuffer, Spec, Trajectories
from tests.data.test_replay_buffer import PLAIN, STACKED, Stream


def filled(specs: EnvSpecs = PLAIN, **options) -> ReplayBuffer:
    buffer = ReplayBuffer(specs, capacity=200, num_envs=3, **options)
    Stream(specs, 3, 0).feed(buffer, 12)
    return buffer


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def assert_parts(batches: list[Trajectories], whole: Trajectories) -> None:
    """Check that the batches hold the rows of the whole, in its order, and nothing else."""
    row = 0
    for batch in batches:
        rows = slice(row, row + batch.batch_size)
        assert list(batch.steps) == list(whole.steps)
        for key in whole.steps:
            assert torch.equal(batch.steps[key], whole.steps[key][rows]), key
        assert list(batch.info) == list(whole.info)
        for key in whole.info:
            assert torch.equal(batch.info[key], whole.info[key][rows]), key
        assert torch.equal(batch.steps.lengths, whole.steps.lengths[rows])
        assert batch.num_steps == int(batch.steps.lengths.sum())
        own = whole.rows(rows).bootstrap
        for key in own:
            assert torch.equal(batch.bootstrap[key], own[key]), key
        row += batch.batch_size
    assert row == whole.batch_size


@pytest.mark.parametrize("specs", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_are_one_draw_in_parts(specs: EnvSpecs, n_step: int) -> None:
    buffer = filled(specs)
    batches = list(buffer.batches(5, 16, generator(), n_step=n_step, gamma=0.9))
    assert [batch.batch_size for batch in batches] == [16] * 5
    assert_parts(batches, buffer.sample(80, generator(), n_step=n_step, gamma=0.9))


def test_batches_of_sequences_are_one_draw_in_parts_with_their_states() -> None:
    buffer = filled(state={"hidden": Spec((), torch.float32)}, state_every=5)
    batches = list(buffer.batches(4, 8, generator(), num_steps=6, gamma=0.9))
    whole = buffer.sample_sequences(32, generator(), num_steps=6, gamma=0.9)
    assert "agent_state/hidden" in whole.info
    assert not whole.is_full()
    assert_parts(batches, whole)


def test_with_priorities_each_batch_sees_those_that_the_one_before_left() -> None:
    buffer = filled(alpha=1.0)
    batches = buffer.batches(3, 64, generator())
    first = next(batches)
    favourite = first.info["slot"][:1]
    every = buffer.sample(5_000, generator()).info["slot"].unique()
    buffer.update_priorities(every, torch.zeros(len(every)))
    buffer.update_priorities(favourite, torch.ones(1))
    assert (next(batches).info["slot"] == favourite).float().mean() > 0.95


def test_no_updates_draw_nothing() -> None:
    source = generator()
    assert list(ReplayBuffer(PLAIN, capacity=200, num_envs=3).batches(0, 16, source)) == []
    assert torch.equal(source.get_state(), generator().get_state())


def test_what_is_drawn_together_is_bounded_by_what_a_step_takes(monkeypatch) -> None:
    large = EnvSpecs({"obs": Spec((4, 84, 84), torch.uint8)}, PLAIN.action)
    buffer = ReplayBuffer(large, capacity=60, num_envs=3)
    Stream(large, 3, 0).feed(buffer, 2)
    sizes: list[int] = []
    sample = buffer.sample

    def watched(batch_size: int, *arguments, **options) -> Trajectories:
        sizes.append(batch_size)
        return sample(batch_size, *arguments, **options)

    monkeypatch.setattr(buffer, "sample", watched)
    batches = list(buffer.batches(7, 16, generator()))
    assert [batch.batch_size for batch in batches] == [16] * 7
    assert sum(sizes) == 7 * 16
    assert max(sizes) * 2 * 4 * 84 * 84 <= 2**22
    assert len(sizes) < 7

"""Batches that are drawn many at once, beside batches that are drawn one by one."""

import pytest
import torch

from rlx.data import EnvSpecs, ReplayBuffer, Spec, Trajectories
from rlx.errors import UserError
from tests.data.test_hindsight import buffer_of, walk
from tests.data.test_replay_buffer import PLAIN, STACKED, Stream


def filled(specs: EnvSpecs = PLAIN, **options) -> ReplayBuffer:
    buffer = ReplayBuffer(specs, capacity=200, num_envs=3, **options)
    Stream(specs, 3, 0).feed(buffer, 12)
    return buffer


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def assert_same(found: Trajectories, expected: Trajectories) -> None:
    for one, other in (
        (found.steps, expected.steps),
        (found.info, expected.info),
        (found.bootstrap, expected.bootstrap),
    ):
        assert list(one) == list(other)
        for key in other:
            assert torch.equal(one[key], other[key]), key
    assert torch.equal(found.steps.lengths, expected.steps.lengths)
    assert found.num_steps == expected.num_steps


@pytest.mark.parametrize("specs", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("options", [{}, {"n_step": 3}], ids=["one_step", "three_steps"])
@pytest.mark.parametrize("alpha", [None, 0.6], ids=["even", "priorities"])
def test_batches_are_those_that_sample_returns_one_by_one(specs: EnvSpecs, options: dict, alpha: float | None) -> None:
    buffer, one_by_one = filled(specs, alpha=alpha), generator()
    batches = list(buffer.batches(5, 16, generator(), gamma=0.9, beta=0.5, **options))
    assert len(batches) == 5
    for batch in batches:
        assert_same(batch, buffer.sample(16, one_by_one, gamma=0.9, beta=0.5, **options))


def test_batches_of_sequences_are_those_that_sample_sequences_returns_with_their_states() -> None:
    buffer, one_by_one = filled(state={"hidden": Spec((), torch.float32)}, state_every=5), generator()
    batches = list(buffer.batches(4, 8, generator(), num_steps=6, gamma=0.9))
    assert len(batches) == 4
    assert "agent_state/hidden" in batches[0].info
    assert not batches[0].is_full()
    for batch in batches:
        assert_same(batch, buffer.sample_sequences(8, one_by_one, num_steps=6, gamma=0.9))


def test_batches_with_other_goals_are_those_that_sample_returns() -> None:
    buffer, one_by_one = buffer_of(walk([0, 1, 2, 3], 9, "truncated"), walk([4, 5, 6], 6, "")), generator()
    for batch in buffer.batches(4, 8, generator(), n_step=2, gamma=0.9):
        assert_same(batch, buffer.sample(8, one_by_one, n_step=2, gamma=0.9))
    with pytest.raises(UserError, match="only single transitions get other goals"):
        next(buffer.batches(1, 8, generator(), num_steps=4))


def test_with_priorities_each_batch_sees_those_that_the_one_before_left() -> None:
    buffer = filled(alpha=1.0)
    batches = buffer.batches(3, 64, generator())
    first = next(batches)
    favourite = first.info["slot"][:1]
    every = buffer.sample(5_000, generator()).info["slot"].unique()
    buffer.update_priorities(every, torch.zeros(len(every)))
    buffer.update_priorities(favourite, torch.ones(1))
    assert (next(batches).info["slot"] == favourite).float().mean() > 0.95


def test_answers_asked_for_many_batches_at_once_are_those_of_each_step() -> None:
    asked: list[int] = []

    def also(some: Trajectories) -> dict[str, torch.Tensor]:
        asked.append(some.batch_size)
        return {"target/slot": some.info["slot"].unsqueeze(1) * 2}

    batches = list(filled().batches(5, 16, generator(), also=also))
    assert asked == [5 * 16]
    for batch in batches:
        assert torch.equal(batch.steps["target/slot"].squeeze(1), batch.info["slot"] * 2)
        assert batch.is_full()


def test_no_updates_draw_nothing() -> None:
    source = generator()
    assert list(ReplayBuffer(PLAIN, capacity=200, num_envs=3).batches(0, 16, source)) == []
    assert torch.equal(source.get_state(), generator().get_state())


def test_what_is_drawn_together_is_bounded_by_what_a_step_takes(monkeypatch) -> None:
    large = EnvSpecs({"obs": Spec((4, 84, 84), torch.uint8)}, PLAIN.action)
    buffer = ReplayBuffer(large, capacity=60, num_envs=3)
    Stream(large, 3, 0).feed(buffer, 2)
    sizes: list[int] = []
    transitions = buffer._reader.transitions

    def watched(slots, **options):
        sizes.append(len(slots))
        return transitions(slots, **options)

    monkeypatch.setattr(buffer._reader, "transitions", watched)
    batches = list(buffer.batches(7, 16, generator()))
    assert [batch.batch_size for batch in batches] == [16] * 7
    assert sum(sizes) == 7 * 16
    assert max(sizes) * 2 * 4 * 84 * 84 <= 2**22
    assert len(sizes) < 7

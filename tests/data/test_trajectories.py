"""Trajectories: rows, single steps and minibatches keep what belongs together."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.data import DictTensor, MissingFieldError, TemporalDictTensor, Trajectories
from rlx.errors import DataRevokedError, SpecError


def made(lengths: list[int], max_length: int) -> Trajectories:
    """Return trajectories whose every number says where it stands: 100 * row + time."""
    size = len(lengths)
    place = 100 * torch.arange(size).unsqueeze(1) + torch.arange(max_length)
    steps = TemporalDictTensor(
        {"env/obs": place.float(), "agent/action": place, "next/reward": -place.float()}, lengths
    )
    info = DictTensor({"agent_info/kind": torch.arange(size), "agent_state/h": torch.arange(size) + 0.5}, size)
    rows = [row for row, length in enumerate(lengths) if length]
    bootstrap = DictTensor(
        {
            "row": torch.tensor(rows, dtype=torch.int64),
            "time": torch.tensor([lengths[row] - 1 for row in rows], dtype=torch.int64),
            "obs": torch.tensor([1000.0 * row for row in rows]),
        },
        len(rows),
    )
    return Trajectories(info, steps, bootstrap)


def test_rows_bring_their_info_and_their_bootstrap_renumbered() -> None:
    chosen = made([3, 0, 2, 1], 3).rows(torch.tensor([2, 0]))
    assert chosen.steps.lengths.tolist() == [2, 3]
    assert chosen.info["agent_info/kind"].tolist() == [2, 0]
    found = zip(chosen.bootstrap["row"].tolist(), chosen.bootstrap["obs"].tolist(), strict=True)
    assert sorted(found) == [(0, 2000.0), (1, 0.0)]
    assert made([3, 0], 3).rows(slice(1, 2)).bootstrap.batch_size == 0


def test_parts_that_are_put_together_keep_what_belongs_to_their_rows() -> None:
    first, second = made([3, 0, 2], 3), made([0, 4], 4)
    both = Trajectories.cat([first, second.rows(slice(0, 0)), second])
    assert both.steps.leading_shape == (5, 4)
    assert both.steps.lengths.tolist() == [3, 0, 2, 0, 4]
    assert both.info["agent_info/kind"].tolist() == [0, 1, 2, 0, 1]
    assert both.num_steps == 9
    assert both.context.leading_shape == (5, 0)
    ends = zip(*(both.bootstrap[key].tolist() for key in ("row", "time", "obs")), strict=True)
    assert list(ends) == [(0, 2, 0.0), (2, 1, 2000.0), (4, 3, 1000.0)]
    again = both.rows(torch.tensor([3, 4]))
    assert torch.equal(again.steps["env/obs"], second.steps["env/obs"])
    assert again.bootstrap["obs"].tolist() == second.bootstrap["obs"].tolist()
    with pytest.raises(SpecError, match="env/obs"):
        Trajectories.cat([first, second.select("next")])
    with pytest.raises(SpecError):
        Trajectories.cat([])


def test_what_bootstraps_from_nothing_is_put_together_and_chosen_from_like_the_rest() -> None:
    over = made([2, 1], 2)
    over = Trajectories(over.info, over.steps, over.bootstrap[:0])  # both sequences terminate
    first, second = over.minibatches(1, torch.Generator())
    for parts in ([over, over], [first, second], [first, second, over]):
        both = Trajectories.cat(parts)
        assert ("row" in both.bootstrap) == all("row" in part.bootstrap for part in parts)
        for chosen in (both.rows(torch.tensor([1, 0])), next(both.minibatches(1, torch.Generator())).rows(slice(0, 1))):
            assert chosen.bootstrap.batch_size == 0
    assert over.rows(torch.tensor([1])).bootstrap["row"].tolist() == []


@pytest.mark.parametrize("lengths", [[3, 3], [3, 0, 2], [0, 0]])
def test_split_steps_are_the_valid_steps_with_their_info(lengths: list[int]) -> None:
    trajectories = made(lengths, 3)
    single = trajectories.split_steps()
    wanted = [100 * row + t for row, length in enumerate(lengths) for t in range(length)]
    assert single.steps["agent/action"][:, 0].tolist() == wanted
    assert single.info["agent_info/kind"].tolist() == [place // 100 for place in wanted]
    assert "agent_state/h" not in single.info
    assert single.num_steps == trajectories.num_steps == len(wanted)
    assert single.is_full()


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_minibatches_may_be_asked_for_by_number_and_differ_by_a_row_at_most(number: int) -> None:
    single = made([3, 0, 2], 3).split_steps()
    found = [batch.steps["agent/action"][:, 0].tolist() for batch in
             single.minibatches(100, torch.Generator().manual_seed(0), number)]  # fmt: skip
    assert len(found) == number
    assert {len(places) for places in found} <= {5 // number, 5 // number + 1}
    assert sorted(place for places in found for place in places) == [0, 1, 2, 200, 201]
    for batch_size in (1, 2, 3, 5, 100):
        assert single.num_minibatches(batch_size) == len(list(single.minibatches(batch_size, torch.Generator())))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_minibatches_hold_every_step_once_and_fields_stay_together(batch_size: int) -> None:
    single = made([3, 0, 2], 3).split_steps()
    seen: list[int] = []
    for minibatch in single.minibatches(batch_size, torch.Generator().manual_seed(0)):
        assert minibatch.batch_size <= batch_size
        assert minibatch.is_full()
        places = minibatch.steps["agent/action"][:, 0]
        assert torch.equal(minibatch.steps["next/reward"][:, 0], -places.float())
        assert torch.equal(minibatch.info["agent_info/kind"], places // 100)
        seen += places.tolist()
    assert sorted(seen) == single.steps["agent/action"][:, 0].tolist()


def test_minibatches_of_sequences_keep_sequences_whole_and_their_first_state() -> None:
    trajectories = made([4, 2, 3, 4], 4)
    rows: list[int] = []
    for minibatch in trajectories.minibatches(8, torch.Generator().manual_seed(1)):
        assert minibatch.batch_size == 2
        row = minibatch.steps["agent/action"][:, 0] // 100
        assert minibatch.steps.lengths.tolist() == [[4, 2, 3, 4][r] for r in row.tolist()]
        assert torch.equal(minibatch.info["agent_state/h"], row + 0.5)
        assert minibatch.is_full() == (minibatch.steps.lengths == 4).all().item()
        rows += row.tolist()
    assert sorted(rows) == [0, 1, 2, 3]


def test_the_order_of_minibatches_is_the_generators() -> None:
    single = made([9], 9).split_steps()

    def order(seed: int) -> list[int]:
        batches = single.minibatches(2, torch.Generator().manual_seed(seed))
        return [int(place) for batch in batches for place in batch.steps["agent/action"][:, 0]]

    assert order(0) == order(0) != order(1)


def test_select_and_with_steps_choose_and_add_fields() -> None:
    trajectories = made([2], 2)
    chosen = trajectories.select("env", "next/reward").with_steps(advantage=torch.ones(1, 2))
    assert set(chosen.steps.keys()) == {"env/obs", "next/reward", "advantage"}


def test_bootstrap_is_made_when_it_is_asked_for_and_once() -> None:
    calls: list[int] = []
    base = made([1], 1)

    def make() -> DictTensor:
        calls.append(1)
        return DictTensor({"row": torch.zeros(1, dtype=torch.int64)})

    lazy = Trajectories(base.info, base.steps, make)
    assert not calls
    assert lazy.bootstrap is lazy.bootstrap
    assert calls == [1]


def test_revoked_trajectories_refuse_and_clones_stay() -> None:
    trajectories = made([2], 2)
    kept = trajectories.clone()
    told: list[str] = []
    revocable = Trajectories(trajectories.info, trajectories.steps, trajectories.bootstrap, on_revoke=told.append)
    revocable.revoke("gone")
    assert told == ["gone"]
    for read in (
        lambda: revocable.steps["env/obs"],
        lambda: revocable.info["agent_info/kind"],
        lambda: revocable.bootstrap["obs"],
    ):
        with pytest.raises(DataRevokedError, match="gone"):
            read()
    assert kept.steps["env/obs"].tolist() == [[0.0, 1.0]]


def drawn(data: st.DataObject, size: int, max_length: int, history: int) -> Trajectories:
    """Return sequences with ends of both kinds, a context and a bootstrap; each number stands in one place only."""
    lengths = data.draw(st.lists(st.integers(0, max_length), min_size=size, max_size=size))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    terminated, truncated = torch.rand(2, size, max_length, generator=generator) < 0.2
    truncated &= ~terminated
    begun = torch.rand(size, 1, generator=generator) < 0.5
    is_first = torch.cat([begun, (terminated | truncated)[:, :-1]], dim=1)
    obs = 1000.0 * torch.arange(size).unsqueeze(1) + torch.arange(max_length)
    fields = {"env/obs": obs, "env/is_first": is_first, "agent/state/h": -obs, "next/terminated": terminated}
    steps = TemporalDictTensor(fields | {"next/truncated": truncated}, lengths)
    last = torch.arange(max_length) == (steps.lengths - 1).unsqueeze(1)
    row, time = ((truncated | last) & ~terminated & steps.mask()).nonzero(as_tuple=True)
    after = {"row": row, "time": time, "obs": obs[row, time] + 0.5, "is_first": torch.zeros(len(row), dtype=torch.bool)}
    counts = torch.randint(0, history + 1, (size,), generator=generator).masked_fill(begun.squeeze(1), 0)
    context = TemporalDictTensor(
        {"env/obs": -1000.0 * (torch.arange(size).unsqueeze(1) + 1) - torch.arange(history)}, counts
    )
    info = DictTensor({"agent_info/kind": torch.arange(size), "agent_state/h": torch.arange(size) + 0.25}, size)
    return Trajectories(info, steps, DictTensor(after, len(row)), context if history else None)


def slow_parts(whole: Trajectories, num_steps: int, history: int) -> list[dict[str, object]]:
    """Return each part in plain Python: what it begins with and comes after, its steps, and what follows which."""
    parts: list[dict[str, object]] = []
    steps = whole.steps
    after = {
        (row, time): obs
        for row, time, obs in zip(*(whole.bootstrap[key].tolist() for key in ("row", "time", "obs")), strict=True)
    }
    for row, length in enumerate(steps.lengths.tolist()):
        before = whole.context["env/obs"][row, : whole.context.lengths[row]].tolist() if history else []
        for t in range(length):
            if steps["env/is_first"][row, t]:
                before = []
            if t % num_steps == 0:
                state = row + 0.25 if t == 0 else steps["agent/state/h"][row, t].item()
                context = before[len(before) - min(history, len(before)) :]
                parts.append({"kind": row, "state": state, "context": context, "obs": [], "after": {}})
            part, obs = parts[-1], steps["env/obs"][row, t].item()
            part["obs"].append(obs)
            before = [*before, obs]
            over = steps["next/terminated"][row, t] or steps["next/truncated"][row, t]
            if (row, t) in after:
                part["after"][t % num_steps] = after[row, t]
            elif (t + 1) % num_steps == 0 and not over:
                part["after"][t % num_steps] = steps["env/obs"][row, t + 1].item()
    return parts


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_sequences_cut_in_time_bring_states_bootstrap_and_context(data: st.DataObject) -> None:
    size, max_length, history = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 4))
    num_steps = data.draw(st.integers(1, max_length + 1))
    whole = drawn(data, size, max_length, history)
    expected = slow_parts(whole, num_steps, history)
    found = whole.split_sequences(num_steps, whole.steps.group("agent/state"))
    if num_steps >= max_length:
        assert found is whole
        return
    assert found.batch_size == len(expected)
    assert found.num_steps == whole.num_steps
    assert found.steps.max_length <= num_steps
    after: list[dict[int, float]] = [{} for _ in expected]
    places = list(zip(*(found.bootstrap[key].tolist() for key in ("row", "time", "obs", "is_first")), strict=True))
    assert places == sorted(places)
    for row, time, obs, is_first in places:
        after[row][time] = obs
        assert not is_first
    for number, part in enumerate(expected):
        assert found.info["agent_info/kind"][number] == part["kind"]
        assert found.info["agent_state/h"][number].item() == part["state"]
        assert found.steps["env/obs"][number, : found.steps.lengths[number]].tolist() == part["obs"]
        assert after[number] == part["after"]
        count = int(found.context.lengths[number])
        assert (found.context["env/obs"][number, :count].tolist() if count else []) == part["context"]


def test_what_is_cut_in_time_needs_the_states_and_may_lack_the_bootstrap() -> None:
    trajectories = made([3, 2], 3)
    with pytest.raises(SpecError, match="got none, expected states with h; an agent can keep them as an output"):
        trajectories.split_sequences(2)
    with pytest.raises(SpecError, match="got 0 steps, expected 1 or more"):
        trajectories.split_sequences(0)
    (batch,) = trajectories.minibatches(100, torch.Generator(), number=1)
    batch = Trajectories(batch.info, batch.steps, DictTensor.empty(0))
    cut = batch.split_sequences(2, TemporalDictTensor({"h": batch.steps["env/obs"]}, batch.steps.lengths))
    assert cut.steps.lengths.tolist() == [2, 1, 2]
    assert cut.info["agent_state/h"].tolist() == [0.5, 2.0, 1.5]
    assert cut.bootstrap.batch_size == 0


def test_states_of_sequences_that_come_without_any_are_those_that_are_told() -> None:
    steps = TemporalDictTensor({"env/obs": torch.zeros(2, 3), "env/is_first": torch.zeros(2, 3).bool()}, [3, 2])
    states = TemporalDictTensor({"h": torch.tensor([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]])}, [3, 2])
    cut = Trajectories(DictTensor({}, 2), steps).split_sequences(2, states)
    assert cut.info["agent_state/h"].tolist() == [0.0, 2.0, 5.0]
    whole = Trajectories(DictTensor({}, 2), steps).split_sequences(3, states)
    assert whole.info["agent_state/h"].tolist() == [0.0, 5.0]


def of_steps() -> TemporalDictTensor:
    """Return steps of four sequences: one stops, one terminates, one is truncated inside, one has none."""
    lengths, shape = [3, 2, 3, 0], (4, 3)
    place = (10 * torch.arange(4).unsqueeze(1) + torch.arange(3)).float()
    flags = {"next/terminated": torch.zeros(shape, dtype=torch.bool), "next/truncated": torch.ones(shape).bool()}
    flags["next/truncated"][[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 1, 2]] = False  # padding may hold anything
    flags["next/terminated"][1, 1] = True
    fields = {"env/obs": place, "agent/action": place.long(), "next/obs": place + 1, "next/reward": -place, **flags}
    return TemporalDictTensor(fields, lengths)


def test_what_follows_the_last_steps_is_worked_out_where_nobody_tells_it() -> None:
    bootstrap = Trajectories(DictTensor({}, 4), of_steps()).bootstrap
    assert (bootstrap["row"].tolist(), bootstrap["time"].tolist()) == ([0, 2, 2], [2, 0, 2])
    assert bootstrap["obs"].tolist() == [3.0, 21.0, 23.0]
    assert bootstrap["prev_reward"].tolist() == [-2.0, -20.0, -22.0]
    assert bootstrap["prev_action"].tolist() == [2, 20, 22]
    assert not bootstrap["is_first"].any()
    assert Trajectories(DictTensor({}, 4), of_steps().select("env/obs")).bootstrap.is_empty  # nobody knows


def test_rows_are_chosen_where_nothing_says_what_follows_them() -> None:
    single = Trajectories(DictTensor({}, 4), of_steps()).split_steps()
    assert single.rows(torch.tensor([7, 0, 0])).steps["env/obs"].flatten().tolist() == [22.0, 0.0, 0.0]
    assert single.rows(slice(0, 2)).steps["env/obs"].flatten().tolist() == [0.0, 1.0]


def test_parts_that_all_terminate_still_tell_that_nothing_follows_them() -> None:
    over = Trajectories(DictTensor({}, 4), of_steps()).rows(torch.tensor([1]))
    both = Trajectories.cat([over, over])
    assert both.bootstrap["row"].tolist() == []
    assert both.rows(torch.tensor([1, 0])).bootstrap["row"].tolist() == []


def test_a_part_without_a_bootstrap_leaves_the_whole_without_one() -> None:
    whole = Trajectories(DictTensor({}, 4), of_steps())
    minibatch = Trajectories(whole.info, whole.steps, DictTensor.empty(0))
    assert "row" not in Trajectories.cat([whole, minibatch]).bootstrap  # half of it would be taken for all


def test_a_field_gives_way_to_another_once_it_is_excluded() -> None:
    whole = Trajectories(DictTensor({}, 4), of_steps())
    other = whole.steps["next/reward"] + 1
    message = r"with_steps: 'next/reward' is there already; exclude\('next/reward'\) first"
    with pytest.raises(SpecError, match=message):
        whole.with_steps(**{"next/reward": other})
    relabelled = whole.exclude("next/reward").with_steps(**{"next/reward": other})
    assert torch.equal(relabelled.steps["next/reward"], other)
    assert sorted(relabelled.steps) == sorted(whole.steps)
    assert relabelled.bootstrap["prev_reward"].tolist() == [-2.0, -20.0, -22.0]  # what the agent was paid
    assert list(whole.exclude("next", "agent/action").steps) == ["env/obs"]
    with pytest.raises(MissingFieldError, match="Did you mean 'next/reward'"):
        whole.exclude("next/rewad")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (torch.zeros(4), r"field 'advantage': expected the shape \[2, 3, \.\.\.\], got \[4\]"),
        (torch.zeros(3, 2), r"field 'advantage': expected the shape \[2, 3, \.\.\.\], got \[3, 2\]"),
        ([0.0, 1.0], r"field 'advantage': expected a tensor, got list"),
        (torch.zeros(2, 3, device="meta"), r"field 'advantage' is on meta, but the lengths on cpu"),
    ],
)
def test_a_field_that_is_not_of_these_steps_is_refused_where_it_is_added(field: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        made([3, 2], 3).with_steps(advantage=field)

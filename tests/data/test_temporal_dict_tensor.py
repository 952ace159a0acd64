"""TemporalDictTensor against a reference of plain lists, one a sequence."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlx.data import DictTensor, Lazy, MissingFieldError, TemporalDictTensor
from rlx.errors import SpecError
from tests.data.strategies import (
    WIDE_UNSIGNED,
    assert_same,
    assert_same_steps,
    reference,
    row_choices,
    steps_reference,
    temporal_dict_tensors,
    temporal_dict_tensors_alike,
    to_list,
)


def cut(sequence: dict[str, list[Any]], start: int, stop: int) -> dict[str, list[Any]]:
    return {key: values[start:stop] for key, values in sequence.items()}


@given(st.data())
def test_rows_are_those_that_a_list_would_give(data: st.DataObject) -> None:
    steps = data.draw(temporal_dict_tensors())
    rows, chosen = data.draw(row_choices(steps.batch_size))
    lengths = steps.lengths.tolist()
    taken = steps[rows]
    everything = steps_reference(steps)
    assert_same_steps(taken, [everything[row] for row in chosen], steps)
    assert taken.lengths.tolist() == [lengths[row] for row in chosen]
    assert taken.max_length == steps.max_length
    with pytest.raises(SpecError, match="is not among"):
        steps[[steps.batch_size]]


@given(temporal_dict_tensors())
def test_mask_is_true_up_to_each_length(steps: TemporalDictTensor) -> None:
    expected = [[t < length for t in range(steps.max_length)] for length in steps.lengths.tolist()]
    assert steps.mask().dtype is torch.bool
    assert steps.mask().shape == steps.leading_shape
    assert steps.mask().tolist() == expected
    assert steps.num_steps == sum(sum(row) for row in expected)
    assert steps.is_full() == all(all(row) for row in expected)


@given(temporal_dict_tensors())
def test_shorten_drops_only_padding(steps: TemporalDictTensor) -> None:
    short = steps.shorten()
    assert short.max_length == max(steps.lengths.tolist(), default=0)
    assert_same_steps(short, steps_reference(steps), steps)


@given(temporal_dict_tensors(), st.integers(0, 7), st.none() | st.integers(0, 7))
def test_slice_time_cuts_each_sequence(steps: TemporalDictTensor, start: int, stop: int | None) -> None:
    size = steps.max_length
    taken = steps.slice_time(start, stop)
    end = size if stop is None else stop
    assert taken.max_length == len(range(size)[start:end])
    assert_same_steps(taken, [cut(sequence, start, end) for sequence in steps_reference(steps)], steps)
    length_only = [len(range(length)[start:end]) for length in steps.lengths.tolist()]
    assert taken.lengths.tolist() == length_only


@given(st.data())
def test_at_gives_one_step_of_each_row(data: st.DataObject) -> None:
    steps = data.draw(temporal_dict_tensors().filter(lambda steps: steps.max_length > 0))
    size, last = steps.batch_size, steps.max_length - 1
    places = data.draw(st.integers(0, last) | st.lists(st.integers(0, last), min_size=size, max_size=size))
    each = [places] * size if isinstance(places, int) else places
    at = steps.at(places if isinstance(places, int) else torch.tensor(places, dtype=torch.int64))
    expected = {key: [to_list(value)[row][t] for row, t in enumerate(each)] for key, value in steps.items()}
    assert_same(at, expected, steps[:0].flatten(), size)


@given(st.data())
def test_alive_at_gives_the_rows_that_still_run(data: st.DataObject) -> None:
    steps = data.draw(temporal_dict_tensors().filter(lambda steps: steps.max_length > 0))
    t = data.draw(st.integers(0, steps.max_length - 1))
    running, rows = steps.alive_at(t)
    alive = [row for row, length in enumerate(steps.lengths.tolist()) if length > t]
    assert rows.tolist() == alive
    everything = steps_reference(steps)
    expected = {key: [everything[row][key][t] for row in alive] for key in steps}
    assert_same(running, expected, steps[:0].flatten(), len(alive))


@given(temporal_dict_tensors())
def test_flatten_keeps_the_valid_steps_in_order(steps: TemporalDictTensor) -> None:
    flat = steps.flatten()
    everything = steps_reference(steps)
    expected = {key: [step for sequence in everything for step in sequence[key]] for key in steps}
    assert list(flat.keys()) == list(expected)
    assert flat.batch_size == steps.num_steps
    assert reference(flat) == expected
    for key, value in flat.items():
        assert value.dtype is steps[key].dtype
        assert value.shape[1:] == steps[key].shape[2:]


@given(st.data())
def test_episodes_are_cut_behind_each_end(data: st.DataObject) -> None:
    steps = data.draw(temporal_dict_tensors())
    size, time = steps.leading_shape
    ends = data.draw(st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=size, max_size=size))
    everything, expected, places = steps_reference(steps), [], []
    for row, length in enumerate(steps.lengths.tolist()):
        start = 0
        for t in range(length):
            if ends[row][t] or t == length - 1:
                expected.append(cut(everything[row], start, t + 1))
                places.append((row, start, t + 1 - start))
                start = t + 1
    flags = torch.tensor(ends, dtype=torch.bool).reshape(size, time)
    episodes = steps.episodes(flags)
    assert_same_steps(episodes, expected, steps)
    rows, starts, lengths = steps.episode_places(flags)
    assert list(zip(rows.tolist(), starts.tolist(), lengths.tolist(), strict=True)) == places
    assert episodes.lengths.tolist() == [length for _, _, length in places]
    assert episodes.max_length == max((length for _, _, length in places), default=0)
    for value in episodes.values():
        assert not value[~episodes.mask()].any()


def test_episodes_end_where_either_flag_says_so() -> None:
    flags = {
        "next/terminated": torch.tensor([[False, True, False, False]]),
        "next/truncated": torch.tensor([[False, False, True, True]]),
    }
    steps = TemporalDictTensor({**flags, "x": torch.arange(4).reshape(1, 4)}, [3])
    assert steps.episodes()["x"].tolist() == [[0, 1], [2, 0]]
    assert steps.group("next").episodes().lengths.tolist() == [2, 1]
    with pytest.raises(MissingFieldError, match="'terminated'"):
        steps.select("x").episodes()
    with pytest.raises(SpecError, match=r"expected ends \[1, 4\] bool"):
        steps.episodes(torch.zeros(1, 3, dtype=torch.bool))


@given(temporal_dict_tensors_alike())
def test_cat_joins_sequences_of_any_length(parts: list[TemporalDictTensor]) -> None:
    joined = TemporalDictTensor.cat(parts)
    assert joined.max_length == max(part.max_length for part in parts)
    assert_same_steps(joined, [sequence for part in parts for sequence in steps_reference(part)], parts[0])


def test_cat_refuses_what_does_not_fit() -> None:
    steps = TemporalDictTensor({"a": torch.zeros(1, 2)}, [2])
    with pytest.raises(SpecError, match="one part at least"):
        TemporalDictTensor.cat([])
    with pytest.raises(SpecError, match=r"lacks \['a'\]"):
        TemporalDictTensor.cat([steps, steps.exclude("a")])
    with pytest.raises(SpecError, match="'a'"):
        TemporalDictTensor.cat([steps, TemporalDictTensor({"a": torch.zeros(1, 2, 1)}, [2])])


@given(temporal_dict_tensors())
def test_unbind_gives_one_sequence_each(steps: TemporalDictTensor) -> None:
    pieces = steps.unbind()
    assert [steps_reference(piece) for piece in pieces] == [[sequence] for sequence in steps_reference(steps)]


@given(temporal_dict_tensors(), st.integers(1, 5))
def test_split_gives_the_sequences_in_parts(steps: TemporalDictTensor, size: int) -> None:
    parts = steps.split(size)
    assert all(part.batch_size == size and part.max_length == steps.max_length for part in parts[:-1])
    joined = [sequence for part in parts for sequence in steps_reference(part)]
    assert joined == steps_reference(steps)


@given(temporal_dict_tensors(), st.sampled_from(["env", "agent", "nobody"]))
def test_fields_are_chosen_with_their_lengths(steps: TemporalDictTensor, name: str) -> None:
    everything = steps_reference(steps)
    members = [key for key in steps if key.startswith(f"{name}/")]
    group = steps.group(name)
    assert list(group.keys()) == [key.removeprefix(f"{name}/") for key in members]
    chosen = [{key: sequence[key] for key in members} for sequence in everything]
    assert_same_steps(group.add_prefix(name), chosen, steps)
    assert_same_steps(steps.select(*members), chosen, steps)
    rest = steps.exclude(*members)
    assert list((steps.select(*members) | rest).keys()) == [*members, *rest.keys()]
    for part in (group, rest, steps.select()):
        assert part.leading_shape == steps.leading_shape
        assert part.lengths.tolist() == steps.lengths.tolist()


def test_or_refuses_other_lengths_and_shapes() -> None:
    a = TemporalDictTensor({"a": torch.zeros(2, 3)}, [3, 1])
    with pytest.raises(SpecError, match=r"lengths differ: \[3, 1\] and \[3, 2\]"):
        a | TemporalDictTensor({"b": torch.zeros(2, 3)}, [3, 2])
    with pytest.raises(SpecError, match=r"\(2, 3\).*\(2, 4\)"):
        a | TemporalDictTensor({"b": torch.zeros(2, 4)}, [3, 1])
    with pytest.raises(SpecError, match=r"both sides have the fields \['a'\]"):
        a | a


@given(temporal_dict_tensors())
def test_copies_are_equal_and_share_nothing(steps: TemporalDictTensor) -> None:
    lean = steps.exclude(*[key for key, value in steps.items() if value.dtype in WIDE_UNSIGNED])
    for twin, of in (
        (steps.clone(), steps),
        (copy.deepcopy(lean), lean),
        (pickle.loads(pickle.dumps(lean)), lean),
    ):
        assert_same_steps(twin, steps_reference(of), of)
        assert twin.leading_shape == of.leading_shape
        for ours, theirs in [*zip(twin.values(), of.values(), strict=True), (twin.lengths, of.lengths)]:
            assert not ours.numel() or ours.data_ptr() != theirs.data_ptr()


@given(temporal_dict_tensors())
def test_to_moves_lengths_and_fields(steps: TemporalDictTensor) -> None:
    assert_same_steps(steps.to("cpu"), steps_reference(steps), steps)
    assert steps.to("cpu").lengths is steps.lengths
    moved = steps.to("meta")
    assert {moved.device, *(value.device for value in moved.values())} == {torch.device("meta")}


@given(temporal_dict_tensors())
def test_numpy_there_and_back(steps: TemporalDictTensor) -> None:
    plain = steps.exclude(*[key for key, value in steps.items() if value.dtype is torch.bfloat16])
    again = TemporalDictTensor.from_numpy(plain.to_numpy(), plain.lengths.numpy())
    assert_same_steps(again, steps_reference(plain), plain)


@given(temporal_dict_tensors())
def test_specs_tell_shape_and_dtype_of_a_step(steps: TemporalDictTensor) -> None:
    for key, spec in steps.specs().items():
        assert spec.zeros(*steps.leading_shape).shape == steps[key].shape
        assert spec.dtype is steps[key].dtype


def test_detach_cuts_the_graph() -> None:
    steps = TemporalDictTensor({"a": torch.ones(1, 2, requires_grad=True) * 2}, [2])
    assert not steps.detach()["a"].requires_grad


def test_full_sequences_flatten_without_a_copy() -> None:
    value = torch.zeros(2, 3, 4)
    assert TemporalDictTensor({"a": value}, [3, 3]).flatten()["a"].data_ptr() == value.data_ptr()


def test_episodes_and_flatten_keep_the_graph() -> None:
    value = torch.ones(2, 3, requires_grad=True)
    steps = TemporalDictTensor({"a": value}, [3, 1])
    (steps.flatten()["a"].sum() + steps.episodes(torch.ones(2, 3, dtype=torch.bool))["a"].sum()).backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[2, 2, 2], [2, 0, 0]]


def test_an_empty_one_keeps_its_sizes() -> None:
    empty = TemporalDictTensor({}, [2, 0, 1], 4)
    assert empty.is_empty
    assert empty.leading_shape == (3, 4)
    assert empty.shorten().leading_shape == (3, 2)
    assert empty.slice_time(1).lengths.tolist() == [1, 0, 0]
    assert empty.flatten().batch_size == 3
    assert empty.at(0).batch_size == 3
    assert empty[1:].leading_shape == (2, 4)
    assert TemporalDictTensor({}, [2, 0]).max_length == 2
    assert TemporalDictTensor({}, []).leading_shape == (0, 0)


def test_repr_shows_sizes_and_fields() -> None:
    steps = TemporalDictTensor({"a": torch.zeros(2, 3, 4), "b": Lazy(lambda: torch.zeros(2, 3))}, [3, 3])
    assert repr(steps) == "TemporalDictTensor[2 x 3](a: float32[4], b: lazy)"


@pytest.mark.parametrize(
    ("fields", "lengths", "message"),
    [
        ({"a": torch.zeros(2, 3)}, [4, 0], r"expected 0 to 3, got \[4, 0\]"),
        ({"a": torch.zeros(2, 3)}, [-1, 0], r"expected 0 to 3, got \[-1, 0\]"),
        ({"a": torch.zeros(2, 3)}, [1], r"'a': expected the shape \[1, 3, ...\], got \[2, 3\]"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}, [1, 1], r"'b': expected the shape \[2, 3, ...\]"),
        ({"a": torch.zeros(2)}, [1, 1], r"'a': expected the shape \[2, 1, ...\], got \[2\]"),
        ({"a": torch.zeros(2, 3)}, torch.tensor([1.0, 1.0]), r"integers \[B\], got torch.float32"),
        ({"a": torch.zeros(2, 3)}, torch.tensor([[1, 1]]), r"integers \[B\], got torch.int64 \[1, 2\]"),
        ({"a": torch.zeros(1, 1, device="meta")}, torch.tensor([1]), "'a' is on meta, but the lengths on cpu"),
        ({1: torch.zeros(1, 1)}, [1], "must be a string"),
        ({"a": [[1]]}, [1], "expected a tensor, got list"),
    ],
)
def test_construction_refuses(fields: Any, lengths: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TemporalDictTensor(fields, lengths)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda steps: steps.slice_time(-1), "count from the start"),
        (lambda steps: steps.slice_time(0, -1), "count from the start"),
        (lambda steps: steps.at(3), "from 0 to 2, got 3"),
        (lambda steps: steps.at(-1), "from 0 to 2, got -1"),
        (lambda steps: steps.at(torch.tensor([0, 3])), r"from 0 to 2, got \[0, 3\]"),
        (lambda steps: steps.at(torch.tensor([0, -1])), r"from 0 to 2, got \[0, -1\]"),
        (lambda steps: steps.at(torch.tensor([0])), r"integer steps \[2\], got torch.int64 \[1\]"),
        (lambda steps: steps.at(torch.tensor([0.0, 1.0])), "integer steps"),
        (lambda steps: steps.alive_at(7), "from 0 to 2, got 7"),
    ],
)
def test_steps_that_are_not_there_are_refused(call: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        call(TemporalDictTensor({"a": torch.zeros(2, 3)}, [3, 3]))


def test_short_lengths_become_int64() -> None:
    lengths = torch.tensor([1, 2], dtype=torch.int16)
    assert TemporalDictTensor({"a": torch.zeros(2, 3)}, lengths).lengths.dtype is torch.int64


def test_rows_and_steps_come_apart_as_dict_tensors() -> None:
    steps = TemporalDictTensor({"a": torch.arange(6).reshape(2, 3)}, [3, 2])
    assert isinstance(steps.at(0), DictTensor)
    assert isinstance(steps.flatten(), DictTensor)

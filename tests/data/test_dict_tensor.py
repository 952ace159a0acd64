"""DictTensor against a reference of plain lists."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlx.data import DictTensor, Lazy, MissingFieldError
from rlx.errors import SpecError
from tests.data.strategies import (
    KEYS,
    WIDE_UNSIGNED,
    assert_same,
    counting,
    dict_tensors,
    dict_tensors_alike,
    reference,
    row_choices,
)


@given(st.data())
def test_rows_are_those_that_a_list_would_give(data: st.DataObject) -> None:
    dict_tensor = data.draw(dict_tensors())
    rows, chosen = data.draw(row_choices(dict_tensor.batch_size))
    taken = dict_tensor[rows]
    expected = {key: [values[row] for row in chosen] for key, values in reference(dict_tensor).items()}
    assert_same(taken, expected, dict_tensor, len(chosen))


@given(dict_tensors(), st.sampled_from([-1, 1]), st.sampled_from(["int", "list", "tensor"]))
def test_rows_that_are_not_there_are_refused(dict_tensor: DictTensor, side: int, kind: str) -> None:
    row = dict_tensor.batch_size if side == 1 else -dict_tensor.batch_size - 1
    rows = {"int": row, "list": [row], "tensor": torch.tensor([row])}[kind]
    with pytest.raises(SpecError, match=f"row {row} is not among {dict_tensor.batch_size} rows"):
        dict_tensor[rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (slice(None, None, -1), "negative step"),
        (torch.tensor([True, False]), r"mask \[4\], got \[2\]"),
        (torch.tensor([0.5]), "integers or booleans, got torch.float32"),
        (torch.tensor([[0]]), "one dimension"),
        (None, "NoneType"),
        (1.0, "float"),
    ],
)
def test_rows_of_a_wrong_kind_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DictTensor({"a": torch.zeros(4)})[rows]


def test_an_int_keeps_the_batch_dimension() -> None:
    data = DictTensor({"a": torch.arange(4)})
    assert [data[row]["a"].tolist() for row in (0, 3, -1, -4)] == [[0], [3], [3], [0]]


def test_rows_by_bytes_are_indices_not_a_mask() -> None:
    rows = torch.tensor([2, 0, 1, 1], dtype=torch.uint8)
    assert DictTensor({"a": torch.arange(4)})[rows]["a"].tolist() == [2, 0, 1, 1]


def test_a_slice_is_a_view_and_an_index_a_copy() -> None:
    value = torch.zeros(4, 2)
    dict_tensor = DictTensor({"a": value})
    assert dict_tensor[1:3]["a"].data_ptr() == value[1:].data_ptr()
    assert dict_tensor[torch.tensor([1, 2])]["a"].data_ptr() != value[1:].data_ptr()


def test_rows_keep_the_graph() -> None:
    value = torch.ones(3, requires_grad=True)
    DictTensor({"a": value})[torch.tensor([0, 0, -1])]["a"].sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [2, 0, 1]


@given(dict_tensors_alike(), st.randoms(use_true_random=False))
def test_cat_joins_rows_whatever_the_order_of_the_keys(parts: list[DictTensor], random: Any) -> None:
    expected = {key: [row for part in parts for row in reference(part)[key]] for key in parts[0]}
    shuffled = [parts[0]]
    for part in parts[1:]:
        keys = list(part.keys())
        random.shuffle(keys)
        shuffled.append(part.select(*keys))
    assert_same(DictTensor.cat(shuffled), expected, parts[0], sum(part.batch_size for part in parts))


def test_cat_refuses_what_does_not_fit() -> None:
    a = DictTensor({"x": torch.zeros(2, 3), "y": torch.zeros(2)})
    with pytest.raises(SpecError, match="one part at least"):
        DictTensor.cat([])
    with pytest.raises(SpecError, match=r"lacks \['y'\] and has \['z'\]"):
        DictTensor.cat([a, DictTensor({"x": torch.zeros(2, 3), "z": torch.zeros(2)})])
    with pytest.raises(SpecError, match=r"'x' with the shapes \[\[2, 3\], \[2, 4\]\]"):
        DictTensor.cat([a, DictTensor({"x": torch.zeros(2, 4), "y": torch.zeros(2)})])


@given(st.data())
def test_where_takes_each_row_from_one_side(data: st.DataObject) -> None:
    a, b, *_ = data.draw(dict_tensors_alike(same_size=True, least=2))
    size = a.batch_size
    mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    left, right = reference(a), reference(b)
    expected = {key: [left[key][row] if taken else right[key][row] for row, taken in enumerate(mask)] for key in a}
    merged = DictTensor.where(torch.tensor(mask, dtype=torch.bool), a, b.select(*reversed(list(b.keys()))))
    assert_same(merged, expected, a, size)


def test_where_refuses_what_does_not_fit() -> None:
    a = DictTensor({"x": torch.zeros(2)})
    yes = torch.ones(2, dtype=torch.bool)
    with pytest.raises(SpecError, match="batch sizes differ: 2 and 3"):
        DictTensor.where(yes, a, DictTensor({"x": torch.zeros(3)}))
    with pytest.raises(SpecError, match=r"bool mask \[2\], got torch.float32 \[2\]"):
        DictTensor.where(torch.ones(2), a, a)
    with pytest.raises(SpecError, match="the keys differ"):
        DictTensor.where(yes, a, DictTensor({"y": torch.zeros(2)}))
    with pytest.raises(SpecError, match=r"'x'.*int64"):
        DictTensor.where(yes, a, DictTensor({"x": torch.zeros(2, dtype=torch.int64)}))


@given(st.data())
def test_copy_rows_writes_these_rows_and_no_others(data: st.DataObject) -> None:
    target, source, *_ = data.draw(dict_tensors_alike(least=2))
    source_rows, given_rows = data.draw(row_choices(source.batch_size))
    rows = data.draw(st.permutations(range(target.batch_size)))[: len(given_rows)]
    if len(rows) < len(given_rows):
        with pytest.raises(SpecError, match="source rows for"):
            target.copy_rows_(source, source_rows, list(rows))
        return
    expected, given_values = reference(target), reference(source)
    for key, values in expected.items():
        for row, given_row in zip(rows, given_rows, strict=True):
            values[row] = given_values[key][given_row]
    more = source | DictTensor({"more": torch.zeros(source.batch_size)})
    assert target.copy_rows_(more, source_rows, list(rows)) is target
    assert_same(target, expected, source, target.batch_size)


def test_copy_rows_writes_into_the_very_tensors_even_from_itself() -> None:
    value = torch.arange(5)
    dict_tensor = DictTensor({"a": value})
    dict_tensor.copy_rows_(dict_tensor, slice(0, 3), slice(1, 4))
    assert value.tolist() == [0, 0, 1, 2, 4]


def test_copy_rows_refuses_before_it_writes() -> None:
    target = DictTensor({"a": torch.zeros(3), "b": torch.zeros(3, 2)})
    ones = DictTensor({"a": torch.ones(3), "b": torch.ones(3, 3)})
    with pytest.raises(SpecError, match="'b'"):
        target.copy_rows_(ones, [0], [0])
    with pytest.raises(MissingFieldError, match="'b'"):
        target.copy_rows_(ones.select("a"), [0], [0])
    with pytest.raises(SpecError, match="row 3 is not among 3 rows"):
        target.copy_rows_(target.clone(), [0], [3])
    assert not target["a"].any()


@given(dict_tensors())
def test_unbind_gives_one_row_pieces_that_cat_joins_again(dict_tensor: DictTensor) -> None:
    pieces = dict_tensor.unbind()
    assert len(pieces) == dict_tensor.batch_size
    for row, piece in enumerate(pieces):
        expected = {key: [values[row]] for key, values in reference(dict_tensor).items()}
        assert_same(piece, expected, dict_tensor, 1)
    if pieces:
        assert_same(DictTensor.cat(pieces), reference(dict_tensor), dict_tensor, dict_tensor.batch_size)


@given(dict_tensors(), st.integers(1, 5))
def test_split_gives_parts_that_share_the_memory_and_cat_joins_again(dict_tensor: DictTensor, size: int) -> None:
    parts = dict_tensor.split(size)
    assert all(part.batch_size == size for part in parts[:-1])
    assert sum(part.batch_size for part in parts) == dict_tensor.batch_size
    if parts:
        assert 0 < parts[-1].batch_size <= size
        assert_same(DictTensor.cat(parts), reference(dict_tensor), dict_tensor, dict_tensor.batch_size)
        for key, value in parts[0].items():
            assert value.untyped_storage().data_ptr() == dict_tensor[key].untyped_storage().data_ptr()


def test_split_takes_the_size_of_every_part() -> None:
    data = DictTensor({"a": torch.arange(4)})
    assert [part["a"].tolist() for part in data.split([1, 0, 3])] == [[0], [], [1, 2, 3]]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "split: expected a size of 1 or more, got 0"),
        ([1, 1], r"split: expected sizes of 3 rows in all, got \[1, 1\]"),
        ([4, -1], r"split: expected sizes of 3 rows in all, got \[4, -1\]"),
    ],
)
def test_split_refuses_sizes_that_do_not_fit(size: int | list[int], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        DictTensor({"a": torch.zeros(3)}).split(size)


@given(dict_tensors(), st.sets(st.sampled_from(KEYS)))
def test_select_and_exclude_part_the_fields(dict_tensor: DictTensor, names: set[str]) -> None:
    expected, size = reference(dict_tensor), dict_tensor.batch_size
    present = [key for key in reversed(list(expected)) if key in names]
    assert_same(dict_tensor.select(*present), {key: expected[key] for key in present}, dict_tensor, size)
    rest = {key: values for key, values in expected.items() if key not in names}
    assert_same(dict_tensor.exclude(*present), rest, dict_tensor, size)
    for missing in names - set(expected):
        with pytest.raises(MissingFieldError):
            dict_tensor.select(missing)
        with pytest.raises(MissingFieldError):
            dict_tensor.exclude(missing)


@given(dict_tensors(), st.sampled_from(["env", "env/", "env/obs", "agent", "nobody"]))
def test_group_drops_the_prefix_and_add_prefix_puts_it_back(dict_tensor: DictTensor, name: str) -> None:
    group = dict_tensor.group(name)
    prefix = name.rstrip("/") + "/"
    expected = {key: values for key, values in reference(dict_tensor).items() if key.startswith(prefix)}
    assert list(group.keys()) == [key[len(prefix) :] for key in expected]
    assert_same(group.add_prefix(name), expected, dict_tensor, dict_tensor.batch_size)


@given(dict_tensors(batch_size=3), dict_tensors(batch_size=3))
def test_or_joins_fields_and_refuses_a_key_in_both(a: DictTensor, b: DictTensor) -> None:
    both = sorted(set(a.keys()) & set(b.keys()))
    if both:
        with pytest.raises(SpecError, match="both sides have the fields"):
            a | b
        b = b.exclude(*both)
    joined = a | b
    assert list(joined.keys()) == [*a.keys(), *b.keys()]
    for side in (a, b):
        assert_same(joined.select(*side.keys()), reference(side), side, 3)


def test_or_refuses_other_batch_sizes_even_of_empty_ones() -> None:
    with pytest.raises(SpecError, match=r"\(2,\).*\(3,\)"):
        DictTensor({"a": torch.zeros(2)}) | DictTensor.empty(3)


@given(dict_tensors())
def test_copies_are_equal_and_share_nothing(dict_tensor: DictTensor) -> None:
    # Wide unsigned integers are left out: torch 2.13 pickles them so that it cannot read them back.
    wide = [key for key, value in dict_tensor.items() if value.dtype in WIDE_UNSIGNED]
    lean = dict_tensor.exclude(*wide)
    for twin, of in (
        (dict_tensor.clone(), dict_tensor),
        (copy.deepcopy(lean), lean),
        (pickle.loads(pickle.dumps(lean)), lean),
    ):
        assert_same(twin, reference(of), of, of.batch_size)
        for key, value in twin.items():
            assert not value.numel() or value.data_ptr() != of[key].data_ptr()


@given(dict_tensors())
def test_to_moves_and_does_not_copy_what_is_there(dict_tensor: DictTensor) -> None:
    stayed = dict_tensor.to("cpu")
    assert_same(stayed, reference(dict_tensor), dict_tensor, dict_tensor.batch_size)
    for key, value in stayed.items():
        assert value is dict_tensor[key]
    moved = dict_tensor.to("meta")
    assert moved.device == (torch.device("meta") if len(list(moved.keys())) else None)


@given(dict_tensors())
def test_numpy_there_and_back(dict_tensor: DictTensor) -> None:
    plain = dict_tensor.exclude(*[key for key, value in dict_tensor.items() if value.dtype is torch.bfloat16])
    arrays = plain.to_numpy()
    assert {key: array.tolist() for key, array in arrays.items()} == reference(plain)
    assert_same(DictTensor.from_numpy(arrays, plain.batch_size), reference(plain), plain, plain.batch_size)
    for key, array in arrays.items():
        assert not array.size or array.__array_interface__["data"][0] == plain[key].data_ptr()


def test_numpy_takes_arrays_that_torch_alone_would_not() -> None:
    backwards, fixed = np.arange(3)[::-1], np.arange(3)
    fixed.flags.writeable = False
    taken = DictTensor.from_numpy({"backwards": backwards, "fixed": fixed})
    assert taken["backwards"].tolist() == [2, 1, 0]
    taken["fixed"][0] = 9
    assert fixed.tolist() == [0, 1, 2]


def test_numpy_refuses_what_has_no_counterpart() -> None:
    with pytest.raises(SpecError, match=r"'a': torch.bfloat16 does not exist in numpy"):
        DictTensor({"a": torch.zeros(1, dtype=torch.bfloat16)}).to_numpy()
    with pytest.raises(SpecError, match=r"'a': numpy dtype object does not exist in torch"):
        DictTensor.from_numpy({"a": np.array([None])})


@given(dict_tensors())
def test_specs_tell_shape_and_dtype_of_a_row(dict_tensor: DictTensor) -> None:
    specs = dict_tensor.specs()
    assert list(specs) == list(dict_tensor.keys())
    for key, spec in specs.items():
        assert spec.zeros(dict_tensor.batch_size).shape == dict_tensor[key].shape
        assert spec.dtype is dict_tensor[key].dtype


def test_detach_cuts_the_graph() -> None:
    dict_tensor = DictTensor({"a": torch.ones(2, requires_grad=True) * 2})
    assert dict_tensor["a"].requires_grad
    assert not dict_tensor.detach()["a"].requires_grad
    assert dict_tensor.detach()["a"].data_ptr() == dict_tensor["a"].data_ptr()


def test_it_reads_as_a_dictionary() -> None:
    fields = {"a": torch.zeros(2), "b/c": torch.ones(2, 1)}
    dict_tensor = DictTensor(fields)
    assert "a" in dict_tensor
    assert "b" not in dict_tensor
    assert list(dict_tensor) == ["a", "b/c"]
    assert dict(dict_tensor.items()) == {**dict_tensor} == dict_tensor.to_dict() == fields
    assert list(dict_tensor.values()) == [fields["a"], fields["b/c"]]
    assert dict_tensor.device == torch.device("cpu")
    assert repr(dict_tensor) == "DictTensor[2](a: float32[], b/c: float32[1])"


def test_an_empty_one_keeps_its_batch_size() -> None:
    empty = DictTensor({}, 4)
    assert empty.is_empty
    assert empty.device is None
    assert empty[1:3].batch_size == 2
    assert empty[[0, 0, 1, 2, 3]].batch_size == 5
    assert empty[torch.tensor([True, False, False, True])].batch_size == 2
    assert len(empty.unbind()) == 4
    assert DictTensor.cat([empty, empty]).batch_size == 8
    assert DictTensor.where(torch.ones(4, dtype=torch.bool), empty, empty).batch_size == 4
    assert DictTensor({"a": torch.zeros(4)}).exclude("a").batch_size == 4
    assert (empty | DictTensor({"a": torch.zeros(4)})).batch_size == 4
    for twin in (empty.clone(), empty.to("cpu"), empty.group("a"), copy.copy(empty)):
        assert twin.batch_size == 4
    with pytest.raises(SpecError, match="row 4 is not among 4 rows"):
        empty[[4]]


def test_a_missing_key_names_the_nearest() -> None:
    dict_tensor = DictTensor({"env/obs": torch.zeros(1), "agent/action": torch.zeros(1)})
    with pytest.raises(MissingFieldError, match=r"no field 'env/osb' .*Did you mean 'env/obs'\?"):
        dict_tensor["env/osb"]
    with pytest.raises(KeyError, match=r"It is a group: group\('env'\) has \['obs'\]"):
        dict_tensor["env"]


@pytest.mark.parametrize(
    ("fields", "batch_size", "message"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(3, 1)}, None, r"'b': expected the shape \[2, ...\], got \[3, 1\]"),
        ({"a": torch.zeros(2)}, 3, r"'a': expected the shape \[3, ...\], got \[2\]"),
        ({"a": torch.zeros(0), "b": torch.zeros(())}, None, r"'b': expected the shape \[0, ...\], got \[\]"),
        ({"a": torch.zeros(())}, None, "give batch_size"),
        ({"a": [1, 2]}, 2, "'a': expected a tensor, got list"),
        ({"a": torch.zeros(2), "b": np.zeros(2)}, None, "'b': expected a tensor, got ndarray"),
        ({"a": torch.zeros(2), 3: torch.zeros(2)}, None, r"must be a string, got 3 \(int\)"),
        ({}, None, "give batch_size"),
        ({}, -1, "batch_size"),
    ],
)
def test_construction_refuses(fields: Any, batch_size: int | None, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DictTensor(fields, batch_size)


def test_construction_refuses_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlx.data.dict_tensor._ONE_DEVICE", False)
    with pytest.raises(SpecError, match="'b' is on meta, but field 'a' on cpu"):
        DictTensor({"a": torch.zeros(2), "b": torch.zeros(2, device="meta")})


def test_construction_takes_parameters_and_copies_the_dict() -> None:
    fields: dict[str, Any] = {"a": torch.nn.Parameter(torch.zeros(2)), "b": Lazy(lambda: torch.zeros(2))}
    dict_tensor = DictTensor(fields)
    fields["c"] = torch.zeros(7)
    assert list(dict_tensor) == ["a", "b"]
    assert dict_tensor.batch_size == 2


def test_trusted_keeps_the_very_dict() -> None:
    fields = {"a": counting((2,), torch.int64)}
    assert DictTensor.trusted(fields, 2)["a"] is fields["a"]


def test_no_rows_of_numbers_do_not_join_rows_of_vectors() -> None:
    with pytest.raises(SpecError, match=r"'a' with the shapes \[\[0\], \[3, 4\]\]: they differ in a row"):
        DictTensor.cat([DictTensor({"a": torch.zeros(0)}), DictTensor({"a": torch.zeros(3, 4)})])
    assert DictTensor.cat([DictTensor({"a": torch.zeros(0)}), DictTensor({"a": torch.zeros(3)})])["a"].shape == (3,)


def test_rows_may_be_any_whole_number_and_nothing_ragged() -> None:
    fields = DictTensor({"a": torch.arange(3)})
    assert fields[np.array(1)]["a"].tolist() == [1]
    with pytest.raises(SpecError, match="expected indices or a mask"):
        fields[[[0, 1], [2]]]  # pyright: ignore[reportArgumentType, reportCallIssue]

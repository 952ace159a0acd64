"""DictTensor and TemporalDictTensor as torch pytrees."""

import torch
from hypothesis import given
from torch.utils import _pytree as pytree

from rlx.data import DictTensor, TemporalDictTensor
from tests.data.strategies import (
    assert_same,
    assert_same_steps,
    dict_tensors,
    reference,
    steps_reference,
    temporal_dict_tensors,
)


@given(dict_tensors())
def test_a_dict_tensor_comes_back_from_its_leaves(data: DictTensor) -> None:
    leaves, structure = pytree.tree_flatten(data)
    assert all(leaf is data[key] for leaf, key in zip(leaves, data, strict=True))
    assert_same(pytree.tree_unflatten(leaves, structure), reference(data), data, data.batch_size)


@given(temporal_dict_tensors())
def test_a_temporal_dict_tensor_comes_back_from_its_leaves(steps: TemporalDictTensor) -> None:
    leaves, structure = pytree.tree_flatten(steps)
    assert leaves[-1] is steps.lengths
    again = pytree.tree_unflatten(leaves, structure)
    assert_same_steps(again, steps_reference(steps), steps)
    assert again.leading_shape == steps.leading_shape


def test_tree_map_changes_batch_size_with_the_leaves() -> None:
    data = DictTensor({"a": torch.arange(4), "b": torch.zeros(4, 2)})
    halved = pytree.tree_map(lambda leaf: leaf[:2], data)
    assert halved.batch_size == 2
    summed = pytree.tree_map(lambda left, right: left[:2] + right, data, halved)
    assert summed["a"].tolist() == [0, 2]


def test_tree_map_passes_into_nested_structures() -> None:
    steps = TemporalDictTensor({"a": torch.ones(2, 3)}, [3, 1])
    mapped = pytree.tree_map(lambda leaf: leaf * 2, {"x": [steps]})["x"][0]
    assert mapped["a"].sum() == 12
    assert mapped.lengths.tolist() == [6, 2]


def test_leaves_that_are_no_tensors_keep_the_size() -> None:
    shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), DictTensor({"a": torch.zeros(4, 2)}))
    assert shapes["a"] == (4, 2)
    assert shapes.batch_size == 4


def test_paths_name_the_fields() -> None:
    paths, _ = pytree.tree_flatten_with_path({"s": TemporalDictTensor({"a/b": torch.zeros(1, 1)}, [1])})
    assert [pytree.keystr(path) for path, _ in paths] == ["['s']['a/b']", "['s'].lengths"]


def test_vmap_over_rows_and_over_stacked_copies() -> None:
    data = DictTensor({"x": torch.arange(6.0).reshape(3, 2), "y": torch.ones(3)})

    def each(row: DictTensor) -> DictTensor:
        return DictTensor.trusted({"sum": row["x"].sum() + row["y"]}, 1)

    out = torch.vmap(each)(data)
    assert out.batch_size == 3
    assert out["sum"].tolist() == [2, 6, 10]

    stacked = pytree.tree_map(lambda leaf: torch.stack([leaf, leaf + 1]), data)
    rows = torch.vmap(lambda part: part[1:] | DictTensor({"z": part[1:]["y"] * 2}))(stacked)
    assert rows["z"].tolist() == [[2, 2], [4, 4]]


def test_vmap_sees_sequences() -> None:
    steps = TemporalDictTensor({"a": torch.ones(2, 3)}, [3, 1])
    stacked = pytree.tree_map(lambda leaf: torch.stack([leaf, leaf]), steps)
    masked = torch.vmap(lambda part: (part["a"] * part.mask()).sum(1))(stacked)
    assert masked.tolist() == [[3, 1], [3, 1]]

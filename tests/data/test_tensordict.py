"""Conversion to tensordict and back."""

import pytest
import torch
from hypothesis import assume, given

from rlx.data import DictTensor, TemporalDictTensor
from rlx.errors import SpecError
from tests.data.strategies import (
    assert_same_steps,
    dict_tensors,
    reference,
    steps_reference,
    temporal_dict_tensors,
)

tensordict = pytest.importorskip("tensordict")


def is_nestable(keys: list[str]) -> bool:
    return not any(other.startswith(f"{key}/") for key in keys for other in keys)


@given(dict_tensors())
def test_a_dict_tensor_there_and_back(data: DictTensor) -> None:
    if not is_nestable(list(data)):
        with pytest.raises(SpecError, match="a field and a group"):
            data.to_tensordict()
        assume(False)
    nested = data.to_tensordict()
    assert tuple(nested.batch_size) == (data.batch_size,)
    for key, value in data.items():
        assert nested[tuple(key.split("/"))] is value
    again = DictTensor.from_tensordict(nested)
    assert again.batch_size == data.batch_size
    assert reference(again) == reference(data)


@given(temporal_dict_tensors())
def test_sequences_there_and_back(steps: TemporalDictTensor) -> None:
    assume(is_nestable(list(steps)))
    nested = steps.to_tensordict()
    assert tuple(nested.batch_size) == steps.leading_shape
    assert nested["mask"].tolist() == steps.mask().tolist()
    again = TemporalDictTensor.from_tensordict(nested)
    assert_same_steps(again.select(*steps), steps_reference(steps), steps)
    assert again.leading_shape == steps.leading_shape


def test_without_a_mask_all_steps_count() -> None:
    nested = tensordict.TensorDict({"a": {"b": torch.zeros(2, 3)}}, batch_size=[2, 3])
    steps = TemporalDictTensor.from_tensordict(nested)
    assert list(steps) == ["a/b"]
    assert steps.is_full()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SpecError, match="a batch dimension"):
        DictTensor.from_tensordict(tensordict.TensorDict({"a": torch.zeros(2)}, batch_size=[]))
    with pytest.raises(SpecError, match=r"\[B, T\], got \[2\]"):
        TemporalDictTensor.from_tensordict(tensordict.TensorDict({"a": torch.zeros(2)}, batch_size=[2]))
    hole = tensordict.TensorDict({"mask": torch.tensor([[True, False, True]])}, batch_size=[1, 3])
    with pytest.raises(SpecError, match="has a hole"):
        TemporalDictTensor.from_tensordict(hole)
    with pytest.raises(SpecError, match="a field is called 'mask'"):
        TemporalDictTensor({"mask": torch.zeros(1, 1)}, [1]).to_tensordict()

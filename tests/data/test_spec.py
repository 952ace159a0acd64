"""Specs as data."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlx.data import EnvSpecs, Spec
from rlx.errors import SpecError
from tests.data.strategies import DTYPES


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    bounds = st.lists(st.floats(allow_nan=False, width=32), max_size=3).map(tuple)
    return Spec(
        shape=tuple(draw(st.lists(st.integers(0, 4), max_size=3))),
        dtype=draw(st.sampled_from(DTYPES)),
        kind=draw(st.sampled_from(["continuous", "discrete", "multi_discrete", "multi_binary"])),
        nvec=tuple(draw(st.lists(st.integers(1, 9), max_size=3))),
        low=draw(bounds),
        high=draw(bounds),
        frame_stack_axis=draw(st.none() | st.integers(0, 2)),
    )


@given(specs(), specs())
def test_specs_survive_json(observation: Spec, action: Spec) -> None:
    both = EnvSpecs({"obs": observation}, {"action": action})
    assert EnvSpecs.from_dict(json.loads(json.dumps(both.to_dict()))) == both


@given(specs(), st.integers(0, 3))
def test_zeros_have_the_shape_and_the_size_that_the_spec_tells(spec: Spec, batch_size: int) -> None:
    zeros = spec.zeros(batch_size)
    assert zeros.shape == (batch_size, *spec.shape)
    assert zeros.dtype is spec.dtype
    assert zeros.numel() == batch_size * spec.numel
    assert zeros.numel() * zeros.element_size() == batch_size * spec.num_bytes


def test_a_dtype_that_torch_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="'float12' is no torch dtype"):
        Spec.from_dict(Spec((), torch.float32).to_dict() | {"dtype": "float12"})

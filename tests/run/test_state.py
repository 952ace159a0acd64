"""Nested state through JSON and tensors, to the bit."""

import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.errors import CheckpointError
from rlx.run.state import decode, encode

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
]


def there_and_back(value):
    tensors = {}
    data = json.loads(json.dumps(encode(value, tensors), allow_nan=False))
    return decode(data, tensors)


def same(left, right):
    """Equal in structure, types and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.reshape(-1).view(torch.uint8).equal(right.contiguous().reshape(-1).view(torch.uint8))
        )
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
def test_tensors_of_every_dtype_and_shape_come_back_to_the_bit(dtype, shape):
    count = math.prod(shape) * dtype.itemsize
    high = 2 if dtype == torch.bool else 256  # every bit pattern, NaNs with payload included
    tensor = torch.randint(0, high, (count,), dtype=torch.uint8).view(dtype).reshape(shape)
    assert same(there_and_back({"x": tensor})["x"], tensor)


def test_views_transposes_and_shared_memory_come_back_with_their_values():
    base = torch.arange(12.0).reshape(3, 4)
    state = {"base": base, "row": base[1], "column": base[:, 2], "turned": base.T, "spread": base[:1].expand(3, 4)}
    state["conjugate"] = torch.tensor([1 + 2j]).conj()
    back = there_and_back(state)
    assert all(back[key].equal(value) for key, value in state.items())
    assert all(value.is_contiguous() for value in back.values())


def test_a_tensor_at_two_places_is_kept_once():
    weight = torch.nn.Parameter(torch.ones(3))
    tensors = {}
    encode({"actor": weight, "critic": weight, "other": torch.ones(3)}, tensors)
    assert set(tensors) == {"actor", "other"}
    back = there_and_back({"actor": weight, "critic": weight})
    assert back["actor"] is back["critic"]
    assert not back["actor"].requires_grad


def test_what_happens_after_encoding_does_not_matter():
    tensor, array = torch.ones(3), np.ones(3)
    tensors = {}
    data = encode({"tensor": tensor, "array": array}, tensors)
    tensor.zero_()
    array[:] = 0
    back = decode(data, tensors)
    assert back["tensor"].tolist() == back["array"].tolist() == [1, 1, 1]


def test_paths_that_would_be_one_name_stay_apart():
    state = {"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1), "__metadata__": torch.full((1,), 2.0), "": torch.ones(2)}
    state["list"] = [torch.ones(1) * 3, {"0": torch.ones(1) * 4}]
    assert same(there_and_back(state), state)


def test_generators_of_python_numpy_and_torch_continue_where_they_were():
    legacy = np.random.RandomState(1)
    generators = {
        "numpy": np.random.default_rng(3),
        "sfc": np.random.Generator(np.random.SFC64(5)),
    }
    torch_generator = torch.Generator().manual_seed(7)
    python = random.Random(9)
    state = {
        "python": python.getstate(),
        "legacy": legacy.get_state(),
        "torch": torch_generator.get_state(),
        **{name: generator.bit_generator.state for name, generator in generators.items()},
    }
    back = there_and_back(state)
    assert same(back, state)
    expected = python.random(), legacy.rand(), torch.rand(1, generator=torch_generator).item()
    python.setstate(back["python"])
    legacy.set_state(back["legacy"])
    torch_generator.set_state(back["torch"])
    assert (python.random(), legacy.rand(), torch.rand(1, generator=torch_generator).item()) == expected
    for name, generator in generators.items():
        following = generator.random()
        generator.bit_generator.state = back[name]
        assert generator.random() == following


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD])
def test_an_optimizer_continues_as_if_it_had_never_stopped(optimizer):
    def build():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        return net, optimizer(net.parameters(), lr=0.1)

    def step(net, optim):
        optim.zero_grad()
        net(torch.arange(3.0)).square().sum().backward()
        optim.step()

    net, optim = build()
    step(net, optim)
    saved = there_and_back({"net": net.state_dict(), "optim": optim.state_dict()})
    step(net, optim)
    other, other_optim = build()
    other.load_state_dict(saved["net"])
    other_optim.load_state_dict(saved["optim"])
    step(other, other_optim)
    assert other.weight.equal(net.weight)
    assert list(saved["optim"]["state"]) == list(optim.state_dict()["state"])  # the keys are integers still


scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**2000) | st.floats() | st.text() | st.binary()
)
arrays = st.sampled_from([np.float32, np.int16, np.bool_, np.complex128]).map(lambda dtype: np.ones((2, 1), dtype))
leaves = scalars | arrays | st.sampled_from([np.float64(0.1), np.int8(-3), np.bool_(True), torch.arange(3)])
keys = st.text() | st.integers() | st.booleans() | st.tuples(st.integers(), st.text()) | st.just("$tensor") | st.none()
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None)
@given(nested)
def test_any_nested_state_comes_back(state):
    assert same(there_and_back(state), state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"'optimizer/0/hook' cannot be kept in a checkpoint: got a builtins\.object"),
        (lambda: 0, "got a builtins.function"),
        ({1, 2}, "got a builtins.set"),
        (np.array(["text"]), "got a NumPy array of dtype <U4"),
        (np.array([None]), "got a NumPy array of dtype object"),
        (torch.ones(2, 2).to_sparse(), "got a tensor of layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), "on meta"),
    ],
    ids=["object", "function", "set", "text", "objects", "sparse", "meta"],
)
def test_what_cannot_be_kept_is_named_with_its_path(value, message):
    with pytest.raises(CheckpointError, match=message):
        encode({"optimizer": [{"hook": value}]}, {})


def test_a_configuration_holds_no_tensors():
    with pytest.raises(
        CheckpointError, match="'config/x' cannot be kept in a checkpoint: got a tensor, expected plain"
    ):
        encode({"x": torch.ones(1)}, path="config")


@pytest.mark.parametrize(
    "data",
    [{"$tensor": "missing"}, {"$pickle": "x"}, {"$dict": [[[1], 2]]}],
    ids=str,
)
def test_data_that_encode_never_wrote_is_refused(data):
    with pytest.raises(CheckpointError):
        decode({"x": data}, {})


def test_arrays_of_the_other_byte_order_keep_their_values():
    assert there_and_back(np.arange(3, dtype=">f8")).tolist() == [0, 1, 2]

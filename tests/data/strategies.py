"""Random DictTensors and TemporalDictTensors, and the plain-Python reference that operations are compared with.

The reference of a DictTensor is a dict of lists, a (nested) list of numbers a row; that of a TemporalDictTensor is a
list of such dicts, one a sequence, which hold the valid steps only.
"""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlx.data import DictTensor, Lazy, TemporalDictTensor

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]
WIDE_UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
KEYS = ["obs", "env/obs", "env/obs/camera", "env/is_first", "agent/action", "agent/h", "next/reward", "environment"]
INNER_SHAPES = [(), (1,), (3,), (2, 2), (0,), (2, 0, 1)]

Row = Any
Reference = dict[str, list[Row]]
Steps = list[Reference]


def counting(shape: tuple[int, ...], dtype: torch.dtype, start: int = 1) -> Tensor:
    """Return a tensor whose every place holds a number of its own, as far as the dtype has so many."""
    numbers = torch.arange(start, start + torch.Size(shape).numel()).reshape(shape)
    return (numbers % 3 == 1) if dtype is torch.bool else (numbers % 120).to(dtype)


def to_list(tensor: Tensor) -> list[Row]:
    """Return the rows as nested lists of numbers."""
    return tensor.tolist()


def reference(data: DictTensor) -> Reference:
    return {key: to_list(value) for key, value in data.items()}


def steps_reference(steps: TemporalDictTensor) -> Steps:
    """Return one dict a sequence, valid steps only."""
    return [
        {key: to_list(value[row, :length]) for key, value in steps.items()}
        for row, length in enumerate(steps.lengths.tolist())
    ]


def assert_same(data: DictTensor, expected: Reference, like: DictTensor, batch_size: int) -> None:
    """Check values, keys and their order, batch size, dtypes and inner shapes."""
    assert type(data) is DictTensor
    assert list(data.keys()) == list(expected)
    assert data.batch_size == batch_size
    for key, value in data.items():
        assert value.dtype is like[key].dtype
        assert value.shape == (batch_size, *like[key].shape[1:])
        assert to_list(value) == expected[key]


def assert_same_steps(steps: TemporalDictTensor, expected: Steps, like: TemporalDictTensor) -> None:
    """Check valid steps, keys, sizes, dtypes and inner shapes."""
    assert type(steps) is TemporalDictTensor
    assert steps.leading_shape == (len(expected), steps.max_length)
    assert steps.lengths.dtype is torch.int64
    assert len(steps.lengths) == len(expected)
    if len(steps.lengths):
        assert int(steps.lengths.min()) >= 0
        assert int(steps.lengths.max()) <= steps.max_length
    for key, value in steps.items():
        assert value.dtype is like[key].dtype
        assert value.shape == (*steps.leading_shape, *like[key].shape[2:])
    assert steps_reference(steps) == expected


@st.composite
def layouts(draw: st.DrawFn, max_fields: int = 4) -> dict[str, tuple[tuple[int, ...], torch.dtype, bool]]:
    """Draw for some keys an inner shape, a dtype, and whether the field is lazy."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=max_fields))
    return {
        key: (draw(st.sampled_from(INNER_SHAPES)), draw(st.sampled_from(DTYPES)), draw(st.booleans())) for key in keys
    }


def fields_of(
    layout: dict[str, tuple[tuple[int, ...], torch.dtype, bool]], leading: tuple[int, ...], start: int = 1
) -> dict[str, Tensor | Lazy]:
    fields: dict[str, Tensor | Lazy] = {}
    for key, (shape, dtype, lazy) in layout.items():
        tensor = counting((*leading, *shape), dtype, start)
        fields[key] = Lazy(lambda tensor=tensor: tensor.clone()) if lazy else tensor
        start += 7
    return fields


@st.composite
def dict_tensors(draw: st.DrawFn, batch_size: int | None = None) -> DictTensor:
    size = draw(st.integers(0, 5)) if batch_size is None else batch_size
    return DictTensor(fields_of(draw(layouts()), (size,)), size)


@st.composite
def dict_tensors_alike(draw: st.DrawFn, same_size: bool = False, least: int = 1) -> list[DictTensor]:
    """Draw 1 to 4 DictTensors with the same keys, shapes and dtypes."""
    layout = draw(layouts())
    sizes = draw(st.lists(st.integers(0, 4), min_size=least, max_size=4))
    if same_size:
        sizes = [sizes[0]] * len(sizes)
    return [DictTensor(fields_of(layout, (size,), 1 + 31 * n), size) for n, size in enumerate(sizes)]


@st.composite
def temporal_dict_tensors(draw: st.DrawFn) -> TemporalDictTensor:
    return _temporal(draw, draw(layouts()), 1)


@st.composite
def temporal_dict_tensors_alike(draw: st.DrawFn) -> list[TemporalDictTensor]:
    """Draw 1 to 3 TemporalDictTensors with the same keys, shapes and dtypes, and their own B and T."""
    layout = draw(layouts())
    return [_temporal(draw, layout, 1 + 31 * n) for n in range(draw(st.integers(1, 3)))]


def _temporal(
    draw: st.DrawFn, layout: dict[str, tuple[tuple[int, ...], torch.dtype, bool]], start: int
) -> TemporalDictTensor:
    size, steps = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    lengths = draw(st.lists(st.integers(0, steps), min_size=size, max_size=size))
    return TemporalDictTensor(fields_of(layout, (size, steps), start), lengths, steps)


@st.composite
def row_choices(draw: st.DrawFn, batch_size: int) -> tuple[Any, list[int]]:
    """Draw rows in each way that they can be given, and the plain indices that they mean."""
    everything = list(range(batch_size))
    kind = draw(st.sampled_from(["slice", "mask", "mask list", "index", "list", "array", "int32", "int", "0-d"]))
    if kind == "slice":
        ends = st.none() | st.integers(-batch_size - 1, batch_size + 1)
        rows = slice(draw(ends), draw(ends), draw(st.none() | st.integers(1, 3)))
        return rows, everything[rows]
    if kind.startswith("mask"):
        mask = draw(st.lists(st.booleans(), min_size=batch_size, max_size=batch_size))
        chosen = [row for row, keep in zip(everything, mask, strict=True) if keep]
        return (mask if kind == "mask list" and mask else torch.tensor(mask, dtype=torch.bool)), chosen
    if not batch_size:
        return torch.zeros(0, dtype=torch.int64), []
    if kind in ("int", "0-d"):
        row = draw(st.integers(-batch_size, batch_size - 1))
        return (row if kind == "int" else torch.tensor(row)), [row % batch_size]
    index = draw(st.lists(st.integers(-batch_size, batch_size - 1), max_size=6))
    chosen = [row % batch_size for row in index]
    if kind == "list":
        return index, chosen
    if kind == "array":
        return torch.tensor(index, dtype=torch.int64).numpy(), chosen
    return torch.tensor(index, dtype=torch.int32 if kind == "int32" else torch.int64), chosen

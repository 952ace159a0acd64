"""Rows of a dict of fields: choosing, counting, joining."""

import operator
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlx.data.lazy import Field, Lazy
from rlx.errors import SpecError

Rows = int | slice | Tensor | Sequence[int] | Sequence[bool] | np.ndarray[Any, Any]
"""What chooses rows: an int, a slice, indices (tensor, list, array), or a boolean mask of all rows."""

Index = slice | Tensor
"""Rows in the form that tensors understand: a slice of step 1 or more, or an integer tensor `[N]`."""


# torch writes no rows of the wide unsigned integers; their bits can be written as signed ones.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def take_rows(fields: dict[str, Field], rows: Rows, batch_size: int) -> tuple[dict[str, Field], int]:
    """Return these rows of all fields, and how many they are.

    Raises:
        SpecError: rows that are not there, or that are of a wrong kind.
    """
    index, count = to_index(rows, batch_size)
    if isinstance(index, slice):
        return {k: _lazy_rows(v, index) if isinstance(v, Lazy) else v[index] for k, v in fields.items()}, count
    if index.is_cpu:
        # index_select is a third faster than indexing. It knows no negative index: then the slow way sorts it out.
        checked = False
        taken: dict[str, Field] = {}
        try:
            for key, value in fields.items():
                if isinstance(value, Lazy):
                    taken[key] = value
                else:
                    taken[key] = value.index_select(0, index)
                    checked = True
        except (IndexError, RuntimeError):
            checked = False
        if checked:
            for key, value in fields.items():
                if isinstance(value, Lazy):
                    taken[key] = _lazy_rows(value, index)
            return taken, count
        check_index(index, batch_size)
    return {k: _lazy_rows(v, index) if isinstance(v, Lazy) else v[index] for k, v in fields.items()}, count


def split_rows(
    fields: dict[str, Field], batch_size: int, size: int | Sequence[int]
) -> list[tuple[dict[str, Field], int]]:
    """Return all fields in parts, one after the other, each with how many rows it has: views, made in one go.

    Args:
        fields: `[B, ...]`.
        batch_size: B.
        size: rows of each part, the last one being what is left; or of every part, B in all.

    Raises:
        SpecError: a size below 1, or sizes that are not B in all.
    """
    if isinstance(size, int):
        if size < 1:
            raise SpecError(f"split: expected a size of 1 or more, got {size}")
        sizes = [min(size, batch_size - start) for start in range(0, batch_size, size)]
    else:
        sizes = list(size)
        if sum(sizes) != batch_size or min(sizes, default=0) < 0:
            raise SpecError(f"split: expected sizes of {batch_size} rows in all, got {sizes}")
    parts: list[tuple[dict[str, Field], int]] = [({}, rows) for rows in sizes]
    for key, value in fields.items():
        if isinstance(value, Lazy):
            start = 0
            for part, rows in parts:
                part[key] = _lazy_rows(value, slice(start, start + rows))
                start += rows
        elif parts:
            for (part, _), piece in zip(parts, torch.split(value, sizes), strict=True):
                part[key] = piece
    return parts


def to_index(rows: Rows, batch_size: int) -> tuple[Index, int]:
    """Return the rows as a slice or as an integer tensor `[N]`, and N. Only a mask's size and an int are checked.

    Raises:
        SpecError: a wrong kind, a mask of another size, an int out of range.
    """
    if isinstance(rows, slice):
        chosen = range(batch_size)[rows]
        if chosen.step < 0:
            raise SpecError(f"rows {rows}: tensors have no negative step; give the indices instead")
        return rows, len(chosen)
    if not isinstance(rows, Tensor):
        if isinstance(rows, str) or not hasattr(rows, "__len__"):
            return _one_row(rows, batch_size)
        try:
            rows = torch.as_tensor(rows, dtype=torch.int64 if np.size(cast(Sequence[int], rows)) == 0 else None)
        except (TypeError, ValueError) as error:
            raise SpecError(f"rows: expected indices or a mask, got {rows!r}: {error}") from None
    dtype = rows.dtype
    if dtype is torch.bool:
        if tuple(rows.shape) != (batch_size,):
            raise SpecError(f"rows: expected a mask [{batch_size}], got {list(rows.shape)}")
        rows = rows.nonzero().squeeze(1)
    elif dtype.is_floating_point or dtype.is_complex:
        raise SpecError(f"rows: expected integers or booleans, got {dtype}")
    elif dtype is not torch.int64:
        rows = rows.long()
    dimensions = rows.dim()
    if dimensions != 1:
        if dimensions > 1:
            raise SpecError(f"rows: expected one dimension, got {list(rows.shape)}")
        rows = rows.reshape(1)
    return rows, rows.numel()


def _one_row(row: Any, batch_size: int) -> tuple[slice, int]:
    try:
        place = operator.index(row)
    except TypeError:
        raise SpecError(f"rows: expected an int, slice, mask or indices, got {type(row).__name__}") from None
    if not -batch_size <= place < batch_size:
        raise SpecError(f"row {place} is not among {batch_size} rows")
    place %= batch_size
    return slice(place, place + 1), 1


def check_index(index: Index, batch_size: int) -> None:
    """Check that each index counts a row that is there, from the start or from the end.

    Raises:
        SpecError: one does not.
    """
    if isinstance(index, Tensor):
        wrong = (index < -batch_size) | (index >= batch_size)
        if wrong.any():
            raise SpecError(f"row {int(index[wrong][0])} is not among {batch_size} rows")


def write_rows(tensor: Tensor, index: Index, values: Tensor) -> None:
    """Write `values` over these rows, in place."""
    signed = _SIGNED.get(tensor.dtype)
    if signed is not None:
        tensor, values = tensor.view(signed), values.view(signed)
    tensor[index] = values.to(tensor.device)


def _lazy_rows(value: Lazy, index: Index) -> Lazy:
    return value.map(lambda tensor: tensor[index])


def cat_fields(parts: Sequence[dict[str, Field]]) -> dict[str, Field]:
    """Return the fields of all parts joined along the first dimension, lazily where a part is lazy.

    Raises:
        SpecError: no part, or keys, shapes or devices differ.
    """
    if not parts:
        raise SpecError("cat: expected one part at least, got none")
    keys = list(parts[0])
    ordered = [part if list(part) == keys else _in_order(part, keys) for part in parts]
    some_empty = any(
        isinstance(value, Tensor) and not len(value) for part in ordered for value in islice(part.values(), 1)
    )
    joined: dict[str, Field] = {}
    for key, column in zip(keys, zip(*[part.values() for part in ordered], strict=True), strict=True):
        try:
            tensors = cast(tuple[Tensor, ...], column)
            whole = joined[key] = torch.cat(tensors)
            if some_empty and any(value.dim() != whole.dim() for value in tensors):
                raise RuntimeError("they differ in a row")  # torch joins an empty [0] with rows of any shape
        except TypeError:  # a lazy one is no tensor
            joined[key] = Lazy(
                lambda column=column: torch.cat([v.build() if isinstance(v, Lazy) else v for v in column])
            )
        except RuntimeError as error:
            shapes = [list(value.shape) for value in column if isinstance(value, Tensor)]
            raise SpecError(f"cat: field {key!r} with the shapes {shapes}: {error}") from error
    return joined


def _in_order(part: dict[str, Field], keys: list[str]) -> dict[str, Field]:
    if part.keys() != set(keys):
        missing, more = sorted(set(keys) - part.keys()), sorted(part.keys() - set(keys))
        raise SpecError(f"cat: a part lacks {missing} and has {more} that the first part has not")
    return {key: part[key] for key in keys}


def integers(values: Tensor) -> list[int]:
    """Return an integer tensor `[N]` as a list."""
    return cast(list[int], values.tolist())  # pyright: ignore[reportUnknownMemberType]

"""Named tensors that share their first dimension."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor

from rlx.data.fields import Fields, check_devices, check_keys, check_leading
from rlx.data.lazy import Field, Lazy
from rlx.data.rows import Rows, arrays_to_tensors, cat_fields, count_rows, take_rows
from rlx.errors import SpecError


class DictTensor(Fields):
    """A dictionary of tensors that share their first (batch) dimension.

    `dt["env/obs"]` is the tensor; `dt[rows]` with an index, a slice, a mask or a list of indices is a DictTensor of
    those rows. An empty one keeps its batch size. It is a torch pytree.
    """

    __slots__ = ("_batch_size",)

    def __init__(self, fields: Mapping[str, Field], batch_size: int | None = None) -> None:
        """Make a DictTensor and check it.

        Args:
            fields: tensors `[B, ...]`, or `Lazy` ones, all on one device. The dict is copied, the tensors are not.
            batch_size: B. Needed only where there is no tensor to tell it.

        Raises:
            SpecError: a key is no string, a value no tensor, a first dimension is not B, or devices differ.
        """
        own: dict[str, Field] = dict(fields)
        check_keys(own)
        if batch_size is None:
            for value in own.values():
                if isinstance(value, Tensor) and value.dim():
                    batch_size = value.shape[0]
                    break
            else:
                raise SpecError(f"DictTensor: give batch_size, for no field tells it (fields: {list(own)})")
        for key, value in own.items():
            if not isinstance(value, Lazy):
                check_leading(key, value, (batch_size,))
        check_devices(own)
        self._fields = own
        self._batch_size = batch_size

    @classmethod
    def trusted(cls, fields: dict[str, Any], batch_size: int) -> Self:
        """Return a DictTensor over this very dict, unchecked: for fields that rlx made itself."""
        self = cls.__new__(cls)
        self._fields = fields
        self._batch_size = batch_size
        return self

    @classmethod
    def empty(cls, batch_size: int) -> Self:
        """Return a DictTensor of no field and `batch_size` rows."""
        return cls.trusted({}, batch_size)

    @property
    def batch_size(self) -> int:
        """Return the number of rows, B."""
        return self._batch_size

    @property
    def leading_shape(self) -> tuple[int, ...]:
        """Return `(B,)`."""
        return (self._batch_size,)

    def _with_fields(self, fields: dict[str, Field]) -> Self:
        return self.trusted(fields, self._batch_size)

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: Rows) -> Self: ...
    def __getitem__(self, key: str | Rows) -> Tensor | Self:
        """Return the tensor of a key, or a DictTensor of some rows.

        Args:
            key: a field's name; or rows: an int (one row, the batch dimension stays), a slice, a tensor or list of
                indices (negative ones count from the end), or a boolean mask `[B]`.

        Raises:
            MissingFieldError: no such field; the message has the nearest.
            SpecError: rows that are not there.
        """
        if isinstance(key, str):
            return self._get(key)
        fields, count = take_rows(self._fields, key, self._batch_size)
        return self.trusted(fields, count)

    def __or__(self, other: "DictTensor") -> Self:
        """Return the fields of both.

        Raises:
            SpecError: a key is in both, or the batch sizes differ.
        """
        return self._with_fields(self._merged(other))

    def unbind(self) -> list[Self]:
        """Return B DictTensors of one row each."""
        return [self[row : row + 1] for row in range(self._batch_size)]

    @classmethod
    def cat(cls, parts: Sequence["DictTensor"]) -> Self:
        """Return the rows of all parts, one part after the other. A field lazy in any part is lazy in the result.

        Args:
            parts: one at least, with the same keys (in any order).

        Raises:
            SpecError: no part, or keys, shapes or devices differ.
        """
        fields = cat_fields([part._fields for part in parts])
        return cls.trusted(fields, sum([part._batch_size for part in parts]))

    @classmethod
    def where(cls, mask: Tensor, a: "DictTensor", b: "DictTensor") -> Self:
        """Return a's rows where `mask` is true, b's rows elsewhere.

        Args:
            mask: `[B]` bool.
            a: B rows.
            b: B rows with the same keys.

        Raises:
            SpecError: the mask is no `[B]` bool, or keys, batch sizes, shapes or dtypes differ.
        """
        size = a._batch_size
        if b._batch_size != size:
            raise SpecError(f"where: batch sizes differ: {size} and {b._batch_size}")
        if mask.dtype is not torch.bool or tuple(mask.shape) != (size,):
            raise SpecError(f"where: expected a bool mask [{size}], got {mask.dtype} {list(mask.shape)}")
        if a.keys() != b.keys():
            raise SpecError(f"where: the keys differ: {list(a.keys())} and {list(b.keys())}")

        def choose(key: str) -> Tensor:
            left, right = a[key], b[key]
            if left.shape != right.shape or left.dtype != right.dtype:
                raise SpecError(
                    f"where: field {key!r}: {left.dtype} {list(left.shape)} and {right.dtype} {list(right.shape)}"
                )
            return torch.where(mask.reshape(size, *[1] * (left.dim() - 1)), left, right)

        fields: dict[str, Field] = {}
        for key, value in a._fields.items():
            if isinstance(value, Lazy) or isinstance(b._fields[key], Lazy):
                fields[key] = Lazy(lambda key=key: choose(key))
            else:
                fields[key] = choose(key)
        return cls.trusted(fields, size)

    def copy_rows_(self, source: "DictTensor", source_rows: Rows, rows: Rows) -> Self:
        """Write some of another's rows over some of these, in place, and return self.

        Args:
            source: has each of these keys, with the same shape; what else it has is left alone.
            source_rows: which of its rows.
            rows: where they go, as many.

        Raises:
            SpecError: a key is missing, or the numbers of rows, shapes or dtypes differ.
        """
        given = count_rows(source_rows, source._batch_size)
        taken = count_rows(rows, self._batch_size)
        if given != taken:
            raise SpecError(f"copy_rows_: {given} source rows for {taken} rows")
        for key, value in self.items():
            other = source[key]
            if other.shape[1:] != value.shape[1:] or other.dtype != value.dtype:
                raise SpecError(
                    f"copy_rows_: field {key!r}: "
                    f"{other.dtype} {list(other.shape)} into {value.dtype} {list(value.shape)}"
                )
        new = source.select(*self.keys())[source_rows]
        index = torch.as_tensor(rows) if isinstance(rows, Sequence) else rows
        for key, value in self.items():
            value[index] = new[key].to(value.device)
        return self

    @classmethod
    def from_numpy(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        batch_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Return tensors of these arrays; they share the memory where numpy and the device allow it.

        Raises:
            SpecError: a dtype that torch lacks, or first dimensions differ.
        """
        return cls(arrays_to_tensors(arrays, device), batch_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).trusted, (self.to_dict(), self._batch_size)

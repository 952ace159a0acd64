"""Named tensors that share their first dimension."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast, overload

import torch
from torch import Tensor
from torch._C import TensorBase
from torch.compiler import is_dynamo_compiling

from rlx.data.fields import Fields, check_devices, check_keys, check_leading
from rlx.data.interop import Array, from_arrays, from_nested, to_nested
from rlx.data.lazy import Field, Lazy
from rlx.data.rows import Rows, cat_fields, check_index, split_rows, take_rows, to_index, write_rows
from rlx.errors import SpecError

if TYPE_CHECKING:
    from tensordict import TensorDict

# The size of the first dimension, 0 for no dimension. The slot of the C base class is several times as fast as
# `Tensor.__len__` or `.shape`, and refuses what is no tensor.
_first_size: Callable[[object], int] = cast(Any, TensorBase).__len__

# A torch built for the CPU alone has no second device that a tensor could be on.
_ONE_DEVICE = torch.accelerator.current_accelerator() is None


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
        own: dict[str, Field] = {**fields}
        # The checks in three calls of C; at any doubt (and where the compiler cannot follow), one by one.
        size = 0
        if not is_dynamo_compiling():
            try:
                sizes = [*map(_first_size, own.values())]
                "".join(own)
                if sizes.count(sizes[0]) == len(sizes):
                    size = sizes[0]
            except (TypeError, ValueError, IndexError):
                pass
        if not size or (batch_size is not None and batch_size != size):
            size = _checked_batch_size(own, batch_size)
        if not _ONE_DEVICE:
            check_devices(own)
        self._fields = own
        self._batch_size = size

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
            value = self._fields.get(key)
            return value if type(value) is Tensor else self._get(key)  # spares the common case a call
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

    def split(self, size: int | Sequence[int]) -> list[Self]:
        """Return the rows in parts: views, made in one go.

        Args:
            size: rows of each part, the last one being what is left; or of every part, B in all.

        Raises:
            SpecError: a size below 1, or sizes that are not B in all.
        """
        return [self.trusted(part, rows) for part, rows in split_rows(self._fields, self._batch_size, size)]

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
        source_index, given = to_index(source_rows, source._batch_size)
        index, taken = to_index(rows, self._batch_size)
        if given != taken:
            raise SpecError(f"copy_rows_: {given} source rows for {taken} rows")
        for key, value in self.items():
            other = source[key]
            if other.shape[1:] != value.shape[1:] or other.dtype != value.dtype:
                raise SpecError(
                    f"copy_rows_: field {key!r}: "
                    f"{other.dtype} {list(other.shape)} into {value.dtype} {list(value.shape)}"
                )
        new = source.select(*self.keys())[source_index]
        if isinstance(source_index, slice):
            new = new.clone()  # source may be self
        check_index(index, self._batch_size)
        for key, value in self.items():
            write_rows(value, index, new[key])
        return self

    @classmethod
    def from_numpy(
        cls,
        arrays: Mapping[str, Array],
        batch_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Return tensors of these arrays; they share the memory where numpy and the device allow it.

        Raises:
            SpecError: a dtype that torch lacks, or first dimensions differ.
        """
        return cls(from_arrays(arrays, device), batch_size)

    def to_tensordict(self) -> "TensorDict":
        """Return a tensordict `TensorDict` over the same tensors, groups as nested ones.

        Raises:
            SpecError: a key is a field and a group at once.
            UserError: tensordict is not installed.
        """
        return to_nested(self._built(), self.leading_shape)

    @classmethod
    def from_tensordict(cls, nested: "TensorDict") -> Self:
        """Return a DictTensor over the tensors of a `TensorDict`, nested keys joined by `/`.

        Raises:
            SpecError: it has no batch dimension, or an entry is no tensor.
        """
        if not nested.batch_dims:
            raise SpecError("from_tensordict: expected a batch dimension, got batch_size []")
        return cls(from_nested(nested), nested.batch_size[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).trusted, (self.to_dict(), self._batch_size)


def _checked_batch_size(fields: dict[str, Field], batch_size: int | None) -> int:
    """Return B, having checked each field by name.

    Raises:
        SpecError: what is wrong, and where.
    """
    check_keys(fields)
    if batch_size is None:
        sizes = [value.shape[0] for value in fields.values() if isinstance(value, Tensor) and value.dim()]
        if not sizes:
            raise SpecError(f"DictTensor: no field tells the batch size: give batch_size (fields: {list(fields)})")
        batch_size = sizes[0]
    if batch_size < 0:
        raise SpecError(f"DictTensor: expected a batch_size of 0 or more, got {batch_size}")
    for key, value in fields.items():
        if not isinstance(value, Lazy):
            check_leading(key, value, (batch_size,))
    return batch_size

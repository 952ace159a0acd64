"""What DictTensor and TemporalDictTensor share: named tensors, looked up, chosen, renamed, moved."""

from abc import ABC, abstractmethod
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import NoReturn, Self, cast

import torch
from torch import Tensor

from rlx.data.interop import Array, to_arrays
from rlx.data.lazy import Field, Lazy
from rlx.data.spec import Spec
from rlx.errors import DataRevokedError, SpecError, did_you_mean


class MissingFieldError(SpecError, KeyError):
    """A key that is not among the fields; also a `KeyError`, as a dictionary would raise."""

    __str__ = Exception.__str__


class Fields(ABC):
    """Named tensors that share their leading dimensions. A key `a/b` is the field `b` of the group `a`.

    The fields are a plain dict. What a user hands in is checked once, at construction; what rlx makes of it is not
    checked again.
    """

    __slots__ = ("_fields",)

    _fields: dict[str, Field]

    # What a concrete class says about itself.

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Return the number of rows, B."""

    @property
    @abstractmethod
    def leading_shape(self) -> tuple[int, ...]:
        """Return the dimensions that all fields share: `(B,)`, or `(B, T)` for sequences."""

    @abstractmethod
    def _with_fields(self, fields: dict[str, Field]) -> Self:
        """Return the same kind of thing, with the same leading dimensions, over other fields."""

    # Looking up.

    def _get(self, key: str) -> Tensor:
        fields = self._fields
        try:
            value = fields[key]
        except KeyError:
            self._raise_missing(key)
        if isinstance(value, Lazy):
            value = value.build()
            check_leading(key, value, self.leading_shape)
            fields[key] = value
        return value

    def _raise_missing(self, key: str) -> NoReturn:
        keys = list(self._fields)
        members = [name for name in keys if name.startswith(f"{key}/")]
        if members:
            hint = f" It is a group: group({key!r}) has {[name.removeprefix(f'{key}/') for name in members]}."
        else:
            hint = did_you_mean(key, keys)
        raise MissingFieldError(f"no field {key!r} in {type(self).__name__} with the fields {keys}.{hint}") from None

    def _built(self) -> dict[str, Tensor]:
        """Return the dict of fields itself, with every lazy one built."""
        fields = self._fields
        for key, value in fields.items():
            if isinstance(value, Lazy):
                self._get(key)
        return cast(dict[str, Tensor], fields)

    def keys(self) -> KeysView[str]:
        """Return the keys, groups spelled out: `env/obs`."""
        return self._fields.keys()

    def values(self) -> ValuesView[Tensor]:
        """Return the tensors; builds the lazy ones."""
        return self._built().values()

    def items(self) -> ItemsView[str, Tensor]:
        """Return pairs of key and tensor; builds the lazy ones."""
        return self._built().items()

    def to_dict(self) -> dict[str, Tensor]:
        """Return a new plain dict of the tensors themselves; builds the lazy ones."""
        return dict(self._built())

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    @property
    def is_empty(self) -> bool:
        """Return whether there is no field at all (the leading dimensions exist nevertheless)."""
        return not self._fields.keys()

    @property
    def device(self) -> torch.device | None:
        """Return the device of the fields, or None where there is no field to tell."""
        for value in self._fields.values():
            if not isinstance(value, Lazy):
                return value.device
        for key in self._fields:
            return self._get(key).device
        return None

    def specs(self) -> dict[str, Spec]:
        """Return for each field the shape (without the shared dimensions) and dtype; builds the lazy ones."""
        skipped = len(self.leading_shape)
        return {key: Spec(tuple(value.shape[skipped:]), value.dtype) for key, value in self.items()}

    # Choosing and renaming.

    def select(self, *keys: str) -> Self:
        """Return the fields named, in that order.

        Raises:
            MissingFieldError: a key is not there.
        """
        fields = self._fields
        for key in keys:
            if key not in fields:
                self._raise_missing(key)
        return self._with_fields({key: fields[key] for key in keys})

    def exclude(self, *keys: str) -> Self:
        """Return all fields but those named.

        Raises:
            MissingFieldError: a key is not there.
        """
        fields = self._fields
        for key in keys:
            if key not in fields:
                self._raise_missing(key)
        return self._with_fields({key: value for key, value in fields.items() if key not in keys})

    def group(self, name: str) -> Self:
        """Return the fields under `name/`, that prefix dropped; none, if there is no such group."""
        prefix = name if name.endswith("/") else f"{name}/"
        start = len(prefix)
        return self._with_fields({k[start:]: value for k, value in self._fields.items() if k.startswith(prefix)})

    def add_prefix(self, name: str) -> Self:
        """Return the same fields under `name/`: the inverse of `group`."""
        prefix = name if name.endswith("/") else f"{name}/"
        return self._with_fields({prefix + key: value for key, value in self._fields.items()})

    def _merged(self, other: "Fields") -> dict[str, Field]:
        both = self._fields.keys() & other._fields.keys()
        if both:
            raise SpecError(f"a | b: both sides have the fields {sorted(both)}; drop one side's with exclude() first")
        if self.leading_shape != other.leading_shape:
            raise SpecError(
                f"a | b: the left side has the leading shape {self.leading_shape}, the right side {other.leading_shape}"
            )
        return {**self._fields, **other._fields}

    # Moving and copying.

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the same keys over `function(tensor)`, which must keep the leading dimensions; lazy stays lazy."""
        return self._with_fields(map_fields(self._fields, function))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the fields on `device`; those already there are not copied.

        Args:
            device: where to. What goes to a GPU goes by way of pinned memory, and the host goes on meanwhile: what is
                written to these tensors afterwards is not seen there.
            non_blocking: do not wait for copies from memory that is pinned already.
        """
        return self.map(lambda value: moved(value, device, non_blocking))

    def detach(self) -> Self:
        """Return the same tensors, cut off from the graph that made them."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """Return a copy that shares no memory with this one; builds the lazy fields."""
        return self._with_fields({key: value.clone() for key, value in self.items()})

    def to_numpy(self) -> dict[str, Array]:
        """Return the fields as numpy arrays: views of the same memory where the device is the CPU.

        Raises:
            SpecError: a field's dtype does not exist in numpy (bfloat16).
        """
        return to_arrays(self._built())

    def revoke(self, message: str) -> None:
        """Take the fields away: every later use of them through this object raises.

        Tensors and objects that were taken out before are not reached by this.

        Args:
            message: what the `DataRevokedError` says.
        """
        self._fields = _RevokedFields(message)

    def __repr__(self) -> str:
        shape = " x ".join(str(size) for size in self.leading_shape)
        if isinstance(self._fields, _RevokedFields):
            return f"{type(self).__name__}[{shape}](revoked)"
        shown: list[str] = []
        for key, value in self._fields.items():
            if isinstance(value, Lazy):
                shown.append(f"{key}: lazy")
            else:
                inner = list(value.shape[len(self.leading_shape) :])
                shown.append(f"{key}: {str(value.dtype).removeprefix('torch.')}{inner}")
        return f"{type(self).__name__}[{shape}]({', '.join(shown)})"


class _RevokedFields(dict[str, Field]):
    """In the place of fields that were taken away: every use raises, and the living pay nothing for it."""

    __slots__ = ("_message",)

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise DataRevokedError(self._message)

    __getitem__ = __setitem__ = __iter__ = __len__ = __contains__ = _refuse
    keys = values = items = get = copy = __or__ = __ror__ = _refuse


def map_fields(fields: dict[str, Field], function: Callable[[Tensor], Tensor]) -> dict[str, Field]:
    """Return `function` of every field, lazily of the lazy ones."""
    return {key: value.map(function) if isinstance(value, Lazy) else function(value) for key, value in fields.items()}


def moved(value: Tensor, device: torch.device | str, non_blocking: bool) -> Tensor:
    """Return a tensor on `device`, itself where it is there; see `Fields.to`."""
    device = torch.device(device)
    if device.type == "cuda" and value.is_cpu and value.numel() and not (value.requires_grad or value.is_pinned()):
        # `pin_memory()` would refuse what `expand` made. torch keeps the pinned copy until it has been read.
        pinned = torch.empty_like(value, pin_memory=True, memory_format=torch.preserve_format)
        return pinned.copy_(value).to(device, non_blocking=True)
    return value.to(device, non_blocking=non_blocking)


def check_leading(key: str, value: object, leading_shape: tuple[int, ...]) -> None:
    """Check that `value` is a tensor that begins with these dimensions.

    Raises:
        SpecError: it is not.
    """
    if not isinstance(value, Tensor):
        raise SpecError(f"field {key!r}: expected a tensor, got {type(value).__name__}")
    if tuple(value.shape[: len(leading_shape)]) != leading_shape:
        wanted = ", ".join(str(size) for size in leading_shape)
        raise SpecError(f"field {key!r}: expected the shape [{wanted}, ...], got {list(value.shape)}")


def check_keys(keys: Iterable[object]) -> None:
    """Check that every key is a string.

    Raises:
        SpecError: one is not.
    """
    for key in keys:
        if not isinstance(key, str):
            raise SpecError(f"a field's key must be a string, got {key!r} ({type(key).__name__})")


def check_devices(fields: Mapping[str, Field], device: torch.device | None = None) -> None:
    """Check that all tensors live on one device.

    Raises:
        SpecError: two do not.
    """
    first = ""
    for key, value in fields.items():
        if isinstance(value, Lazy):
            continue
        if device is None:
            device, first = value.device, key
        elif value.device != device:
            whose = f"field {first!r}" if first else "the lengths"
            raise SpecError(f"field {key!r} is on {value.device}, but {whose} on {device}; move them with .to()")

"""Nested state as JSON and named tensors, without pickle, and back again bit for bit.

What a checkpoint may hold: dictionaries (of any keys that may be values), lists, tuples, None, booleans, integers of
any size, floats (NaN and infinities included), text, bytes, torch tensors, NumPy arrays and NumPy scalars. JSON
objects stand for dictionaries with text keys; what JSON lacks is an object whose first key begins with `$`.
"""

import base64
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlx.errors import CheckpointError


def encode(value: Any, tensors: dict[str, Tensor] | None = None, path: str = "") -> Any:
    """Return `value` as data for strict JSON; its tensors go to `tensors`.

    Each tensor is copied to the CPU, contiguous and with memory of its own, so that what happens to the original
    afterwards does not matter. A tensor that occurs at two places is kept once.

    Args:
        value: nested state.
        tensors: filled with the tensors, by name; None where tensors are not allowed (configurations).
        path: where `value` stands in the whole, for names and messages.

    Raises:
        CheckpointError: something that has no place in a checkpoint; names its path and its type.
    """
    return _Encoder(tensors).encode(value, path)


def decode(data: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Return what `encode` was given; tensors are on the CPU.

    Raises:
        CheckpointError: the data is not what `encode` writes, or a tensor is missing.
    """
    if isinstance(data, list):
        return [decode(item, tensors) for item in cast(list[Any], data)]
    if not isinstance(data, dict):
        return data
    mapping = cast(dict[str, Any], data)
    tag = next(iter(mapping), "")
    if not tag.startswith("$"):
        return {key: decode(item, tensors) for key, item in mapping.items()}
    content = mapping[tag]
    match tag:
        case "$tuple":
            return tuple(decode(item, tensors) for item in content)
        case "$dict":
            return {_hashable(decode(key, tensors)): decode(item, tensors) for key, item in content}
        case "$float":
            return float(content)
        case "$bytes":
            return base64.b64decode(content, validate=True)
        case "$tensor":
            tensor = _named(content, tensors)
            return torch.view_as_complex(tensor) if mapping.get("complex") else tensor
        case "$array" | "$scalar":
            tensor = _named(content, tensors)
            array = (torch.view_as_complex(tensor) if mapping.get("complex") else tensor).numpy()
            return array[()] if tag == "$scalar" else array
        case _:
            raise CheckpointError(f"a checkpoint holds '{tag}', which this rlx does not know")


class _Encoder:
    """One walk over nested state."""

    def __init__(self, tensors: dict[str, Tensor] | None) -> None:
        self.tensors = tensors
        # What was stored already, by where it lies; the tensors themselves are kept so that no address is used twice.
        self.stored: dict[tuple[Any, ...], tuple[Tensor, str]] = {}

    def encode(self, value: Any, path: str) -> Any:
        """Return one value as JSON data."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, np.generic):
            return self._array(np.asarray(cast(Any, value)), path, "$scalar")
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, str):
            return str(value)
        if isinstance(value, bytes | bytearray):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, Tensor):
            return self._tensor(value, path, "$tensor")
        if isinstance(value, np.ndarray):
            return self._array(cast("np.ndarray[Any, Any]", value), path, "$array")
        if isinstance(value, Mapping):
            return self._mapping(cast(Mapping[Any, Any], value), path)
        if isinstance(value, list | tuple):
            items = cast(list[Any] | tuple[Any, ...], value)
            encoded = [self.encode(item, f"{path}/{index}") for index, item in enumerate(items)]
            return encoded if isinstance(value, list) else {"$tuple": encoded}
        raise _unfit(path, f"a {type(value).__module__}.{type(value).__qualname__}")

    def _mapping(self, mapping: Mapping[Any, Any], path: str) -> Any:
        """Return a dictionary; as pairs where its keys are not plain text."""
        if all(isinstance(key, str) and not key.startswith("$") for key in mapping):
            return {str(key): self.encode(item, f"{path}/{key}" if path else str(key)) for key, item in mapping.items()}
        pairs = [
            [self.encode(key, f"{path} (a key)"), self.encode(item, f"{path}/{key}")] for key, item in mapping.items()
        ]
        return {"$dict": pairs}

    def _tensor(self, tensor: Tensor, path: str, tag: str) -> Any:
        """Store a tensor and return the reference to it."""
        if self.tensors is None:
            raise _unfit(path, "a tensor", "plain data")
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise _unfit(path, f"a tensor of layout {tensor.layout} on {tensor.device}", "a dense tensor")
        reference: dict[str, Any] = {tag: ""}
        if tensor.is_complex():
            reference["complex"] = True
        place = (
            tensor.device,
            tensor.data_ptr(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        if tensor.numel() and place in self.stored:
            reference[tag] = self.stored[place][1]
            return reference
        own = tensor.resolve_conj().resolve_neg()
        if tensor.is_complex():
            own = torch.view_as_real(own)
        own = torch.empty(own.shape, dtype=own.dtype).copy_(own)
        name = reference[tag] = self._free_name(path or "state")
        self.tensors[name] = own
        self.stored[place] = (tensor, name)
        return reference

    def _array(self, array: "np.ndarray[Any, Any]", path: str, tag: str) -> Any:
        """Store an array (torch has every numeric dtype but long doubles) and return the reference to it."""
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
        try:
            tensor = torch.from_numpy(native)  # pyright: ignore[reportUnknownMemberType]
        except TypeError:
            raise _unfit(path, f"a NumPy array of dtype {array.dtype}", "numbers or booleans") from None
        return self._tensor(tensor, path, tag)

    def _free_name(self, path: str) -> str:
        """Return `path`, numbered where another tensor has it."""
        assert self.tensors is not None
        name, number = path, 1
        while name in self.tensors or name == "__metadata__":
            number += 1
            name = f"{path}#{number}"
        return name


def _unfit(
    path: str, got: str, expected: str = "tensors, arrays, numbers, text, bytes, lists, tuples, dictionaries"
) -> CheckpointError:
    """Return the error for a value that cannot be kept."""
    return CheckpointError(f"'{path or 'state'}' cannot be kept in a checkpoint: got {got}, expected {expected}")


def _named(name: Any, tensors: Mapping[str, Tensor] | None) -> Tensor:
    """Return a tensor by its name."""
    if tensors is None or name not in tensors:
        raise CheckpointError(f"a checkpoint's tensor '{name}' is missing")
    return tensors[name]


def _hashable(key: Any) -> Any:
    """Return a dictionary's key, or say that it is none."""
    try:
        hash(key)
    except TypeError:
        raise CheckpointError(f"a checkpoint holds a dictionary with the key {key!r}") from None
    return key

"""To and from numpy and tensordict."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from rlx.errors import SpecError, UserError

if TYPE_CHECKING:
    from tensordict import TensorDict

Array = np.ndarray[Any, Any]


def to_arrays(fields: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return numpy arrays over the memory of these tensors; copies of those on another device.

    Raises:
        SpecError: a dtype that numpy lacks (bfloat16).
    """
    arrays: dict[str, Array] = {}
    for key, value in fields.items():
        try:
            arrays[key] = value.detach().cpu().numpy()
        except TypeError as error:
            raise SpecError(f"field {key!r}: {value.dtype} does not exist in numpy; convert it first") from error
    return arrays


def from_arrays(arrays: Mapping[str, Array], device: torch.device | str | None) -> dict[str, Tensor]:
    """Return tensors over the memory of these arrays; copies of those that are read-only or run backwards.

    Raises:
        SpecError: a dtype that torch lacks.
    """
    tensors: dict[str, Tensor] = {}
    for key, array in arrays.items():
        shared = np.asarray(array)
        if not shared.flags.writeable or any(stride < 0 for stride in shared.strides):
            shared = shared.copy()
        try:
            tensor = torch.as_tensor(shared)
        except TypeError as error:
            raise SpecError(f"field {key!r}: numpy dtype {shared.dtype} does not exist in torch") from error
        tensors[key] = tensor if device is None else tensor.to(device)
    return tensors


def to_nested(fields: Mapping[str, Tensor], leading_shape: tuple[int, ...]) -> "TensorDict":
    """Return a TensorDict of these tensors, groups as nested TensorDicts.

    Raises:
        SpecError: a key is a field and a group at once.
        UserError: tensordict is not installed.
    """
    try:
        from tensordict import TensorDict
    except ImportError as error:
        raise UserError("tensordict is not installed: pip install tensordict") from error
    for key in fields:
        for other in fields:
            if other.startswith(f"{key}/"):
                raise SpecError(f"{key!r} is a field and a group (of {other!r}) at once; TensorDict has no such thing")
    nested = TensorDict({}, batch_size=list(leading_shape))
    for key, value in fields.items():
        nested.set(tuple(key.split("/")), value)
    return nested


def from_nested(nested: "TensorDict") -> dict[str, Tensor]:
    """Return the tensors of a TensorDict, nested keys joined by `/`.

    Raises:
        SpecError: an entry is no tensor.
    """
    fields: dict[str, Tensor] = {}
    entries = cast(Iterable[tuple[object, object]], nested.items(include_nested=True, leaves_only=True))  # pyright: ignore[reportUnknownMemberType]
    for key, value in entries:
        name = "/".join(cast(tuple[str, ...], key)) if isinstance(key, tuple) else str(key)
        if not isinstance(value, Tensor):
            raise SpecError(f"field {name!r}: expected a tensor, got {type(value).__name__}")
        fields[name] = value
    return fields

"""Gymnasium spaces as specs: nested spaces become flat keys, and each leaf one tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from gymnasium import Space, spaces
from numpy.typing import NDArray

from rlx.data.spec import EnvSpecs, Spec
from rlx.errors import UnsupportedSpaceError

Array = NDArray[Any]

# What torch has no full set of operations for is stored in the next wider type that it has.
_STORED_DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float32,
}

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"


@dataclass(frozen=True)
class Leaf:
    """One tensor's worth of a space.

    Attributes:
        key: its name among the specs: `obs`, `obs/arm/joint`, `action/0`.
        path: the way to it from the whole, through Dict keys and Tuple places.
        space: the Gymnasium space at that place.
        spec: what rlx stores.
        dtype: what the environment's own values are.
        start: what the environment's own numbers begin at, for Discrete and MultiDiscrete; rlx's begin at 0.
    """

    key: str
    path: tuple[str | int, ...]
    space: Space[Any]
    spec: Spec
    dtype: np.dtype[Any]
    start: int | Array = 0

    @cached_property
    def shifted(self) -> bool:
        """Return whether the environment's own numbers begin anywhere but at 0."""
        return bool(np.any(self.start))

    def pick(self, value: Any) -> Any:
        """Return this leaf's part of a value of the whole space."""
        for place in self.path:
            value = value[place]
        return value


def leaves(space: Space[Any], key: str) -> list[Leaf]:
    """Return the leaves of a space in the order in which the space holds them.

    Args:
        space: an observation or action space of one environment.
        key: name of the whole, `obs` or `action`.

    Raises:
        UnsupportedSpaceError: a part of it is none of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple, is
            empty, or has a Dict key that cannot be part of a name.
    """
    found = _leaves(space, key, ())
    if not found:
        raise UnsupportedSpaceError(f"space '{key}' is {space}, which holds nothing; expected {_SUPPORTED}")
    return found


def to_specs(observation_space: Space[Any], action_space: Space[Any]) -> EnvSpecs:
    """Return what an environment with these spaces shows and takes.

    Nested spaces become keys: `Dict(arm=Dict(joint=Box))` is `obs/arm/joint`, `Tuple((Box, Box))` is `obs/0` and
    `obs/1`. Discrete values are int64 from 0, whatever their `start`; float64 is stored as float32; other dtypes stay.

    Raises:
        UnsupportedSpaceError: rlx has no layout for one of them.
    """
    return EnvSpecs(
        observation={leaf.key: leaf.spec for leaf in leaves(observation_space, "obs")},
        action={leaf.key: leaf.spec for leaf in leaves(action_space, "action")},
    )


def assemble(space: Space[Any], key: str, values: Mapping[str, Any]) -> Any:
    """Return the value of a whole space that holds the leaves' `values` at their places: `leaves` backwards."""
    parts = _parts(space)
    if parts is None:
        return values[key]
    whole = {place: assemble(part, f"{key}/{place}", values) for place, part in parts.items()}
    return whole if isinstance(space, spaces.Dict) else tuple(whole.values())


def _parts(space: Space[Any]) -> dict[str | int, Space[Any]] | None:
    """Return the parts of a nested space under their places, or None for any other space."""
    if isinstance(space, spaces.Dict):
        return cast("dict[str | int, Space[Any]]", cast(Any, space).spaces)
    if isinstance(space, spaces.Tuple):
        return dict(enumerate(cast("tuple[Space[Any], ...]", cast(Any, space).spaces)))
    return None


def _leaves(whole: Space[Any], key: str, path: tuple[str | int, ...]) -> list[Leaf]:
    space: Any = whole  # Gymnasium's spaces are generic since 1.2: their parameters stay out of this
    parts = _parts(whole)
    if parts is not None:
        found: list[Leaf] = []
        for place, part in parts.items():
            if not str(place) or "/" in str(place):
                raise UnsupportedSpaceError(
                    f"space '{key}' has the Dict key {place!r}; expected a name without '/', since rlx names parts "
                    f"'{key}/<name>'"
                )
            found += _leaves(part, f"{key}/{place}", (*path, place))
        return found
    if not hasattr(space, "dtype"):  # None, of an environment that declares none
        raise UnsupportedSpaceError(f"space '{key}' is {space!r}; expected {_SUPPORTED}")
    dtype = np.dtype(space.dtype)
    kind = type(whole)
    if issubclass(kind, spaces.Box):
        return [Leaf(key, path, whole, _box_spec(space, key), dtype)]
    if issubclass(kind, spaces.Discrete):
        spec = Spec(shape=(), dtype=torch.int64, kind="discrete", nvec=(int(space.n),))
        return [Leaf(key, path, whole, spec, dtype, start=int(space.start))]
    if issubclass(kind, spaces.MultiDiscrete):
        counts = np.asarray(space.nvec, np.int64)
        spec = Spec(shape=counts.shape, dtype=torch.int64, kind="multi_discrete", nvec=tuple(counts.ravel().tolist()))
        return [Leaf(key, path, whole, spec, dtype, start=np.asarray(space.start, np.int64))]
    if issubclass(kind, spaces.MultiBinary):
        spec = Spec(shape=tuple(space.shape), dtype=torch.int8, kind="multi_binary")
        return [Leaf(key, path, whole, spec, dtype)]
    raise UnsupportedSpaceError(
        f"space '{key}' is {space}: rlx has no layout for a {kind.__name__} space; expected {_SUPPORTED}"
    )


def _box_spec(space: "spaces.Box[Any]", key: str) -> Spec:
    dtype = _STORED_DTYPES.get(space.dtype.name)
    if dtype is None:
        raise UnsupportedSpaceError(
            f"space '{key}' is a Box of {space.dtype.name}; expected one of {', '.join(_STORED_DTYPES)}"
        )
    low, high = _bounds(space, acts=key.split("/")[0] == "action")
    return Spec(shape=tuple(space.shape), dtype=dtype, kind="continuous", low=low, high=high)


def _bounds(space: "spaces.Box[Any]", *, acts: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the bounds place by place, or nothing where they say no more than the dtype does (as for images).

    Where it `acts`, all numbers of one or two bytes are a range to draw from: a colour's 0 to 255.
    """
    low: Array = space.low
    high: Array = space.high
    if space.dtype.kind in "iu":
        limits = np.iinfo(space.dtype)
        bounded = acts and space.dtype.itemsize <= 2
        bounded = bounded or bool((low > limits.min).any() or (high < limits.max).any())
    elif space.dtype.kind == "b":
        bounded = False
    else:
        bounded = bool(np.isfinite(low).any() or np.isfinite(high).any())
    if not bounded:
        return (), ()
    return tuple(low.ravel().tolist()), tuple(high.ravel().tolist())

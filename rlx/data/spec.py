"""What one named tensor looks like: shape, dtype, and which values it may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rlx.errors import SpecError

Kind = Literal["continuous", "discrete", "multi_discrete", "multi_binary"]


@dataclass(frozen=True)
class Spec:
    """Shape, dtype and admissible values of one named tensor, without its batch dimension.

    Attributes:
        shape: shape of one row: `()` for a scalar, `(4,)` for CartPole's observation.
        dtype: torch dtype that rlx stores (float64 observations are stored as float32).
        kind: `continuous` (numbers, images included), `discrete` (one of `nvec[0]` values, from 0), `multi_discrete`
            (`nvec[i]` values at place i, in row-major order of `shape`), `multi_binary` (zeros and ones).
        nvec: the numbers of values of a `discrete` or `multi_discrete` kind, else empty.
        low: least value at each place, row-major, or empty where unbounded or not continuous.
        high: greatest value, likewise.
        frame_stack_axis: axis of `shape` along which frames are stacked, the newest last; None for no stack.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind = "continuous"
    nvec: tuple[int, ...] = ()
    low: tuple[float, ...] = field(default=(), repr=False)
    high: tuple[float, ...] = field(default=(), repr=False)
    frame_stack_axis: int | None = None

    @property
    def numel(self) -> int:
        """Return the number of values in one row."""
        return int(torch.Size(self.shape).numel())

    @property
    def num_bytes(self) -> int:
        """Return the bytes of one row."""
        return self.numel * self.dtype.itemsize

    def zeros(self, *batch: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Return zeros `[*batch, *shape]` of this dtype."""
        return torch.zeros((*batch, *self.shape), dtype=self.dtype, device=device)

    def to_dict(self) -> dict[str, Any]:
        """Return this spec as JSON-ready data; `from_dict` reads it back."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kind": self.kind,
            "nvec": list(self.nvec),
            "low": list(self.low),
            "high": list(self.high),
            "frame_stack_axis": self.frame_stack_axis,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Spec":
        """Return the spec that `to_dict` wrote.

        Raises:
            SpecError: the dtype is no torch dtype.
        """
        dtype = getattr(torch, str(data["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise SpecError(f"{data['dtype']!r} is no torch dtype")
        return cls(
            shape=tuple(data["shape"]),
            dtype=dtype,
            kind=data["kind"],
            nvec=tuple(data["nvec"]),
            low=tuple(data["low"]),
            high=tuple(data["high"]),
            frame_stack_axis=data["frame_stack_axis"],
        )


@dataclass(frozen=True)
class EnvSpecs:
    """What an environment shows and takes: all that an agent is built from.

    Attributes:
        observation: `{"obs": Spec}`, or `{"obs/camera": ..., "obs/arm/joint": ...}` for nested spaces.
        action: `{"action": Spec}`, or `{"action/<key>": ...}` for nested spaces.
    """

    observation: dict[str, Spec]
    action: dict[str, Spec]

    def to_dict(self) -> dict[str, Any]:
        """Return these specs as JSON-ready data; `from_dict` reads it back."""
        return {
            "observation": {key: spec.to_dict() for key, spec in self.observation.items()},
            "action": {key: spec.to_dict() for key, spec in self.action.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EnvSpecs":
        """Return the specs that `to_dict` wrote."""
        return cls(
            observation={key: Spec.from_dict(value) for key, value in data["observation"].items()},
            action={key: Spec.from_dict(value) for key, value in data["action"].items()},
        )

"""Random numbers for batched environments: a stream a row, the same on every device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood 2014), in torch's signed integers, which wrap around as unsigned ones do.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


class RandomRows:
    """B streams of random numbers, each with its own seed and its own count of draws.

    A number is a function of its row's seed and count alone. So a row's numbers do not depend on what other rows draw,
    nor on the device, and nothing is copied to the host. Rows that were never seeded follow torch's global seed.

    Args:
        num_rows: number of streams, B.
        device: where the numbers are wanted.
    """

    def __init__(self, num_rows: int, device: torch.device | str = "cpu") -> None:
        begin = torch.initial_seed() % 2**62
        self._keys = torch.arange(begin, begin + num_rows, dtype=torch.int64).to(device)
        self._counts = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        """Begin the streams of some rows again.

        Args:
            rows: which rows.
            seeds: one for each of `rows`, in [0, 2**62); None leaves its row as it is.
        """
        given = [(row, seed) for row, seed in zip(rows, seeds, strict=True) if seed is not None]
        if given:
            places = [row for row, _ in given]
            self._keys[places] = torch.tensor([seed for _, seed in given], device=self._keys.device)
            self._counts[places] = 0

    def get_state(self) -> dict[str, Tensor]:
        """Return each stream's seed and count."""
        return {"keys": self._keys.clone(), "counts": self._counts.clone()}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `get_state` of as many streams returned."""
        self._keys.copy_(state["keys"])
        self._counts.copy_(state["counts"])

    def uniform(self, rows: Tensor, numbers: int) -> Tensor:
        """Return `[numbers, B]` float64 in [0, 1); the streams of the rows that are false in `rows` stand still.

        Args:
            rows: `[B]` bool, the rows that draw; what others get means nothing.
            numbers: how many numbers a row.
        """
        places = torch.arange(1, numbers + 1, device=self._keys.device).unsqueeze(1)
        drawn = _mix(_mix(self._keys) + (self._counts + places) * _GOLDEN)
        self._counts += rows * numbers
        return ((drawn >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(value: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64 values: each bit of the answer depends on all bits of the value."""
    value = (value ^ _shifted(value, 30)) * _MIX_1
    value = (value ^ _shifted(value, 27)) * _MIX_2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Return `value >> bits` with zeros, where torch repeats the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)

"""Memory that the learner and its workers see at once, and the named blocks laid out in it."""

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.errors import RlxError

ALIGNMENT = 64  # a cache line: workers never write to the same one
ADVICE = "lower algo.num_steps, batcher.num_workers or batcher.envs_per_worker"
"""What to do where there is no room."""


@dataclass(frozen=True)
class Block:
    """A named tensor inside a `Memory`: where it begins, its shape and dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Return the bytes it takes, without alignment."""
        return math.prod(self.shape) * self.dtype.itemsize


def lay_out(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]], start: int = 0) -> tuple[dict[str, Block], int]:
    """Place tensors one after the other, each aligned to a cache line.

    Args:
        tensors: shape and dtype by name.
        start: byte at which to begin.

    Returns:
        The blocks by name, and the byte after the last of them (aligned).
    """
    blocks: dict[str, Block] = {}
    offset = _align(start)
    for name, (shape, dtype) in tensors.items():
        block = Block(offset, shape, dtype)
        blocks[name] = block
        offset = _align(offset + block.num_bytes)
    return blocks, offset


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


class Memory:
    """Bytes shared between processes through an anonymous file: nothing to clean up, whoever dies.

    Attributes:
        num_bytes: its size.
        device: where it lies.
    """

    device = torch.device("cpu")

    def __init__(self, num_bytes: int, *, descriptor: int | None = None) -> None:
        """Create new zeroed memory, or map the one behind `descriptor` (which is then owned by this object).

        Pages take room only when `reserve` or a first write asks for them.
        """
        self.num_bytes = max(num_bytes, mmap.PAGESIZE)
        if descriptor is None:
            descriptor = anonymous_file()
            os.ftruncate(descriptor, self.num_bytes)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, self.num_bytes)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def reserve(self, start: int, end: int) -> None:
        """Make sure that bytes `start` to `end` are backed by real memory, now rather than by a SIGBUS at a write.

        Raises:
            RlxError: there is not that much memory.
        """
        if end <= start or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self.descriptor, start, end - start)
        except OSError as error:
            raise RlxError(
                f"no room for {(end - start) / 2**20:.0f} MiB of shared memory ({error.strerror}): {ADVICE}"
            ) from error

    def tensor(self, block: Block) -> Tensor:
        """Return the tensor at `block`: a view, whoever writes to it."""
        data = self._bytes[block.offset : block.offset + block.num_bytes]
        return data.view(block.dtype).view(block.shape)

    def bytes_between(self, start: int, end: int) -> NDArray[np.uint8]:
        """Return a part of it as bytes: a view."""
        return self._bytes[start:end].numpy()

    def close(self) -> None:
        """Give the descriptor back; the pages go when the last tensor on them is gone."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class DeviceMemory(Memory):
    """Memory on an accelerator, for this process alone."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Allocate zeroed memory.

        Raises:
            RlxError: there is not that much.
        """
        self.num_bytes, self.descriptor, self.device = num_bytes, -1, device
        try:
            self._bytes = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            raise RlxError(
                f"no room for {num_bytes / 2**20:.0f} MiB on {device}: lower algo.num_steps or batcher.envs_per_worker"
            ) from None

    def reserve(self, start: int, end: int) -> None:
        """Do nothing: all of it is there."""


def anonymous_file() -> int:
    """Return the descriptor of a new empty file without a name: it is gone with its last descriptor and mapping."""
    if sys.platform == "linux":
        return os.memfd_create("rlx", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

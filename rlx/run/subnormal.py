"""Subnormal numbers, in float32 those below 1.2e-38, with which a processor computes forty times slower, as zero."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch

_LEAST_NORMAL = sys.float_info.min


@contextmanager
def subnormals_as_zero() -> Generator[None]:
    """Read and write subnormal numbers as zero within, in this thread; environments and agents outside keep theirs.

    Adam's moments need it. Where a unit is dead its gradient is zero, and its moments fall by a tenth at each update
    until they are subnormal, and stay so: nine tenths of the least number there is are rounded up to it again.

    Torch's other threads do as this one only after `prepare_threads`. Where the processor cannot, nothing happens.
    """
    before = _LEAST_NORMAL * 0.5 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def prepare_threads() -> None:
    """Start torch's threads, as many as `torch.set_num_threads` said, such that they take subnormal numbers for zero.

    A thread takes that over from the one that starts it, and torch starts its own when they are first needed.
    """
    with subnormals_as_zero():
        torch.zeros(2**15 * torch.get_num_threads()).add_(1.0)  # of which each takes 2^15

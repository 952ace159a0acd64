"""What batchers have open."""

import os
from contextlib import suppress


def open_blocks() -> int:
    """Return how many blocks of shared memory this process has open."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            found += "memfd:rlx" in os.readlink(f"/proc/self/fd/{entry}")
    return found

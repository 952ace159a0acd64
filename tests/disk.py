"""A disk that is full, for what writes in the tests' own process."""

import resource
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def full_disk(limit: int = 0) -> Generator[None]:
    """Let no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

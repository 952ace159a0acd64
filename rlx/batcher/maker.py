"""How an algorithm is handed its batcher."""

from typing import Any, Protocol

from rlx.batcher.batcher import Batcher


class BatcherMaker(Protocol):
    """How an algorithm makes its batcher: agent, environments, workers and seed are settled."""

    def __call__(self, *, num_steps: int, **settings: Any) -> Batcher:
        """Return a batcher of pieces of `num_steps` steps; `settings` are others of `Batcher`, such as `seed`."""
        ...

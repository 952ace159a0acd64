"""Floor 4: many agents in many environments over processes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.batcher.batcher import Batcher as Batcher
    from rlx.batcher.batcher import BatcherMaker as BatcherMaker

__all__ = ["Batcher", "BatcherMaker"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `rlx.batcher.start` must be importable without torch.
    if name in __all__:
        from rlx.batcher import batcher

        return getattr(batcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

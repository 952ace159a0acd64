"""Floor 4: many agents in many environments over processes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.batcher.batcher import Batcher as Batcher
    from rlx.batcher.episodes import EpisodeBatcher as EpisodeBatcher
    from rlx.batcher.maker import BatcherMaker as BatcherMaker
    from rlx.batcher.sampler import Info as Info
    from rlx.batcher.sampler import Sampler as Sampler

__all__ = ["Batcher", "BatcherMaker", "EpisodeBatcher", "Info", "Sampler"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `rlx.batcher.start` must be importable without torch.
    if name == "BatcherMaker":
        from rlx.batcher.maker import BatcherMaker

        return BatcherMaker
    if name == "EpisodeBatcher":
        from rlx.batcher.episodes import EpisodeBatcher

        return EpisodeBatcher
    if name in ("Info", "Sampler"):
        from rlx.batcher import sampler

        return getattr(sampler, name)
    if name in __all__:
        from rlx.batcher import batcher

        return getattr(batcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

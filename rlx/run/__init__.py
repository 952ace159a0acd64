"""Floor 5: runs: the run directory, metrics and where they go, checkpoints, signals, evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.run.ranks import Ranks as Ranks
    from rlx.run.ranks import StdMean as StdMean
    from rlx.run.run import Run as Run

__all__ = ["Ranks", "Run", "StdMean"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: reading a run's files must not cost an import of torch.
    if name == "Run":
        from rlx.run.run import Run

        return Run
    if name in __all__:
        from rlx.run import ranks

        return getattr(ranks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

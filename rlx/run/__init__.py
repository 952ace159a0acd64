"""Floor 5: runs: the run directory, metrics and where they go, checkpoints, signals, evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.run.batches import load_batch, save_batch
    from rlx.run.evaluate import EvaluationResult, Evaluator
    from rlx.run.options import RunOptions
    from rlx.run.policy import Policy, load_policy
    from rlx.run.ranks import Ranks, StdMean
    from rlx.run.run import Run

_HOMES = {
    "EvaluationResult": "evaluate",
    "Evaluator": "evaluate",
    "Policy": "policy",
    "Ranks": "ranks",
    "Run": "run",
    "RunOptions": "options",
    "StdMean": "ranks",
    "load_batch": "batches",
    "load_policy": "policy",
    "save_batch": "batches",
}

__all__ = [
    "EvaluationResult",
    "Evaluator",
    "Policy",
    "Ranks",
    "Run",
    "RunOptions",
    "StdMean",
    "load_batch",
    "load_policy",
    "save_batch",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: reading a run's files must not cost an import of torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"rlx.run.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return __all__

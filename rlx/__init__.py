"""rlx: a command-line experiment toolkit for reinforcement learning, and the small library under it.

The names below are imported when they are first used, so that `import rlx` costs nothing: the command line answers
`--help` without torch, and worker processes import only what they need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor
    from rlx.errors import RlxError

__version__ = "0.1.0"

_HOMES = {
    "DictTensor": "rlx.data",
    "EnvSpecs": "rlx.data",
    "RlxError": "rlx.errors",
    "Spec": "rlx.data",
    "TemporalDictTensor": "rlx.data",
}

__all__ = ["DictTensor", "EnvSpecs", "RlxError", "Spec", "TemporalDictTensor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlx' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted(__all__)

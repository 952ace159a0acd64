"""What a run is made of, as a checkpoint holds it: how each kind of thing gives its state and takes it back."""

import random
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from rlx.batcher.batcher import Batcher
from rlx.errors import CheckpointError, SpecError, UserError
from rlx.run.state import encode


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimisers, schedules, replay buffers, further batchers."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides the future."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over what `state_dict` of another one of the same make returned."""
        ...


Tracked = Stateful | torch.Generator | dict[str, Any] | Tensor
"""What a run can keep track of; a dictionary of an algorithm's own counters, or a tensor, is changed in place."""


_RESERVED = ("run",)
"""Names in a checkpoint that are the run's own; `agent` and `batcher` are parameters of `Run.track`."""


def check_tracked(agent: object, batcher: object, others: Mapping[str, object]) -> None:
    """Refuse what `Run.track` cannot keep track of, before anything is written.

    Raises:
        UserError: there is no agent or no batcher, or something cannot be kept in a checkpoint; names it.
    """
    if not isinstance(agent, nn.Module):
        raise UserError(f"run.track(agent=...): got {_kind(agent)}, expected the agent, a torch module")
    if batcher is None:
        raise UserError(
            "run.track(batcher=...): got None, expected what make_batcher made: a run that collects nothing has one, "
            "too, since specs, weights that are published and evaluations go by it"
        )
    for name, value in others.items():
        if name in _RESERVED:
            raise UserError(f"run.track({name}=...): this name is the run's own in a checkpoint; give another one")
        if isinstance(value, dict):
            encode(value, {}, name)
        elif not isinstance(value, torch.Generator | Tensor) and not (
            callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
        ):
            raise UserError(
                f"run.track({name}=...): got {_kind(value)}, expected something with state_dict and load_state_dict, a "
                "torch.Generator, or a tensor or a dictionary of numbers that is changed in place"
            )
        elif isinstance(value, Batcher) and not value.num_bytes:
            raise UserError(
                f"run.track({name}=...): got a batcher without weights, whose workers have no state yet; expected one "
                "that was given some by publish(), before run.track()"
            )


def state_of(value: Tracked, *, between_pieces: bool = True) -> dict[str, Any]:
    """Return a thing's state; tensors may be its own. Little, of a batcher that is not between two pieces."""
    if isinstance(value, torch.Generator):
        return {"generator": value.get_state()}
    if isinstance(value, Tensor):
        return {"tensor": value.detach()}
    if isinstance(value, Batcher):
        return value.state_dict(between_pieces=between_pieces)
    return dict(value) if isinstance(value, dict) else value.state_dict()


def check_fits(name: str, value: Tracked, state: Any) -> None:
    """Check that a state can be taken over: the same fields, of the same shapes and kinds.

    Args:
        name: of the thing, for messages.
        value: whose state it is to become.
        state: out of a checkpoint.

    Raises:
        CheckpointError: names the first field that differs, and what it is on either side.
    """
    own = state_of(value)
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: the checkpoint has none")
    saved = cast("dict[str, Any]", state)
    for key in [*own, *(key for key in saved if key not in own)]:
        here, there = (_shown(side[key]) if key in side else "missing" for side in (own, saved))
        if here != there:
            raise CheckpointError(f"{name}.{key} is {there} in the checkpoint and {here} in this run")


def load_into(name: str, value: Tracked, state: dict[str, Any]) -> None:
    """Let a thing take over a state that fits it.

    Raises:
        CheckpointError: it does not, where that shows in the doing only.
    """
    try:
        if isinstance(value, torch.Generator):
            value.set_state(state["generator"])
        elif isinstance(value, Tensor):
            value.detach().copy_(state["tensor"])
        elif isinstance(value, dict):
            value.update(state)
        else:
            value.load_state_dict(state)
    except (SpecError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{name} cannot take over what the checkpoint holds: {error!r}") from error


def seed_global_generators(seed: int) -> None:
    """Seed this process's own generators, which an algorithm or what it calls may draw from.

    Args:
        seed: >= 0.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_generators() -> dict[str, Any]:
    """Return the states of this process's own generators: Python's, NumPy's, torch's on the CPU and on every GPU."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_global_generators(state: Mapping[str, Any]) -> bool:
    """Take them over; return whether all found their place: a GPU's needs that GPU."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    cuda = state["cuda"]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
        return True
    return not cuda


def _kind(value: object) -> str:
    return "None" if value is None else f"{value!r} ({type(value).__name__})"[:120]


def _shown(value: Any) -> str:
    """Return what has to agree of a field: a tensor's shape and dtype, else its kind."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__

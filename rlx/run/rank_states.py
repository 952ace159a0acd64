"""One checkpoint of several ranks: what is the same on all is in it once, what is a rank's own once for each.

    {"agent": ..., "optimizer": ..., "batcher": rank 0's, ..., "ranks": {"1": {"batcher": rank 1's, ...}, ...}}

So a checkpoint of several ranks holds, at its top, what one of a single process does.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from rlx.errors import CheckpointError, RankError
from rlx.run.ranks import Ranks
from rlx.run.state import decode, encode

RANKS = "ranks"
_LENGTH = 8


def gather_states(ranks: Ranks, state: dict[str, Any], same: Collection[str]) -> dict[str, Any] | None:
    """Return the state of all ranks, on rank 0; None elsewhere.

    Args:
        ranks: all of which call this.
        state: this rank's, by name; the same names on all.
        same: names of what has to be the same on all ranks: modules.

    Raises:
        RankError: it is not.
    """
    if ranks.size == 1:
        return state
    packed = {name: pack(value) for name, value in state.items()}
    digests = torch.tensor([_digest(data) for data in packed.values()])
    found = ranks.gather(digests)
    differ = {name for place, name in enumerate(packed) if bool((found[:, place] != found[0, place]).any())}
    wrong = [name for name in packed if name in differ and name in same]
    if wrong:
        column = list(packed).index(wrong[0])
        rank = int((found[:, column] != found[0, column]).nonzero()[0])
        raise RankError(
            f"rank {rank} has another '{wrong[0]}' than rank 0: the ranks have drifted apart, and nothing is saved. "
            "Each update has to call run.average_gradients(module, samples), with all that it moves in one module, "
            "before anything looks at the gradients; and what a module holds of data, such as moments, is that of all "
            "ranks, by run.ranks.gather"
        )
    own = b"" if ranks.rank == 0 else pack({name: state[name] for name in packed if name in differ})
    others = ranks.collect(own)
    if ranks.rank:
        return None
    return state | {RANKS: {str(rank): unpack(data) for rank, data in enumerate(others) if rank}}


def state_of_rank(state: Mapping[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return one rank's part of a checkpoint's state.

    Args:
        state: of a checkpoint.
        rank: whose.
        size: how many ranks there are now.

    Raises:
        CheckpointError: it was written by another number of ranks.
    """
    others = cast("dict[str, dict[str, Any]]", state.get(RANKS, {}))
    written = len(others) + 1
    if written != size:
        how = "without torchrun" if written == 1 else f"by torchrun or srun with {written} processes"
        raise CheckpointError(
            f"resume: the checkpoint is of {written} rank{'s' * (written > 1)}, and this is one of {size}: what each "
            f"rank's environments and generators hold fits that number only; start it {how}"
        )
    return {name: value for name, value in state.items() if name != RANKS} | (others[str(rank)] if rank else {})


def pack(value: Any) -> bytes:
    """Return a state as bytes: JSON, and tensors as safetensors."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encode(value, tensors)).encode()
    return len(text).to_bytes(_LENGTH, "little") + text + safetensors.torch.save(tensors)


def unpack(data: bytes) -> Any:
    """Return the state that `pack` made bytes of."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    return decode(json.loads(data[_LENGTH:end]), safetensors.torch.load(data[end:]))


def _digest(data: bytes) -> int:
    """Return a hash that fits a tensor of int64."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)

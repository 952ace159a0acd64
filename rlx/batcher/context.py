"""The steps before a piece, of the episodes that go on in it: what an agent that reads its history has to see again.

They are worked out once a piece, at its end. No step pays for them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlx.agent.agent import Agent
from rlx.batcher.slots import Slot
from rlx.data import EnvSpecs, Spec, TemporalDictTensor


def context_specs(agent: Agent, specs: EnvSpecs, outputs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Return the fields of a step of context: the agent's inputs under `env/`, its outputs under `agent/`.

    Args:
        agent: the agent that acts; none for a `history_length` of 0.
        specs: of the environments.
        outputs: what the agent's `act` returns, by name.
    """
    if not agent.history_length:
        return {}
    seen = dict(specs.observation) | {f"prev_{key}": spec for key, spec in specs.action.items()}
    seen |= {"prev_reward": Spec((), torch.float32), "is_first": Spec((), torch.bool)}
    fields = {f"env/{key}": spec for key, spec in seen.items() if key.split("/")[0] in agent.inputs}
    return fields | {f"agent/{key}": spec for key, spec in outputs.items()}


class Context:
    """Up to C steps before the next piece, of each row's own episode, C being the agent's `history_length`.

    Attributes:
        steps: `[B, C]`, in order of time from the first place on; views of memory that `advance` overwrites.
    """

    def __init__(self, slot: Slot) -> None:
        """Allocate it, as large as the context that `slot` holds; no step is in it."""
        self._fields = {key: torch.zeros_like(value) for key, value in slot.context.items()}
        self._lengths = torch.zeros_like(slot.length)
        self._rows = torch.arange(len(self._lengths), device=self._lengths.device)
        self._size = slot.layout.history_length
        self._order = torch.arange(self._size, device=self._lengths.device).unsqueeze(1)
        views = {key: value.transpose(0, 1) for key, value in self._fields.items()}
        self.steps = TemporalDictTensor.trusted(views, self._lengths, self._size)

    def get_state(self) -> dict[str, Any]:
        """Return the steps, `[C, B, ...]`, zero where there are none, and how many there are of each row."""
        empty = self._order >= self._lengths
        fields = {key: value.masked_fill(_like(empty, value), 0) for key, value in self._fields.items()}
        return {"fields": fields, "lengths": self._lengths}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what another one held."""
        for key, value in self._fields.items():
            value.copy_(state["fields"][key])
        self._lengths.copy_(state["lengths"])

    def clear(self) -> None:
        """Leave no step in it: new episodes begin."""
        self._lengths.zero_()

    def write(self, slot: Slot) -> None:
        """Copy the steps to where the learner finds them, with the piece that follows them."""
        for key, value in slot.context.items():
            value.copy_(self._fields[key])
        slot.context_length.copy_(self._lengths)

    def advance(self, slot: Slot) -> None:
        """Go on to the end of the piece that `slot` holds, its lengths included.

        What is kept are the last steps of the episode that goes on; they may reach back into the old context.
        """
        counts, before, rows = slot.length, self._lengths, self._rows
        ended = slot.terminated | slot.truncated
        is_first = torch.cat([slot.is_first.unsqueeze(0), ended[:-1]])
        time = torch.arange(len(ended), device=ended.device).unsqueeze(1)
        begun = torch.where(is_first & (time < counts), time, -1).amax(0)  # -1: the episode began before the piece
        over = ended[(counts - 1).clamp(min=0), rows] & (counts > 0)
        # Places count through the old context and on through the piece.
        start = torch.where(begun >= 0, before + begun, 0)
        lengths = (before + counts - start).clamp(max=self._size).masked_fill(over, 0)
        place = before + counts - lengths + self._order
        in_piece = place >= before
        time = (place - before).clamp(0, len(ended) - 1)
        place = place.clamp(0, self._size - 1)
        for key, old in self._fields.items():
            new = _at(slot, key, time, rows, is_first)
            old.copy_(torch.where(_like(in_piece, new), new, old[place, rows]))
        self._lengths.copy_(lengths)


def _at(slot: Slot, key: str, time: Tensor, rows: Tensor, is_first: Tensor) -> Tensor:
    """Return a field `[C, B, ...]` of the piece in `slot` at the steps `time` `[C, B]`."""
    group, name = key.split("/", 1)
    if group == "agent":
        return slot.outputs[name][time, rows]
    if name == "is_first":
        return is_first[time, rows]
    if name in slot.obs:
        return slot.obs[name][time, rows]
    source = name.removeprefix("prev_")
    first, values = (
        (slot.prev_reward, slot.reward) if name == "prev_reward" else (slot.prev_action[source], slot.outputs[source])
    )
    found = values[(time - 1).clamp(min=0), rows]
    found = torch.where(_like(time == 0, found), first, found)
    return torch.where(_like(is_first[time, rows], found), torch.zeros_like(found), found)


def _like(mask: Tensor, values: Tensor) -> Tensor:
    """Return `mask` `[C, B]` as `[C, B, 1, ...]`, to choose among `values` `[C, B, ...]`."""
    return mask.view(*mask.shape, *[1] * (values.dim() - mask.dim()))

"""The blocks of a slot: which tensors hold a piece of experience, and the views that workers and learner have of them.

A slot holds one piece: T steps of B environments, time first, so that a worker that owns some columns writes rows of
memory. Observations have T + 1 places: the one after the last step is where the next piece begins. Final observations
of episodes that end inside the piece lie apart, as many as there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlx.batcher.memory import ADVICE, Block, DeviceMemory, Memory, lay_out
from rlx.data import EnvSpecs, Spec
from rlx.data.storage import check_room
from rlx.errors import RlxError

NUM_SLOTS = 2


@dataclass(frozen=True)
class Layout:
    """What the blocks hold and where they lie.

    Attributes:
        num_steps: T.
        num_envs: B, over all workers.
        specs: of the environments.
        outputs: what the agent's `act` returns, without the batch dimension, by name.
        state: the agent's state, likewise.
        context: the fields of a step of context, likewise; none for most agents.
        history_length: C, the most steps of context.
        sampled: what samplers draw for each episode, likewise, by `agent_info/...` and `env_info/...`.
        slots: for each slot, the blocks by name: `obs...`, `agent/...`, `reward`, `terminated`, `truncated`, `length`,
            `is_first`, `prev_reward`, `prev_action...`, `agent_state/...`, `context/...`, `context_length`,
            `sampled/...`, `final/row`, `final/time`, `final/obs...`.
        weights: the two blocks of the agent's parameters and buffers, flat bytes.
        num_bytes: size of the whole memory.
        finals_start: byte at which the blocks of final observations begin: from here memory is reserved as it is used.
        first_row: index of the first of these environments among all workers'; not 0 in a worker's own memory.
    """

    num_steps: int
    num_envs: int
    specs: EnvSpecs
    outputs: dict[str, Spec]
    state: dict[str, Spec]
    context: dict[str, Spec]
    history_length: int
    sampled: dict[str, Spec]
    slots: tuple[dict[str, Block], ...]
    weights: tuple[Block, ...]
    num_bytes: int
    finals_start: int
    first_row: int = 0

    @classmethod
    def plan(
        cls,
        num_steps: int,
        num_envs: int,
        specs: EnvSpecs,
        outputs: Mapping[str, Spec],
        state: Mapping[str, Spec],
        weight_bytes: int,
        *,
        context: Mapping[str, Spec],
        history_length: int,
        sampled: Mapping[str, Spec],
    ) -> "Layout":
        """Place every block of both slots and both sets of weights in one memory."""
        steps, rows = num_steps, num_envs
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        finals: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "final/row": ((steps * rows,), torch.int64),
            "final/time": ((steps * rows,), torch.int64),
        }
        for key, spec in specs.observation.items():
            wanted[key] = ((steps + 1, rows, *spec.shape), spec.dtype)
            finals[f"final/{key}"] = ((steps * rows, *spec.shape), spec.dtype)
        for key, spec in outputs.items():
            wanted[f"agent/{key}"] = ((steps, rows, *spec.shape), spec.dtype)
        wanted["reward"] = ((steps, rows), torch.float32)
        wanted["terminated"] = ((steps, rows), torch.bool)
        wanted["truncated"] = ((steps, rows), torch.bool)
        wanted["length"] = ((rows,), torch.int64)
        wanted["is_first"] = ((rows,), torch.bool)
        wanted["prev_reward"] = ((rows,), torch.float32)
        for key, spec in specs.action.items():
            wanted[f"prev_{key}"] = ((rows, *spec.shape), spec.dtype)
        for key, spec in state.items():
            wanted[f"agent_state/{key}"] = ((rows, *spec.shape), spec.dtype)
        for key, spec in context.items():
            wanted[f"context/{key}"] = ((history_length, rows, *spec.shape), spec.dtype)
        if history_length:
            wanted["context_length"] = ((rows,), torch.int64)
        for key, spec in sampled.items():
            wanted[f"sampled/{key}"] = ((steps, rows, *spec.shape), spec.dtype)

        offset = 0
        kept: list[dict[str, Block]] = []
        for _ in range(NUM_SLOTS):
            blocks, offset = lay_out(wanted, offset)
            kept.append(blocks)
        weights, offset = lay_out({str(copy): ((weight_bytes,), torch.uint8) for copy in range(2)}, offset)
        finals_start = offset
        for slot in kept:
            blocks, offset = lay_out(finals, offset)
            slot.update(blocks)
        return cls(
            num_steps=num_steps,
            num_envs=num_envs,
            specs=specs,
            outputs=dict(outputs),
            state=dict(state),
            context=dict(context),
            history_length=history_length,
            sampled=dict(sampled),
            slots=tuple(kept),
            weights=tuple(weights.values()),
            num_bytes=offset,
            finals_start=finals_start,
        )

    def narrowed(self, columns: slice) -> "Layout":
        """Return the layout of one worker's environments alone, for a memory of its own on another machine."""
        narrow = Layout.plan(
            self.num_steps,
            columns.stop - columns.start,
            self.specs,
            self.outputs,
            self.state,
            self.weights[0].num_bytes,
            context=self.context,
            history_length=self.history_length,
            sampled=self.sampled,
        )
        return replace(narrow, first_row=columns.start)

    def allocate(self, device: torch.device) -> Memory:
        """Return memory for all that a batcher holds, where its workers write: shared, or on their accelerator.

        Raises:
            RlxError: there is not that much.
        """
        if device.type != "cpu":
            return DeviceMemory(self.num_bytes, device)
        check_room(  # before any of it is taken: the kernel may give more than there is, and end somebody for it
            self.finals_start,
            f"experience of {self.num_steps:,} steps of {self.num_envs:,} environments",
            advice=ADVICE,
        )
        memory = Memory(self.num_bytes)
        try:
            memory.reserve(0, self.finals_start)
        except RlxError:
            memory.close()
            raise
        return memory

    def bytes_by_block(self) -> dict[str, int]:
        """Return what the memory is made of: each field's bytes in all slots, the `weights`, and the `alignment`.

        A field takes slots x T x B x the bytes of its spec; observations T + 1, and as many final ones as there are
        steps, of which memory is used only for those that occur.
        """
        found: dict[str, int] = {}
        for slot in self.slots:
            for name, block in slot.items():
                found[name] = found.get(name, 0) + block.num_bytes
        found["weights"] = sum(block.num_bytes for block in self.weights)
        found["alignment"] = self.num_bytes - sum(found.values())
        return found


class Slot:
    """One slot's tensors, whole or the columns of one worker.

    Attributes:
        fields: all of them by name, but for the final observations.
        finals: those, by name: as many rows as there are steps.
    """

    def __init__(self, layout: Layout, memory: Memory, index: int, columns: slice | None = None) -> None:
        """View slot `index`; `columns` are a worker's environments among all workers' (None for all of the layout)."""
        self.layout = layout
        self.memory = memory
        first = layout.first_row
        columns = slice(0, layout.num_envs) if columns is None else slice(columns.start - first, columns.stop - first)
        blocks = layout.slots[index]
        self.blocks = blocks
        self.fields: dict[str, Tensor] = {}

        def steps(name: str) -> Tensor:
            return self.fields.setdefault(name, memory.tensor(blocks[name])[:, columns])

        def rows(name: str) -> Tensor:
            return self.fields.setdefault(name, memory.tensor(blocks[name])[columns])

        finals = slice(layout.num_steps * columns.start, layout.num_steps * columns.stop)
        specs = layout.specs
        self.obs = {key: steps(key) for key in specs.observation}
        self.outputs = {key: steps(f"agent/{key}") for key in layout.outputs}
        self.reward, self.terminated, self.truncated = steps("reward"), steps("terminated"), steps("truncated")
        self.length, self.is_first, self.prev_reward = rows("length"), rows("is_first"), rows("prev_reward")
        self.prev_action = {key: rows(f"prev_{key}") for key in specs.action}
        self.state = {key: rows(f"agent_state/{key}") for key in layout.state}
        self.context = {key: steps(f"context/{key}") for key in layout.context}
        self.sampled = {key: steps(f"sampled/{key}") for key in layout.sampled}
        self.context_length = rows("context_length") if layout.history_length else self.length[:0]
        self.final_row = memory.tensor(blocks["final/row"])[finals]
        self.final_time = memory.tensor(blocks["final/time"])[finals]
        self.final_obs = {key: memory.tensor(blocks[f"final/{key}"])[finals] for key in specs.observation}
        self.finals = {"final/row": self.final_row, "final/time": self.final_time}
        self.finals |= {f"final/{key}": value for key, value in self.final_obs.items()}
        self._finals_start = finals.start
        self._reserved = 0

    def reserve_finals(self, count: int) -> None:
        """Make sure that `count` final observations of these columns fit into real memory."""
        if count <= self._reserved:
            return
        capacity = min(len(self.final_row), max(count, 2 * self._reserved, 16))
        for name in self.finals:
            block = self.blocks[name]
            row_bytes = block.num_bytes // max(1, block.shape[0])
            start = block.offset + self._finals_start * row_bytes
            self.memory.reserve(start, start + capacity * row_bytes)
        self._reserved = capacity


def views_of(tensor: Tensor) -> list[Tensor]:
    """Return the T rows of a `[T, ...]` tensor as views, so that no step pays for indexing."""
    return list(tensor.unbind(0))

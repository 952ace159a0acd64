"""An agent's states as they were when pieces began: where the sequences of recurrent agents may begin."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.data.rings import Array, Index, Written, arrays
from rlx.data.spec import Spec
from rlx.data.storage import allocate
from rlx.data.trajectories import Trajectories


class StoredStates:
    """The states that the newest pieces began with (R2D2's stored state, Kapturowski et al. 2019).

    Attributes:
        num_pieces: of how many pieces they are kept: as many as the rings hold; 0 for an agent without a state.
        num_bytes: what they take.
    """

    def __init__(self, specs: Mapping[str, Spec], *, num_slots: int, num_envs: int, num_steps: int) -> None:
        """Lay them out; `allocate` takes the memory.

        Args:
            specs: the agent's state, by name; empty for none.
            num_slots: slots of the rings, of all environments.
            num_envs: environments, B.
            num_steps: steps of each piece that will be added.
        """
        self._specs, self._num_envs = dict(specs), num_envs
        self._num_slots = num_slots if specs else 0
        self.num_pieces = -(-num_slots // num_envs // max(1, num_steps)) + 2 if specs else 0
        self._count = self.num_pieces * num_envs
        self.num_bytes = self._num_slots * 4 + self._count * (8 + sum(spec.num_bytes for spec in specs.values()))
        self._memory: dict[str, Array] = {}
        self._state_of = np.zeros(0, np.int32)  # of each slot; -1: none is known
        self._slot_of = np.zeros(0, np.int64)  # of each state, the slot that it is of
        self._num_kept = 0  # pieces so far

    def allocate(self) -> None:
        """Take the memory."""
        self._memory = arrays(allocate(self._specs, self._count))
        self._state_of = np.full(self._num_slots, -1, np.int32)
        self._slot_of = np.full(self._count, -1, np.int64)

    def keep(self, trajectories: Trajectories, written: Written, is_first: Array) -> Index:
        """Keep the states that a piece began with.

        Args:
            trajectories: the piece.
            written: where it went.
            is_first: `[num_slots]` bool, the slots at which an episode begins.

        Returns:
            The slots whose states made room: no sequence may begin there.
        """
        self._state_of[written.slots] = -1
        kept = (self._num_kept % self.num_pieces) * self._num_envs + written.rows
        known = self._slot_of[kept] >= 0
        stale, its_state = self._slot_of[kept[known]], kept[known]
        stale = stale[(self._state_of[stale] == its_state) & ~is_first[stale]]
        for key, memory in self._memory.items():
            memory[kept] = trajectories.info[f"agent_state/{key}"].detach().cpu().numpy()[written.rows]
        self._state_of[written.first], self._slot_of[kept] = kept, written.first
        self._num_kept += 1
        return stale

    def of(self, slots: Index) -> dict[str, Tensor]:
        """Return the states `[N, ...]` at some slots, as `info` has them; any, where an episode begins there."""
        if not self.num_pieces:
            return {}
        kept = self._state_of[slots].clip(0)
        return {f"agent_state/{key}": torch.from_numpy(memory[kept]) for key, memory in self._memory.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept."""
        return {
            "states": {name: torch.from_numpy(memory) for name, memory in self._memory.items()},
            "state_of": torch.from_numpy(self._state_of),
            "slot_of_state": torch.from_numpy(self._slot_of),
            "num_pieces": self._num_kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what others of the same sizes held."""
        self._state_of[:] = state["state_of"].numpy()
        self._slot_of[:] = state["slot_of_state"].numpy()
        for name, memory in self._memory.items():
            memory[:] = state["states"][name].numpy()
        self._num_kept = state["num_pieces"]

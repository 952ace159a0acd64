"""From a slot that the workers have written to the Trajectories that the learner reads: views, no copies."""

import torch
from torch import Tensor

from rlx.batcher.rollout import PieceReport
from rlx.batcher.sampler import Info
from rlx.batcher.slots import Slot
from rlx.data import DictTensor, Lazy, TemporalDictTensor, Trajectories
from rlx.errors import DataRevokedError

HANDED_BACK = (
    "these trajectories were handed back to the workers by a later get(); "
    "use them before it, or keep trajectories.clone()"
)


class SlotReader:
    """Makes Trajectories of one slot, again and again; the views are made once."""

    def __init__(self, slot: Slot, columns: list[slice]) -> None:
        """Prepare the views.

        Args:
            slot: all columns.
            columns: which of them each worker writes, in the order of the reports.
        """
        self._slot = slot
        self._columns = columns
        steps = slot.layout.num_steps
        self._views: dict[str, Tensor | Lazy] = {
            f"env/{key}": value[:steps].transpose(0, 1) for key, value in slot.obs.items()
        }
        self._views |= {f"agent/{key}": value.transpose(0, 1) for key, value in slot.outputs.items()}
        self._views |= {
            "next/reward": slot.reward.transpose(0, 1),
            "next/terminated": slot.terminated.transpose(0, 1),
            "next/truncated": slot.truncated.transpose(0, 1),
        }
        self._views |= {key: value.transpose(0, 1) for key, value in slot.sampled.items()}
        self._device = slot.reward.device
        self._rows = torch.arange(slot.layout.num_envs, device=self._device)
        self._context = {key: value.transpose(0, 1) for key, value in slot.context.items()}
        self._context_length = slot.context_length if self._context else torch.zeros_like(slot.length)

    def read(
        self, reports: list[PieceReport], agent_info: Info, env_info: Info, version: int | None = None
    ) -> Trajectories:
        """Return what the slot holds now; valid until `revoke` is called on it.

        What samplers drew is a field of each step; `info` has what each sequence began with. `version` is that of the
        weights, where the steps are to carry it.
        """
        slot = self._slot
        piece = _Reading(slot, self._columns, [report.num_finals for report in reports])
        fields = dict(self._views)
        for key in slot.obs:
            fields[f"next/{key}"] = Lazy(lambda key=key: piece.next_obs(key))
        if version is not None:
            fields["agent/policy_version"] = torch.tensor(version, device=self._device).expand(slot.reward.T.shape)
        fields["env/is_first"] = Lazy(piece.is_first)
        fields["env/prev_reward"] = Lazy(lambda: piece.shifted(slot.prev_reward, slot.reward))
        for key, first in slot.prev_action.items():
            fields[f"env/prev_{key}"] = Lazy(lambda key=key, first=first: piece.shifted(first, slot.outputs[key]))
        # Lengths are copied: they are no field, and stay what they were when the piece is handed back.
        steps = TemporalDictTensor.trusted(fields, slot.length.clone(), slot.layout.num_steps)
        info = DictTensor.trusted({key: value[0] for key, value in slot.sampled.items()}, slot.layout.num_envs)
        for name, given in (("agent_info", agent_info), ("env_info", env_info)):
            if isinstance(given, DictTensor) and not given.is_empty:
                info = info | given.add_prefix(name)
        if slot.state:
            info = info | DictTensor.trusted(
                {f"agent_state/{key}": value for key, value in slot.state.items()}, slot.layout.num_envs
            )
        num_steps = sum(report.num_steps for report in reports)
        longest = slot.layout.history_length if self._context else 0
        context = TemporalDictTensor.trusted(dict(self._context), self._context_length.clone(), longest)
        return Trajectories(
            info, steps, lambda: self._bootstrap(piece), context, num_steps=num_steps, on_revoke=piece.revoke
        )

    def _bootstrap(self, piece: "_Reading") -> DictTensor:
        slot, rows = self._slot, self._rows
        last = slot.length - 1
        place = last.clamp(min=0)
        ended = slot.terminated[place, rows] | slot.truncated[place, rows]
        running = rows[(last >= 0) & ~ended]
        finals = piece.finals
        cut = slot.truncated[finals["time"], finals["row"]] & ~slot.terminated[finals["time"], finals["row"]]
        row = torch.cat([running, finals["row"][cut]])
        time = torch.cat([last[running], finals["time"][cut]])
        fields: dict[str, Tensor | Lazy] = {"row": row, "time": time}
        for key, value in slot.obs.items():
            fields[key] = torch.cat([value[last[running] + 1, running], finals[key][cut]])
        fields["is_first"] = torch.zeros(len(row), dtype=torch.bool, device=self._device)
        fields["prev_reward"] = Lazy(lambda: piece.at(slot.reward, time, row))
        for key in slot.prev_action:
            fields[f"prev_{key}"] = Lazy(lambda key=key: piece.at(slot.outputs[key], time, row))
        return DictTensor.trusted(fields, len(row))


class _Reading:
    """What is built only when it is asked for, from one piece in one slot."""

    def __init__(self, slot: Slot, columns: list[slice], num_finals: list[int]) -> None:
        self.slot = slot
        self._revoked = ""  # why
        self._finals: DictTensor | None = None
        self._columns, self._num_finals = columns, num_finals

    @property
    def finals(self) -> DictTensor:
        """The final observations of all workers, `[K]`, with the `row` and `time` of the step that they follow."""
        self._check()
        if self._finals is None:
            self._finals = self._gather_finals()
        return self._finals

    def _gather_finals(self) -> DictTensor:
        slot, columns, num_finals = self.slot, self._columns, self._num_finals
        starts = [slot.layout.num_steps * column.start for column in columns]
        counts = list(zip(starts, num_finals, strict=True))

        def gather(value: Tensor) -> Tensor:
            return torch.cat([value[start : start + count] for start, count in counts])

        finals = {"row": gather(slot.final_row), "time": gather(slot.final_time)}
        finals |= {key: gather(value) for key, value in slot.final_obs.items()}
        return DictTensor.trusted(finals, len(finals["row"]))

    def revoke(self, message: str) -> None:
        self._revoked = message

    def _check(self) -> None:
        if self._revoked:
            raise DataRevokedError(self._revoked)

    def at(self, values: Tensor, time: Tensor, row: Tensor) -> Tensor:
        """Return the values `[K, ...]` of some steps."""
        self._check()
        return values[time, row]

    def next_obs(self, key: str) -> Tensor:
        self._check()
        following = self.slot.obs[key][1:].transpose(0, 1).clone()
        if any(self._num_finals):
            following[self.finals["row"], self.finals["time"]] = self.finals[key]
        return following

    def is_first(self) -> Tensor:
        self._check()
        ended = self.slot.terminated | self.slot.truncated
        return torch.cat([self.slot.is_first.unsqueeze(0), ended[:-1]]).transpose(0, 1)

    def shifted(self, first: Tensor, values: Tensor) -> Tensor:
        """Return the value of the step before, zero where an episode begins."""
        before = torch.cat([first.unsqueeze(0), values[:-1]]).transpose(0, 1).clone()
        before[self.is_first()] = 0
        return before

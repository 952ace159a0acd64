"""The same rollout where everything lives on one accelerator: environments, agent and pieces of one process.

No step asks the device for an answer, as long as the environments reset their rows at the next step: the host only
orders work, and runs ahead. What is worked out at a piece's end is worked out there too; the host learns how many
episodes ended, and which.
"""

from typing import Any

import torch
from torch import Tensor

from rlx.batcher.episode_log import EpisodeLog
from rlx.batcher.pieces import Mask, Piece, drop_flags_of_resets
from rlx.batcher.rollout import Rollout
from rlx.env.vec_env import Autoreset


class DevicePiece(Piece):
    """A piece whose memory is worked on by torch alone."""

    @staticmethod
    def array(tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def keep_finals(self, t: int, rows: list[int], first_row: int) -> None:
        """Copy the final observations of the episodes that ended at step t; see `Piece.keep_finals`."""
        buffer = self.buffers[t]
        source = buffer.obs if buffer.final_obs is None else buffer.final_obs
        place = torch.tensor(rows, dtype=torch.int64, device=buffer.reward.device)
        self.add_finals(torch.full_like(place, t), place + first_row, {key: obs[place] for key, obs in source.items()})


class DeviceRollout(Rollout):
    """A rollout whose slots lie on the environments' own device."""

    piece = DevicePiece

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Prepare; arguments as those of `Rollout`."""
        super().__init__(*args, **kwargs)
        device = self._is_first.device
        self._returns = torch.zeros(self.env.num_envs, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(self.env.num_envs, dtype=torch.int64, device=device)

    def _work_out(self, piece: Piece, num_calls: int, started: Mask) -> tuple[int, EpisodeLog]:
        """Do the same as on the host; see `Rollout._work_out`."""
        slot = piece.slot
        ended = (slot.terminated | slot.truncated)[:num_calls]
        valid: Tensor | None = None
        if self.env.autoreset is Autoreset.NEXT_STEP:
            drop_flags_of_resets(ended, piece.resetting_at_start)
            resetting = torch.cat([piece.resetting_at_start.unsqueeze(0), ended])
            self._resetting.copy_(resetting[-1])
            valid = ~resetting[:-1]
        if num_calls and not self._looks_back:
            self._is_first.copy_(ended[-1] if valid is None else ~valid[-1])
        begun = torch.from_numpy(started).to(ended.device)
        slot.length.copy_(begun * num_calls)
        if self.stop and num_calls:
            counted = ended if valid is None else ended & valid
            before_end = counted.cumsum(0) - ended.long() == 0
            valid = (before_end if valid is None else before_end & valid) & begun
        rewards = torch.as_tensor(piece.raw_rewards[:num_calls], device=ended.device)
        episodes = tally(rewards, ended, valid, self._returns, self._lengths, self.first_row)
        if valid is not None:
            compact(piece, valid, ended, num_calls, self.first_row)
        return int(slot.length.sum()), episodes


def tally(
    rewards: Tensor, ended: Tensor, valid: Tensor | None, returns: Tensor, lengths: Tensor, first_row: int
) -> EpisodeLog:
    """Return the episodes that ended, in order of time, and carry the others on; see `rlx.batcher.pieces.tally`.

    Args:
        rewards: `[T, B]`.
        ended: `[T, B]` bool.
        valid: `[T, B]` bool, which calls are steps; None for all.
        returns: `[B]` float64, of the episodes that go on: read, then updated in place.
        lengths: `[B]` int64, likewise.
        first_row: index of the first environment among all workers'.
    """
    num_steps = len(rewards)
    if not num_steps:
        return EpisodeLog()
    if valid is None:
        valid = torch.ones_like(ended)
    ends = (ended & valid).T.flatten()
    begins = torch.cat([ends.new_ones(1), ends])
    begins[::num_steps] = True
    places = begins.nonzero().flatten()
    first, last = places[:-1], places[1:] - 1
    sizes, goes_on, row = last - first + 1, first % num_steps == 0, first // num_steps
    paid, counted = (
        torch.segment_reduce(values.T.double().flatten(), "sum", lengths=sizes)
        for values in (rewards.masked_fill(~valid, 0), valid)
    )
    paid = paid + returns[row].masked_fill(~goes_on, 0)
    counted = counted.long() + lengths[row].masked_fill(~goes_on, 0)
    over = ends[last]
    tail = last % num_steps == num_steps - 1  # one a row
    returns.copy_(paid[tail].masked_fill(over[tail], 0))
    lengths.copy_(counted[tail].masked_fill(over[tail], 0))
    done = over.nonzero().flatten()
    done = done[torch.argsort(last[done] % num_steps, stable=True)]
    found = torch.stack([(row[done] + first_row).double(), paid[done], counted[done].double()])
    return EpisodeLog(*found.numpy(force=True))  # in one copy


def compact(piece: Piece, valid: Tensor, ended: Tensor, num_calls: int, first_row: int) -> None:
    """Close the gaps that calls without a transition left, and write the lengths; see `rlx.batcher.pieces.compact`.

    Args:
        piece: what was written, one entry a call.
        valid: `[T, B]` bool, which calls are steps.
        ended: `[T, B]` bool, terminated or truncated.
        num_calls: how many of the T calls were made.
        first_row: index of the first environment among all workers'.
    """
    slot, size = piece.slot, valid.shape[1]
    position = valid.cumsum(0) - 1
    lengths = valid.sum(0)
    slot.length.copy_(lengths)
    if piece.finals_by_call:
        times, rows = (ended & valid).nonzero(as_tuple=True)
        finals = {key: value[times + 1, rows] for key, value in slot.obs.items()}
        piece.num_finals = 0
        piece.add_finals(position[times, rows], rows + first_row, finals)
    if not bool((valid[1:] & ~valid[:-1]).any()):
        return
    row = torch.arange(size, device=valid.device)
    source = torch.arange(valid.numel(), device=valid.device)
    source[(position * size + row)[valid]] = valid.flatten().nonzero().flatten()
    last_call = source[(lengths - 1).clamp(min=0) * size + row] // size
    for block in (*slot.outputs.values(), *slot.sampled.values(), slot.reward, slot.terminated, slot.truncated):
        _gather(block[:num_calls], source)
    for block in slot.obs.values():
        following = block[last_call + 1, row]
        _gather(block[:num_calls], source)
        block[lengths, row] = following


def _gather(block: Tensor, source: Tensor) -> None:
    """Put at each place of a block `[T, B, ...]` what was at place `source` `[T * B]` of it."""
    block.copy_(block.flatten(0, 1)[source].view(block.shape))

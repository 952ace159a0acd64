"""One worker's part of a slot, prepared for the rollout loop, and what is worked out of it at its end."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.batcher.episode_log import EpisodeLog
from rlx.batcher.slots import Slot, views_of
from rlx.data import DictTensor
from rlx.env.vec_env import Autoreset, StepBuffer, StepFields, VecEnv

Mask = NDArray[np.bool_]
Array = NDArray[Any]
Indices = NDArray[np.int64]
Places = Indices | Tensor

_LARGE = 4096
"""Bytes of one row's field from which moving steps one by one is faster than all at once, by way of a copy."""


class Piece:
    """A slot's columns with a view for every step, so that no step pays for indexing.

    Attributes:
        num_steps: T.
        observations: `[T]`, what the agent sees at each step.
        outputs: `[T]`, for each step where the agent's outputs go, by name.
        actions: `[T]`, the views of the environment's action.
        buffers: `[T]`, where the environment's answers go; the observation to the place after the step.
        raw_rewards: `[T, B]`, what the bare environment paid.
        num_finals: final observations kept so far.
        finals_by_call: whether the final observations are found among the calls' own (NEXT_STEP environments).
        resetting_at_start: `[B]` bool tensor, rows whose first call is a reset.
    """

    def __init__(self, slot: Slot, env: VecEnv, extra: Mapping[str, Tensor]) -> None:
        """Prepare the views of `slot`; `extra` are the fields that the agent sees besides the observation."""
        self.slot = slot
        self.num_steps = len(slot.reward)
        self.num_finals = 0
        self.finals_by_call = env.autoreset is Autoreset.NEXT_STEP
        self.resetting_at_start = torch.zeros_like(slot.is_first)
        steps = range(self.num_steps)
        obs = {key: views_of(value) for key, value in slot.obs.items()}
        outputs = {key: views_of(value) for key, value in slot.outputs.items()}
        reward, terminated, truncated = map(views_of, (slot.reward, slot.terminated, slot.truncated))
        self.observations = [
            DictTensor.trusted({**{key: views[t] for key, views in obs.items()}, **extra}, env.num_envs) for t in steps
        ]
        self.outputs = [StepFields({key: views[t] for key, views in outputs.items()}) for t in steps]
        self.actions = [StepFields({key: outputs[key][t] for key in env.specs.action}) for t in steps]
        raw = np.zeros((self.num_steps, env.num_envs)) if env.raw_reward else None
        final = env.allocate().final_obs if env.autoreset is Autoreset.SAME_STEP else None
        self.buffers = [
            StepBuffer(
                {key: views[t + 1] for key, views in obs.items()},
                reward[t],
                terminated[t],
                truncated[t],
                final_obs=final,
                raw_reward_np=None if raw is None else raw[t],
            )
            for t in steps
        ]
        self.raw_rewards = self.array(slot.reward) if raw is None else raw
        self._final_row, self._final_time = self.array(slot.final_row), self.array(slot.final_time)
        self._final_obs = {key: self.array(value) for key, value in slot.final_obs.items()}

    @staticmethod
    def array(tensor: Tensor) -> Any:
        """Return the same memory in the form in which this piece is worked on: here an array."""
        return tensor.numpy()

    def keep_finals(self, t: int, rows: list[int], first_row: int) -> None:
        """Copy the final observations of the episodes that ended at step t, before a reset overwrites them."""
        buffer = self.buffers[t]
        source = buffer.obs_np if buffer.final_obs is None else buffer.final_obs_np
        place = self.num_finals
        self.slot.reserve_finals(place + len(rows))
        final_rows, final_times = self._final_row, self._final_time
        for row in rows:
            final_rows[place] = first_row + row
            final_times[place] = t
            for key, value in source.items():
                self._final_obs[key][place] = value[row]
            place += 1
        self.num_finals = place

    def add_finals(self, times: Places, rows: Places, obs: Mapping[str, Tensor]) -> None:
        """Write final observations `[N, ...]`, and which step of which row they follow."""
        place = slice(self.num_finals, self.num_finals + len(rows))
        self.slot.reserve_finals(place.stop)
        self._final_row[place] = rows
        self._final_time[place] = times
        for key, value in obs.items():
            self.slot.final_obs[key][place] = value
        self.num_finals = place.stop


def drop_flags_of_resets(ended: Any, resetting_at_start: Any) -> None:
    """Clear, in place, the end flags of calls that were resets: they mean nothing, whatever the environment left there.

    Args:
        ended: `[T, B]` bool, array or tensor: terminated or truncated at each call of a NEXT_STEP environment.
        resetting_at_start: `[B]` bool, rows whose first call is a reset.
    """
    if not ((ended[1:] & ended[:-1]).any() | (ended[:1] & resetting_at_start).any()):
        return  # as environments have it: no flag at the call behind an end
    before = resetting_at_start
    for flags in ended:
        flags &= ~before
        before = flags


@np.errstate(invalid="ignore")  # infinities of both signs
def tally(
    rewards: NDArray[np.floating],
    ended: Mask,
    valid: Mask | None,
    returns: NDArray[np.float64],
    lengths: NDArray[np.int64],
    first_row: int,
) -> EpisodeLog:
    """Return the episodes that ended, in order of time, and carry the others' return and length on.

    Args:
        rewards: `[T, B]`.
        ended: `[T, B]`, terminated or truncated.
        valid: `[T, B]`, which calls are steps; None for all.
        returns: `[B]`, of the episodes that go on: read, then updated in place.
        lengths: `[B]`, likewise.
        first_row: index of the first environment among all workers'.
    """
    num_steps, size = rewards.shape
    if not num_steps:
        return EpisodeLog()
    if valid is not None:
        rewards, ended = np.where(valid, rewards, rewards.dtype.type(0)), ended & valid
    paid_by_step = rewards.T.astype(np.float64, order="C").ravel()
    if not ended.any():  # most pieces, where they are short
        returns += np.add.reduceat(paid_by_step, np.arange(0, num_steps * size, num_steps, dtype=np.int64))
        lengths += num_steps if valid is None else valid.sum(0)
        return EpisodeLog()
    # Row after row: what belongs to one episode lies together, and is summed by itself, so that a reward which is not
    # finite counts for its own episode alone.
    ends = ended.T.ravel()
    begins = np.empty(ends.size + 1, dtype=np.bool_)
    begins[0] = True
    begins[1:] = ends
    begins[::num_steps] = True
    places = np.flatnonzero(begins)
    first, last = places[:-1], places[1:] - 1
    paid = np.add.reduceat(paid_by_step, first)
    counted = last - first + 1 if valid is None else np.add.reduceat(valid.T.ravel(), first, dtype=np.int64)
    goes_on = first % num_steps == 0
    paid[goes_on] += returns
    counted[goes_on] += lengths
    row, over = first // num_steps, ends[last]
    returns[:], lengths[:] = 0.0, 0
    returns[row[~over]], lengths[row[~over]] = paid[~over], counted[~over]
    done = np.flatnonzero(over)
    time = last[done] % num_steps
    if num_steps <= 2**16:
        time = time.astype(np.uint16)  # sorted digit by digit: a quarter of the time
    done = done[np.argsort(time, kind="stable")]
    return EpisodeLog(row[done] + first_row, paid[done], counted[done])


def compact(piece: Piece, valid: Mask, ended: Mask, num_calls: int, first_row: int) -> NDArray[np.int64]:
    """Close the gaps that calls without a transition left, so that each row's steps are contiguous; return the lengths.

    Rows whose valid calls come first already (an episode that stopped) are not moved. Where the environment resets at
    the next step, the observation before such a call is a final one: it is kept here.

    Args:
        piece: what was written, one entry a call.
        valid: `[T, B]`, which calls are steps.
        ended: `[T, B]`, terminated or truncated.
        num_calls: how many of the T calls were made.
        first_row: index of the first environment among all workers'.
    """
    slot = piece.slot
    lengths = valid.sum(axis=0)
    position = valid.astype(np.int32).cumsum(axis=0, dtype=np.int32) - 1  # a fifth of the time that int64 takes
    if piece.finals_by_call:
        times, rows = np.divmod(np.flatnonzero(ended & valid), valid.shape[1])  # a sixth of the time of `nonzero`
        finals = {key: torch.from_numpy(value.numpy()[times + 1, rows]) for key, value in slot.obs.items()}
        piece.num_finals = 0
        piece.add_finals(position[times, rows], rows + first_row, finals)
    if not (valid[1:] & ~valid[:-1]).any():
        return lengths
    # Where each step comes from, as places in [T * B]; what lies behind a row's last step stays what it was. The
    # observation after that step follows the call, whatever came later.
    size = valid.shape[1]
    row = np.arange(size, dtype=np.int64)
    source = np.arange(valid.size)
    source[(position * size + row)[valid]] = np.flatnonzero(valid)
    moved = source != np.arange(valid.size)
    few = 2 * np.count_nonzero(moved) < moved.size
    target = np.divmod(np.flatnonzero(moved), size) if few else None
    last_call = source[np.maximum(lengths - 1, 0) * size + row] // size
    for block in (*slot.outputs.values(), *slot.sampled.values(), slot.reward, slot.terminated, slot.truncated):
        _gather(block.numpy()[:num_calls], source, target)
    for block in slot.obs.values():
        values = block.numpy()
        following = values[last_call + 1, row]
        _gather(values[:num_calls], source, target)
        values[lengths, row] = following
    return lengths


def _gather(block: Array, source: Indices, target: tuple[Indices, Indices] | None) -> None:
    """Put at each place of a block `[T, B, ...]` what was at place `source` `[T * B]` of it.

    `target` are the times and rows of the places that change, where these are few: the others are not touched.
    """
    size = block.shape[1]
    if target is not None:
        origin = np.divmod(source.reshape(-1, size)[target], size)
        if len(target[0]) and block[0, 0].nbytes >= _LARGE:
            # One by one, in order of time: a step moves to an earlier place, which has moved on already.
            for place, came_from in zip(zip(*target, strict=True), zip(*origin, strict=True), strict=True):
                block[place] = block[came_from]
        else:
            block[target] = block[origin]
    else:
        flat = block.reshape(len(source), *block.shape[2:])  # not -1: a part of the observation may hold nothing
        block[...] = flat.take(source, axis=0).reshape(block.shape)

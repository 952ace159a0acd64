"""What is looked at before a piece is handed over: numbers that are not finite, actions that there are not, and masks.

Everything is looked at once a piece, in whole blocks. Only where something is wrong is it worked out where and when.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.agent.agent import Agent
from rlx.batcher.rollout import PieceReport
from rlx.batcher.slots import Slot
from rlx.data import DictTensor, Spec, find_mask, masked_action
from rlx.env.vec_env import Autoreset, VecEnv
from rlx.errors import AgentError, EnvironmentFault, RlxError

Counts = NDArray[np.int64]

_ALLOWS_NOTHING = "expected zeros and ones, and an action that is allowed"


@dataclass(frozen=True)
class _Finding:
    """One number that is wrong: in which row, at which place of the piece, and what of that step it is."""

    time: int
    order: int  # within a step: what is seen, what is done, what is paid, what is seen at the episode's end
    row: int
    field: str
    value: Any
    why: str


class PieceCheck:
    """Checks one worker's pieces, and counts episodes and steps so that what it finds can be found again."""

    def __init__(self, env: VecEnv, slots: list[Slot], *, first_row: int, seeds: list[int], stop: bool) -> None:
        """Prepare; nothing is looked at.

        Args:
            env: the worker's environments.
            slots: their columns of each slot.
            first_row: index of the first environment among all workers'.
            seeds: `[B]`, the reset seed of each environment.
            stop: whether each environment does one episode and waits (stop mode).

        Raises:
            SpecError: the environments show which actions are allowed in a form that does not fit them.
        """
        self._mask = find_mask(env.specs)
        self._choices = [] if self._mask is None else [*env.specs.action[masked_action(env.specs.action)].nvec]
        self._env, self._slots, self._first_row, self._seeds, self._stop = env, slots, first_row, seeds, stop
        self._episodes: Counts = np.zeros(env.num_envs, dtype=np.int64)  # begun since the seed
        self._steps: Counts = np.zeros(env.num_envs, dtype=np.int64)  # of the episode that goes on

    def seed_again(self, seeds: list[int]) -> None:
        """Note that the environments' next reset brings these seeds."""
        self._seeds = seeds
        self._episodes[:] = 0

    def begin_episodes(self) -> None:
        """Note that every environment was reset."""
        self._episodes += 1
        self._steps[:] = 0

    def get_state(self) -> dict[str, Any]:
        """Return what messages count: episodes since the seed, and steps of those that go on."""
        return {"episodes": self._episodes, "steps": self._steps}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over the counts of another one."""
        self._episodes[:], self._steps[:] = state["episodes"], state["steps"]

    def check(self, index: int, report: PieceReport) -> None:
        """Look at the finished piece in slot `index`, then count its steps and episodes.

        Raises:
            EnvironmentFault: an observation or a reward is not finite, or no action was allowed.
            AgentError: an action is not finite, or none of those that there are.
        """
        slot = self._slots[index]
        if self._suspicious(slot, report.num_finals):
            lengths = slot.length.numpy(force=True)
            self._raise_first(slot, lengths, lengths, report.num_finals, gaps=False, masks=True)
        self._steps += slot.length.numpy(force=True)
        if report.episodes:
            rows = report.episodes.rows - self._first_row
            np.subtract.at(self._steps, rows, report.episodes.lengths)
            if not self._stop:
                np.add.at(self._episodes, rows, 1)

    def blame(self, index: int, calls: int) -> None:
        """Look for what made call `calls` of the piece in slot `index` fail: an exception is often only what follows.

        Raises:
            EnvironmentFault: an observation or a reward before it is not finite, or no action was allowed.
            AgentError: an action up to it is not finite, or none of those that there are.
        """
        done = np.full(self._env.num_envs, calls, dtype=np.int64)
        gaps = self._env.autoreset is Autoreset.NEXT_STEP
        # Not all of these calls need be steps: behind an episode's end, nothing has to be allowed.
        self._raise_first(self._slots[index], done, done + 1, 0, gaps=gaps, masks=not gaps and not self._stop)

    def _suspicious(self, slot: Slot, num_finals: int) -> bool:
        actions = self._env.specs.action.items()
        return (
            any(_has_unfit(block) for block in (*slot.obs.values(), slot.reward))
            or (self._mask is not None and bool(_no_mask(slot.obs[self._mask], self._choices).any()))
            or any(_has_unfit(slot.outputs[key], spec) for key, spec in actions)
            or (num_finals > 0 and any(_has_unfit(block[:num_finals]) for block in slot.final_obs.values()))
            or (num_finals > 0 and bool(self._final_masks(slot, num_finals).any()))
        )

    def _final_masks(self, slot: Slot, num_finals: int) -> Tensor:
        """Return which final observations allow nothing though their episode only ran out of time, `[K]` bool."""
        if self._mask is None:
            return torch.zeros(num_finals, dtype=torch.bool)
        time, row = slot.final_time[:num_finals], slot.final_row[:num_finals] - self._first_row
        return _no_mask(slot.final_obs[self._mask][:num_finals], self._choices) & ~slot.terminated[time, row]

    def _raise_first(
        self, slot: Slot, paid: Counts, acted: Counts, num_finals: int, *, gaps: bool, masks: bool
    ) -> None:
        """Raise what is wrong first; `[B]`: how many rewards and actions of each row count."""
        found: list[_Finding] = []
        for key, block in slot.obs.items():
            found += _first(block, paid + 1, 0, key, None)
        if self._mask is not None and masks:
            block = slot.obs[self._mask]
            counted = torch.arange(len(block))[:, None] < torch.from_numpy(acted)
            for time, row in _places(_no_mask(block, self._choices).cpu() & counted)[:1]:
                found.append(_Finding(time, 0, row, self._mask, block[time, row], _ALLOWS_NOTHING))
        if self._mask is not None:
            for (place,) in _places(self._final_masks(slot, num_finals)):
                row, value = int(slot.final_row[place]) - self._first_row, slot.final_obs[self._mask][place]
                name = f"the final {self._mask}"
                found.append(_Finding(int(slot.final_time[place]), 3, row, name, value, _ALLOWS_NOTHING))
        for key, spec in self._env.specs.action.items():
            found += _first(slot.outputs[key], acted, 1, key, spec)
        found += _first(slot.reward, paid, 2, "reward", None)
        for key, block in slot.final_obs.items():
            for place, *_ in _places(_unfit(block[:num_finals], None)):
                row = int(slot.final_row[place]) - self._first_row
                found.append(
                    _Finding(int(slot.final_time[place]), 3, row, f"the final {key}", block[place], "not finite")
                )
        if found:
            raise self._error(slot, min(found, key=lambda finding: (finding.time, finding.order)), gaps=gaps)

    def _error(self, slot: Slot, finding: _Finding, *, gaps: bool) -> RlxError:
        time, row = finding.time, finding.row
        ended = [place[0] for place in _places((slot.terminated | slot.truncated)[:time, row])]
        step = time - ended[-1] - 1 - gaps if ended else int(self._steps[row]) + time
        where = (
            f"environment {self._first_row + row} (reset seed {self._seeds[row]}, "
            f"episode {int(self._episodes[row]) + len(ended)}, step {max(0, step) + (finding.order > 0)})"
        )
        shown = np.array2string(finding.value.numpy(force=True), threshold=16, separator=", ")
        what = f"{finding.field} is {shown} ({finding.why})"
        passes = " batcher.check_finite=false lets it pass."
        if finding.order == 1:
            return AgentError(f"the agent's {what} for {where} of {self._env.name}.{passes}")
        return EnvironmentFault(f"{self._env.name}: {what} in {where}.{passes}")


def check_outputs(agent: Agent, specs: Mapping[str, Spec], num_envs: int, first_row: int) -> None:
    """Have `agent.act` refuse outputs of another shape or dtype than the first ones had.

    They would be broadcast or cast into the memory that was laid out for those. Agents that write there by themselves
    (`act_into`) pay nothing.

    Args:
        agent: the agent that acts; this one object's `act` is replaced.
        specs: what its first answer looked like, without the batch dimension.
        num_envs: number of rows, B.
        first_row: index of the first environment among all workers'.
    """
    act, name = agent.act, type(agent).__name__
    expected = [(key, torch.Size((num_envs, *spec.shape)), spec.dtype) for key, spec in specs.items()]

    def checked_act(outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        taken = act(outputs, agent_info, generator)
        for key, shape, dtype in expected:
            value = taken[key]
            if value.shape != shape or value.dtype is not dtype:
                raise AgentError(
                    f"{name}.act() for environments {first_row} to {first_row + num_envs - 1}: {key!r} is "
                    f"{value.dtype} of shape {list(value.shape)}, its first answer was {dtype} of shape {list(shape)}"
                )
        return taken

    setattr(agent, "act", checked_act)  # noqa: B010  (a type checker would take it for a mistake)


def _has_unfit(block: Tensor, spec: Spec | None = None) -> bool:
    """Return whether any number is not finite, or no action of `spec`, at the least cost."""
    if block.dtype.is_floating_point:
        if block.device.type != "cpu" or block.dtype is torch.bfloat16:
            return not bool(torch.isfinite(block).all())
        return not np.isfinite(block.numpy()).all()  # a quarter of the time that torch takes
    if spec is None or spec.kind == "continuous" or not block.numel():  # a Box of integers is clipped, as any Box
        return False
    least, greatest = torch.aminmax(block)
    return int(least) < 0 or int(greatest) >= min(spec.nvec, default=2)


def _no_mask(mask: Tensor, choices: list[int]) -> Tensor:
    """Return which masks allow nothing, or hold other numbers than 0 and 1, `[...]` bool.

    Args:
        mask: `[..., n]`.
        choices: the numbers of values of the action's choices, n in all: each must have one that is allowed.
    """
    wrong = (mask != 0).logical_and_(mask != 1).any(-1)
    for choice in cast("tuple[Tensor, ...]", mask.split(choices, -1)):
        wrong |= (choice == 0).all(-1)
    return wrong


def _unfit(block: Tensor, spec: Spec | None) -> Tensor:
    """Return which numbers are not finite, or no action of `spec`, as bool of the shape of `block`."""
    if block.dtype.is_floating_point:
        return ~torch.isfinite(block)
    if spec is None or spec.kind == "continuous":
        return torch.zeros_like(block, dtype=torch.bool)
    most = torch.tensor(spec.nvec or 2, device=block.device)
    return (block < 0) | (block >= (most.reshape(spec.shape) if spec.nvec else most))


def _first(block: Tensor, counts: Counts, order: int, field: str, spec: Spec | None) -> list[_Finding]:
    """Return the first number `[T, B, ...]` that is unfit, among the first `counts` `[B]` of each row."""
    times = torch.arange(len(block), device=block.device)
    counted = times[:, None] < torch.from_numpy(counts).to(block.device)
    places = (_unfit(block, spec).flatten(start_dim=2).any(-1) if block.ndim > 2 else _unfit(block, spec)) & counted
    if not places.any():
        return []
    time, row = _places(places)[0]
    why = "not finite" if block.dtype.is_floating_point else "out of range"
    if spec is not None and spec.kind == "discrete":
        why = f"expected 0 to {spec.nvec[0] - 1}"
    return [_Finding(time, order, row, field, block[time, row], why)]


def _places(mask: Tensor) -> list[list[int]]:
    """Return the indices of the true entries, one list an entry."""
    return cast("list[list[int]]", mask.nonzero().tolist())

"""The rollout loop: one agent stepping some environments and writing what happens into a slot. There is no other."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlx.agent.agent import Agent, may_be_any, reset_state
from rlx.batcher.context import Context
from rlx.batcher.episode_log import EpisodeLog
from rlx.batcher.heartbeat import CALLS, NUM_WORDS, RESETS, STOP, Words
from rlx.batcher.journal import Journal
from rlx.batcher.pieces import Mask, Piece, compact, drop_flags_of_resets, tally
from rlx.batcher.sampler import Drawn, rows_like
from rlx.batcher.slots import Slot
from rlx.data import DictTensor
from rlx.env.fault import RAISED, asked, environment_fault, raised
from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv
from rlx.errors import RlxError

Seeds = Sequence[int | None] | None


@dataclass
class PieceReport:
    """What a worker tells about a piece that it wrote.

    Attributes:
        num_steps: valid steps.
        num_running: in stop mode, the environments whose episode goes on; otherwise all of them.
        num_finals: final observations written.
        episodes: the episodes that ended.
        cpu_seconds: CPU time that the piece took.
    """

    num_steps: int
    num_running: int
    num_finals: int
    episodes: EpisodeLog
    cpu_seconds: float = 0.0


class Rollout:
    """Steps `env` with `agent` and writes pieces into slots.

    Episodes follow one another without end, or, in stop mode, each environment does one episode and waits for the next
    `reset`. The loop does per step only what cannot wait; lengths, returns, validity and checks are worked out for the
    whole piece at its end.

    Attributes:
        piece: what prepares a slot for the loop.
    """

    piece = Piece

    def __init__(
        self,
        env: VecEnv,
        agent: Agent,
        slots: list[Slot],
        *,
        first_row: int,
        seeds: list[int],
        generator: torch.Generator,
        agent_info: DictTensor,
        env_info: DictTensor,
        stop_at_episode_end: bool,
        agent_drawn: Drawn | None = None,
        env_drawn: Drawn | None = None,
        words: Words | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Prepare the views of every step; nothing is stepped before `reset`.

        Args:
            env: B environments.
            agent: the agent that acts (`Agent.actor()`).
            slots: the columns of these environments in each slot.
            first_row: index of the first environment among all workers'.
            seeds: `[B]`, the reset seed of each environment.
            generator: source of the agent's draws.
            agent_info: `[B]`; empty for none.
            env_info: `[B]`, passed to every reset; empty for none.
            stop_at_episode_end: stop mode.
            agent_drawn: draws `agent_info` for each episode; None: it stays as given.
            env_drawn: likewise `env_info`.
            words: where the environments' calls are counted, and where it is said that the worker is to end.
            journal: gives the environments their seeds and notes what they go through; None: they keep their first one.
        """
        self.env, self.agent, self.generator = env, agent, generator
        self.agent_drawn, self.env_drawn = agent_drawn, env_drawn
        self.agent_info = agent_info if agent_drawn is None else agent_drawn.rows
        self.env_info = env_info if env_drawn is None else env_drawn.rows
        self.first_row, self.seeds = first_row, seeds
        self.stop = stop_at_episode_end
        self._words: Words = [0] * NUM_WORDS if words is None else words
        self.journal = journal
        size, device = env.num_envs, slots[0].reward.device
        self._next_obs = env.allocate()  # the observation with which the next piece begins
        self._state = agent.initial_state(self.agent_info, size)
        self._prev_action = {key: spec.zeros(size, device=device) for key, spec in env.specs.action.items()}
        self._prev_reward = torch.zeros(size, device=device)
        self._is_first = torch.ones(size, dtype=torch.bool, device=device)
        self._resetting = torch.zeros_like(self._is_first)  # NEXT_STEP: rows whose next call is a reset
        extra: dict[str, Tensor] = {}
        if "prev_action" in agent.inputs:
            extra |= {f"prev_{key}": value for key, value in self._prev_action.items()}
        if "prev_reward" in agent.inputs:
            extra["prev_reward"] = self._prev_reward
        if "is_first" in agent.inputs:
            extra["is_first"] = self._is_first
        self._looks_back = bool(extra) or not self._state.is_empty or agent.history_length > 0
        self._looks_back |= agent_drawn is not None
        self._context = Context(slots[0]) if agent.history_length else None
        self._recall_due = True  # what the agent derives from its history has to be worked out anew
        self._pieces = [self.piece(slot, env, extra) for slot in slots]
        self._running: Mask = np.ones(size, dtype=np.bool_)  # stop mode: all but those that have ended
        self._returns: Any = np.zeros(size, dtype=np.float64)  # of the episodes that go on
        self._lengths: Any = np.zeros(size, dtype=np.int64)
        self._seeded, self._total_steps = False, 0

    @torch.inference_mode()
    def reset(self) -> None:
        """Begin a new episode in every environment; the first reset seeds them, later ones go on from there."""
        for drawn in filter(None, (self.agent_drawn, self.env_drawn)):
            drawn.draw(range(self.env.num_envs))
        env_info, seeds = None if self.env_info.is_empty else self.env_info, None if self._seeded else self.seeds
        if self.journal is not None:
            seeds = self.journal.reset(range(self.env.num_envs), seeds, env_info)
        self._reset_env(self._next_obs, None, seeds, env_info)
        self._seeded = True
        if self.journal is not None:
            self.journal.saw(self._next_obs.obs)
        self._is_first.fill_(True)
        self._running[:] = True
        self._resetting.fill_(False)
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._state = self.agent.initial_state(self.agent_info, self.env.num_envs)
        if self._context is not None:
            self._context.clear()
            self._recall_due = True

    def seed_again(self, seeds: list[int], draws: tuple[int, int] | None) -> None:
        """Seed anew with the next reset: the environments, and the draws of the agent and of samplers (None: not)."""
        self.seeds, self._seeded = seeds, False
        if draws is not None:
            self.generator.manual_seed(draws[0])
            for drawn in filter(None, (self.agent_drawn, self.env_drawn)):
                drawn.seed_again(draws[1])

    def get_state(self) -> dict[str, Any]:
        """Return what the next piece depends on besides weights and environments; tensors that later steps change."""
        ended, rests = torch.from_numpy(~self._running), self.stop and self.env.row_step

        def now(values: Tensor) -> Tensor:
            """Leave out what means nothing: rows that wait, and are not stepped, show what lay in the memory before."""
            shape = -1, *[1] * (values.dim() - 1)
            return values.masked_fill(ended.to(values.device).view(shape), 0) if rests else values

        drawn = {"agent_info": self.agent_drawn, "env_info": self.env_drawn}
        given = {"agent_info": self.agent_info, "env_info": self.env_info}
        return {
            "obs": {key: now(value.cpu()) for key, value in self._next_obs.obs.items()},
            # What the agent derives from its history is worked out anew.
            "agent_state": {key: now(self._state[key]) for key in self._pieces[0].slot.state},
            "prev_action": {key: now(value) for key, value in self._prev_action.items()},
            "prev_reward": now(self._prev_reward),
            "is_first": self._is_first,
            "context": None if self._context is None else self._context.get_state(),
            "generator": self.generator.get_state(),
            "given": {key: dict(info.items()) for key, info in given.items() if drawn[key] is None},
            "drawn": {key: source.get_state() for key, source in drawn.items() if source is not None},
            "running": self._running,
            "resetting": self._resetting,
            "returns": self._returns,
            "lengths": self._lengths,
            "total_steps": self._total_steps,
        }

    @torch.inference_mode()
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what another rollout of the same make returned; the environments have to be where its own were."""
        drawn, context, memories = (state[name] for name in ("drawn", "context", "agent_state"))
        for key, value in self._next_obs.obs.items():
            value.copy_(state["obs"][key])
        remembered = {key: memories[key].to(self._is_first.device) for key in self._pieces[0].slot.state}
        self._state = DictTensor(remembered, self.env.num_envs)
        for key, value in self._prev_action.items():
            value.copy_(state["prev_action"][key])
        self._prev_reward.copy_(state["prev_reward"])
        self._is_first.copy_(state["is_first"])
        if self._context is not None:
            self._context.set_state(context)
        self._recall_due = True
        self.generator.set_state(state["generator"])
        if self.agent_drawn is not None:
            self.agent_drawn.set_state(drawn["agent_info"])
        else:
            self.agent_info = rows_like(self.agent_info, state["given"]["agent_info"])
        if self.env_drawn is not None:
            self.env_drawn.set_state(drawn["env_info"])
        else:
            self.env_info = rows_like(self.env_info, state["given"]["env_info"])
        self._running[:] = state["running"]
        self._resetting.copy_(torch.as_tensor(state["resetting"]))
        for name, values in (("returns", self._returns), ("lengths", self._lengths)):
            values[:] = torch.as_tensor(state[name])
        self._total_steps, self._seeded = state["total_steps"], True

    def leave_out(self, finished: Collection[int]) -> None:
        """Stop mode: let these rows wait for the next `reset`, as rows do whose one episode has ended."""
        self._running[list(finished)] = False

    def agent_changed(self) -> None:
        """Take note that the agent's weights or `agent_info` are others from the next piece on."""
        self._recall_due = True

    @torch.inference_mode()
    def run(self, index: int) -> PieceReport:
        """Write one piece into slot `index`.

        Raises:
            EnvironmentFault: an environment raised.
        """
        piece = self._pieces[index]
        self._begin(piece)
        started = self._running.copy()
        return self._finish(piece, self._step_all(piece), started)

    def _begin(self, piece: Piece) -> None:
        """Write what the piece begins with: first observations, and what the agent remembers."""
        slot = piece.slot
        for key, value in self._next_obs.obs.items():
            piece.observations[0][key].copy_(value)
        torch.logical_or(self._is_first, self._resetting, out=slot.is_first)
        self._state = reset_state(self.agent, self._state, self._is_first, self.agent_info)
        for key, value in slot.state.items():
            value.copy_(self._state[key])
        self._forget(self._is_first)
        for key, value in self._prev_action.items():
            slot.prev_action[key].copy_(value)
        slot.prev_reward.copy_(self._prev_reward)
        if self._context is not None:
            self._context.write(slot)
            if self._recall_due:
                self._state = self.agent.recall(self._context.steps, self._state, self.agent_info)
                self._recall_due = False
        for drawn in (self.agent_drawn, self.env_drawn):
            if drawn is not None:
                drawn.write(slot.sampled, 0)
        piece.num_finals = 0
        if piece.finals_by_call:
            piece.resetting_at_start.copy_(self._resetting)
        self.agent.begin_piece(piece.num_steps, self.agent_info, self.generator)

    def _step_all(self, piece: Piece) -> int:
        """Step through the piece; return the number of calls, below T where all episodes have ended (stop mode).

        Whatever an environment raises becomes an `EnvironmentFault` whose cause is the exception. One without a cause
        is a broken contract: no exception, but an answer that does not fit.
        """
        act_into, generator, info = self.agent.act_into, self.generator, self.agent_info
        env_step, state = self.env.step, self._state
        observations, outputs, actions, buffers = piece.observations, piece.outputs, piece.actions, piece.buffers
        looks_back, stop = self._looks_back, self.stop
        # A row that has done its one episode is left alone, unless the environment can only step all its rows.
        caller_resets = self.env.autoreset is Autoreset.NONE and not (stop and self.env.row_step)
        keeps_finals = self.env.autoreset is not Autoreset.NEXT_STEP
        watches = keeps_finals or stop
        running, rows, words = self._running, self._rows_to_step(), self._words
        for t in range(piece.num_steps):
            if stop and not running.any():
                self._state = state
                return t
            state = act_into(observations[t], state, info, generator, outputs[t])
            buffer = buffers[t]
            if words[STOP]:
                raise SystemExit(0)
            try:
                env_step(actions[t], buffer, rows)
            except RlxError:
                raise
            except RAISED as error:
                raise environment_fault(self.env.name, raised("step", error)) from error
            words[CALLS] = t + 1
            if watches and (ended := buffer.ended_rows()):
                counted = [row for row in ended if running[row]] if stop else ended
                if keeps_finals:
                    piece.keep_finals(t, counted, self.first_row)
                if caller_resets:
                    self._reset_rows(piece, t, ended)
                if stop:
                    running[counted] = False
                    rows = self._rows_to_step()
            if looks_back:
                state = self._look_back(piece, t, state)
        self._state = state
        return piece.num_steps

    def _rows_to_step(self) -> list[int] | None:
        every = not self.stop or not self.env.row_step or self._running.all()
        return None if every else np.flatnonzero(self._running).tolist()

    def _reset_rows(self, piece: Piece, t: int, rows: list[int]) -> None:
        if self.env_drawn is not None:
            self._draw(self.env_drawn, piece, t, rows)
        env_info = None if self.env_info.is_empty else self.env_info[rows]
        seeds = None if self.journal is None else self.journal.reset(rows, None, env_info, after=t + 1)
        self._reset_env(piece.buffers[t], rows, seeds, env_info)

    def _reset_env(self, out: StepBuffer, rows: list[int] | None, seeds: Seeds, env_info: DictTensor | None) -> None:
        asked(self.env, "reset", out, rows, seeds, env_info)
        self._words[RESETS] += 1

    def _draw(self, drawn: Drawn, piece: Piece, t: int, rows: list[int]) -> None:
        """Draw for the episodes that begin behind step t; in stop mode none does."""
        if rows and not self.stop:
            drawn.draw(rows)
            drawn.write(piece.slot.sampled, t + 1, rows)

    def _look_back(self, piece: Piece, t: int, state: DictTensor) -> DictTensor:
        """Update what the agent remembers of step t: its state, and the previous action and reward."""
        buffer = piece.buffers[t]
        for key, value in self._prev_action.items():
            value.copy_(piece.actions[t][key])
        self._prev_reward.copy_(buffer.reward)
        if self.env.autoreset is Autoreset.NEXT_STEP:  # an episode's first observation comes one call later
            self._is_first.copy_(self._resetting)  # rows whose call was the reset: their flags mean nothing
            torch.logical_and(buffer.terminated | buffer.truncated, ~self._is_first, out=self._resetting)
        else:
            torch.logical_or(buffer.terminated, buffer.truncated, out=self._is_first)
        self._forget(self._is_first)
        if self.agent_drawn is not None:
            self._draw(self.agent_drawn, piece, t, cast("list[int]", self._is_first.nonzero().flatten().tolist()))
        state = reset_state(self.agent, state, self._is_first, self.agent_info)
        if not t and piece.finals_by_call:  # rows whose first call was a reset begin with the episode after it
            for key, value in piece.slot.state.items():
                value.copy_(torch.where(self._is_first.view(-1, *[1] * (value.dim() - 1)), state[key], value))
        return state

    def _forget(self, is_first: Tensor) -> None:
        """Nothing comes before an episode's first step."""
        if may_be_any(is_first):
            for value in (*self._prev_action.values(), self._prev_reward):
                value.masked_fill_(is_first.view(-1, *[1] * (value.dim() - 1)), 0)

    def _finish(self, piece: Piece, num_calls: int, started: Mask) -> PieceReport:
        """Work out what of the calls are steps, what ended and how, and what the next piece begins with."""
        slot = piece.slot
        shown = piece.buffers[num_calls - 1].obs if num_calls else piece.observations[0]
        for key, value in self._next_obs.obs.items():
            value.copy_(shown[key])
        if num_calls and not self._looks_back:
            for key, value in self._prev_action.items():
                value.copy_(piece.actions[num_calls - 1][key])
            self._prev_reward.copy_(piece.buffers[num_calls - 1].reward)
        num_steps, episodes = self._work_out(piece, num_calls, started)
        if self.journal is not None:
            self.journal.add(slot)
        if self._context is not None:
            self._context.advance(slot)
        self._total_steps += num_steps
        return PieceReport(num_steps, int(self._running.sum()), piece.num_finals, episodes)

    def _work_out(self, piece: Piece, num_calls: int, started: Mask) -> tuple[int, EpisodeLog]:
        """Write the lengths of a piece, close the gaps between its steps, and return how many there are and who ended.

        The episodes that ended are in order of time.
        """
        slot, size = piece.slot, self.env.num_envs
        ended: Mask = (slot.terminated | slot.truncated).numpy()[:num_calls]
        valid: Mask | None = None
        if self.env.autoreset is Autoreset.NEXT_STEP:
            resetting = np.empty((num_calls + 1, size), dtype=np.bool_)
            resetting[0] = piece.resetting_at_start.numpy()
            drop_flags_of_resets(ended, resetting[0])
            resetting[1:] = ended
            self._resetting.copy_(torch.from_numpy(resetting[-1]))
            valid = ~resetting[:-1]
        if num_calls and not self._looks_back:
            first = ended[-1] if valid is None else ~valid[-1]
            self._is_first.copy_(torch.from_numpy(first))
        lengths = np.where(started, num_calls, 0)
        if self.stop and num_calls:
            before_end = np.cumsum(ended if valid is None else ended & valid, axis=0) - ended == 0
            valid = (before_end if valid is None else before_end & valid) & started
        rewards = piece.raw_rewards[:num_calls]
        episodes = tally(rewards, ended, valid, self._returns, self._lengths, self.first_row)
        if valid is not None:
            lengths = compact(piece, valid, ended, num_calls, self.first_row)
        slot.length.copy_(torch.from_numpy(lengths))
        return int(lengths.sum()), episodes

"""The rings of slots that a replay buffer keeps steps in: what lies where.

Each environment has a ring of its own, one step a slot. An episode's steps lie in a row, and the slot behind the last
one holds its final observation; behind the newest step of all lies the observation that followed it. So what follows a
step is always in the next slot, and nothing is stored twice but a slot an episode. Of a stack of frames a slot holds
the newest; the older ones lie in the slots before, put there where an episode begins. Slots that hold no step bound
each episode: a run of steps never crosses into another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlx.data.fields import MissingFieldError
from rlx.data.spec import EnvSpecs, Spec
from rlx.data.storage import allocate
from rlx.data.temporal_dict_tensor import TemporalDictTensor
from rlx.data.trajectories import Trajectories
from rlx.errors import SpecError, did_you_mean

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]

_FLAG, _NUMBER = Spec((), torch.bool), Spec((), torch.float32)


@dataclass(frozen=True)
class Written:
    """What `Rings.write` did.

    Attributes:
        slots: `[N]`, that hold a new step.
        cleared: `[K]`, that hold none any more.
        begins: `[M]`, new steps that begin an episode, or follow nothing that is here.
        rows: `[R]`, the environments that had steps.
        first: `[R]`, the slot of the first new step of each of them.
    """

    slots: Index
    cleared: Index
    begins: Index
    rows: Index
    first: Index


class Rings:
    """The newest steps of `num_envs` environments.

    All of it is NumPy arrays, of which torch's tensors are views: choosing rows takes them half the time.

    Attributes:
        num_envs: environments, B.
        num_slots: slots, of all environments.
        num_bytes: what they take.
        fields: `[num_slots, ...]` by name, the groups as in Trajectories.
        is_step: `[num_slots]` bool, the slots that hold a step which may be drawn.
        used: slots from this one on have not been written to.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        capacity: int,
        num_envs: int,
        extra: Mapping[str, Spec],
        track_episodes: bool = False,
    ) -> None:
        """Lay them out; `allocate` takes the memory.

        Args:
            specs: what the environments show and take.
            capacity: slots; rounded up to the same number for each environment.
            num_envs: environments, B.
            extra: other fields of each step, by their full names.
            track_episodes: whether `steps_left` can be asked for.

        Raises:
            SpecError: frames of one observation are stacked to different heights.
        """
        self.num_envs = num_envs
        self.size = -(-capacity // num_envs)
        self.num_slots = self.size * num_envs
        self._extra = dict(extra)
        self._stacks = {
            key: (spec.frame_stack_axis, spec.shape[spec.frame_stack_axis])
            for key, spec in specs.observation.items()
            if spec.frame_stack_axis is not None
        }
        depths = {depth for _, depth in self._stacks.values()}
        if len(depths) > 1:
            raise SpecError(f"replay: frames are stacked {sorted(depths)} high in one observation; expected one height")
        self._depth = depths.pop() if depths else 1
        self._observation, self._actions = tuple(specs.observation), tuple(specs.action)
        self.specs = {f"env/{key}": self._one_frame(key, spec) for key, spec in specs.observation.items()}
        self.specs |= {"env/is_first": _FLAG}
        self.specs |= {f"agent/{key}": spec for key, spec in specs.action.items()}
        self.specs |= {"next/reward": _NUMBER, "next/terminated": _FLAG, "next/truncated": _FLAG} | self._extra
        whole = {f"{group}/{key}": spec for key, spec in specs.observation.items() for group in ("env", "next")}
        self._given = self.specs | whole  # what a piece has, all frames of a stack included
        self.num_bytes = self.num_slots * (1 + sum(spec.num_bytes for spec in self.specs.values()))
        self.num_bytes += 16 * self.num_slots * track_episodes
        self.fields: dict[str, Array] = {}
        self.is_step = np.zeros(0, np.bool_)
        self.used = 0
        self._head = np.zeros(num_envs, np.int64)  # where each environment's next step goes; grows for ever
        self._is_open = np.zeros(num_envs, np.bool_)  # whether its newest step's episode goes on
        self._row = np.arange(num_envs)
        self._track_episodes = track_episodes
        # Episodes are counted for each environment and have places like steps; there are never more of them than slots.
        self._begun = np.zeros(num_envs, np.int64)
        self._episode = self._behind = np.zeros(0, np.int64)  # of each slot its episode, of each episode its end

    def allocate(self, directory: Path | None) -> None:
        """Take the memory, or make the files.

        Raises:
            SpecError: the file system has no room for them.
        """
        self.fields = arrays(allocate(self.specs, self.num_slots, directory=directory))
        self.is_step = np.zeros(self.num_slots, np.bool_)
        if self._track_episodes:
            self._episode, self._behind = np.zeros((2, self.num_slots), np.int64)

    def _one_frame(self, key: str, spec: Spec) -> Spec:
        if key not in self._stacks:
            return spec
        axis, _ = self._stacks[key]
        return Spec((*spec.shape[:axis], *spec.shape[axis + 1 :]), spec.dtype)

    def write(self, trajectories: Trajectories) -> Written:
        """Write a piece over the oldest steps.

        Args:
            trajectories: `[B, T]`, on the CPU.

        Raises:
            SpecError: it does not fit into the rings, is of another number of environments, or a field of it is not
                what is kept; names the field, and both.
        """
        steps = trajectories.steps
        size, length = steps.leading_shape
        if size != self.num_envs:
            raise SpecError(f"replay: expected pieces of {self.num_envs} environments, got {size}")
        if not length:
            nothing = np.zeros(0, np.int64)
            return Written(nothing, nothing, nothing, nothing, nothing)
        self._check_fields(trajectories)
        lengths = steps.lengths.numpy()
        valid = np.arange(length) < lengths[:, None]
        ended = (steps["next/terminated"].numpy() | steps["next/truncated"].numpy()) & valid
        is_first = steps["env/is_first"].numpy()
        begins = is_first & valid
        begins[:, 0] |= ~(self._is_open & self._joins(steps)) & valid[:, 0]
        # An episode that was cut off (by a reset) keeps the slot behind its last step, too; and where one goes on whose
        # beginning is not here, there is a slot before it, for what was done and paid there.
        alone = begins[:, 0] & ~is_first[:, 0]
        cut = begins.copy()
        cut[:, 0] &= self._is_open | (alone & (self._head == 0))
        cut[:, 1:] &= ~ended[:, :-1]
        before = ended.cumsum(1) - ended + cut.cumsum(1) + begins.cumsum(1) * (self._depth - 1)
        place = self._head[:, None] + np.arange(length) + before
        last, has_any = np.maximum(lengths - 1, 0), lengths > 0
        is_over = ended[self._row, last]
        head = np.where(has_any, place[self._row, last] + 1 + is_over, self._head)
        taken = int((head - self._head).max())
        self.check_piece(taken)
        at = valid.nonzero()
        slots = self._slot(place[at], at[0])
        following = ended.copy()
        following[:, :-1] |= cut[:, 1:]
        following[self._row, last] |= has_any
        next_at = following.nonzero()
        next_slots = self._slot(place[next_at] + 1, next_at[0])
        self._write(trajectories, at, slots, next_at, next_slots)
        if alone.any():
            self._write_before(steps, alone.nonzero()[0], self._slot(place[alone, 0] - 1, self._row[alone]))
        gone = [next_slots, *(self._slot(head + i, self._row) for i in range(max(1, self._depth - 1) + 1))]
        if self._depth > 1:
            gone.extend(self._write_first_frames(steps, begins, place))
        if self._track_episodes:
            begun = self._begun[:, None] + begins.cumsum(1)
            self._episode[slots] = episode = self._slot(begun[at], at[0])
            self._behind[episode] = place[at] + 1  # of each episode the last one stands: time goes on along a row
            self._begun = begun[:, -1]
        self.is_step[slots] = True
        cleared = np.concatenate(gone)
        self.is_step[cleared] = False
        self.used = max(self.used, min(self.num_slots, (int(head.max()) + 1) * self.num_envs))
        self._head, self._is_open = head, np.where(has_any, ~is_over, self._is_open)
        begun, rows = begins.nonzero(), has_any.nonzero()[0]
        return Written(slots, cleared, self._slot(place[begun], begun[0]), rows, self._slot(place[rows, 0], rows))

    def check_piece(self, taken: int) -> None:
        """Refuse a piece that takes so many slots of an environment, where there are not enough of them.

        Raises:
            SpecError: says how many there are.
        """
        if taken + self._depth + 1 >= self.size:
            raise SpecError(
                f"replay: a piece takes {taken} slots of an environment, and there are {self.size} of each: "
                "raise algo.buffer_size"
            )

    def _joins(self, steps: TemporalDictTensor) -> Array:
        """Return `[B]` bool, whether each piece begins with the observation that its row's last one ended with.

        Where pieces were left out, or come in another order, what is kept behind the last step is not what led here.
        """
        joins, behind = np.ones(self.num_envs, np.bool_), self._slot(self._head, self._row)
        for key in self._observation:
            memory = self.fields[f"env/{key}"]
            kept, shown = memory[behind], self._newest_frame(key, steps[f"env/{key}"].numpy()[:, 0])
            differs = kept != shown.astype(memory.dtype, copy=False)
            if differs.any():
                differs &= (kept == kept) | (shown == shown)  # NaN is NaN
                joins &= ~differs.reshape(self.num_envs, -1).any(1)
        return joins

    def _check_fields(self, trajectories: Trajectories) -> None:
        """Refuse a piece, which may be made by hand, whose numbers would be cast or stretched in silence."""
        steps, info = trajectories.steps, trajectories.info
        for name, spec in self._given.items():
            of_row = name in self._extra and name not in steps
            if of_row and name not in info:
                nearest = did_you_mean(name, [*steps, *info])
                raise MissingFieldError(f"replay: {name!r}, which extra= names, is in no step of the piece.{nearest}")
            value, leading = (info[name], 1) if of_row else (steps[name], 2)
            fits = value.dtype == spec.dtype or torch.can_cast(value.dtype, spec.dtype)
            if not fits or value.shape[leading:] != spec.shape:
                raise SpecError(
                    f"replay: '{name}' is {value.dtype} of shape {list(value.shape)}; expected {spec.dtype} of shape "
                    f"{[*steps.leading_shape[:leading], *spec.shape]}"
                )

    def _slot(self, place: Index, row: Index) -> Index:
        """Return the slots of places that count from an environment's first step on."""
        return (place % self.size) * self.num_envs + row

    def _write(
        self,
        trajectories: Trajectories,
        at: tuple[Index, ...],
        slots: Index,
        next_at: tuple[Index, ...],
        next_slots: Index,
    ) -> None:
        """Write the steps `at` rows and times into `slots`, and what followed those of `next_at` into `next_slots`."""
        steps, info = trajectories.steps, trajectories.info
        every = len(slots) == steps.batch_size * steps.max_length

        def of_steps(values: Tensor) -> Array:
            array = values.detach().numpy()
            return array.reshape(-1, *array.shape[2:]) if every else array[at]

        for name, memory in self.fields.items():
            key = name.removeprefix("env/")
            if name in self._extra and name not in steps:
                memory[slots] = info[name].detach().numpy()[at[0]]
            elif key in self._observation:
                memory[slots] = self._newest_frame(key, of_steps(steps[name]))
                memory[next_slots] = self._newest_frame(key, steps[f"next/{key}"].detach().numpy()[next_at])
            else:
                memory[slots] = of_steps(steps[name])

    def _write_before(self, steps: TemporalDictTensor, rows: Index, slots: Index) -> None:
        """Write the action and the reward before the first steps of `rows` into `slots`; zeros where nobody tells."""
        names = {f"agent/{key}": f"env/prev_{key}" for key in self._actions} | {"next/reward": "env/prev_reward"}
        for name, before in names.items():
            self.fields[name][slots] = steps[before].detach().numpy()[rows, 0] if before in steps else 0

    def _newest_frame(self, key: str, observation: Array) -> Array:
        if key not in self._stacks:
            return observation
        axis, depth = self._stacks[key]
        return observation.take(depth - 1, axis + 1)

    def _write_first_frames(self, steps: TemporalDictTensor, begins: Array, place: Index) -> list[Index]:
        """Write the older frames of each episode's first observation into the slots before it; return the slots."""
        at = begins.nonzero()
        written: list[Index] = []
        for back in range(1, self._depth):
            slots = self._slot(place[at] - back, at[0])
            for key, (axis, depth) in self._stacks.items():
                self.fields[f"env/{key}"][slots] = steps[f"env/{key}"].numpy()[at].take(depth - 1 - back, axis + 1)
            written.append(slots)
        return written

    def steps_left(self, slots: Index) -> Index:
        """Return how many steps `[N]` there are from each of these on, itself included, to the end of its episode.

        Of an episode that goes on, or was cut off, those that are known.
        """
        return (self._behind[self._episode[slots]] - slots // self.num_envs) % self.size

    def look(self, key: str, slots: Index) -> Array:
        """Return the observations `[N, *shape]` at some slots, frames stacked."""
        memory = self.fields[f"env/{key}"]
        if key not in self._stacks:
            return memory.take(slots, 0)
        axis, depth = self._stacks[key]
        back = self.num_envs * np.arange(depth - 1, -1, -1)
        return np.moveaxis(memory.take((slots[:, None] - back) % self.num_slots, 0), 1, axis + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, as far as slots have been written to."""
        return {
            "fields": {name: torch.from_numpy(memory[: self.used]) for name, memory in self.fields.items()},
            "is_step": torch.from_numpy(self.is_step),
            "head": torch.from_numpy(self._head),
            "is_open": torch.from_numpy(self._is_open),
        } | self._episodes_state()

    def _episodes_state(self) -> dict[str, Any]:
        if not self._track_episodes:
            return {}
        own = {"begun": self._begun, "episode": self._episode[: self.used], "behind": self._behind[: self.used]}
        return {name: torch.from_numpy(values) for name, values in own.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what others of the same sizes held.

        Raises:
            SpecError: they are of other sizes or fields.
        """
        fields: dict[str, Tensor] = state["fields"]
        if fields.keys() != self.fields.keys() or len(state["is_step"]) != self.num_slots:
            raise SpecError(
                f"replay: the buffer to load has {len(state['is_step']):,} slots of {sorted(fields)}, this one "
                f"{self.num_slots:,} of {sorted(self.fields)}"
            )
        self.used = len(next(iter(fields.values())))
        for name, memory in self.fields.items():
            memory[: self.used] = fields[name].numpy()
        self.is_step[:] = state["is_step"].numpy()
        self._head, self._is_open = state["head"].numpy().copy(), state["is_open"].numpy().copy()
        if self._track_episodes:
            self._begun = state["begun"].numpy().copy()
            self._episode[: self.used] = state["episode"].numpy()
            self._behind[: self.used] = state["behind"].numpy()


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the same memory as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}

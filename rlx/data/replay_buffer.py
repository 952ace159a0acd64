"""Steps kept to be learned from many times: transitions or sequences, drawn evenly or by priority."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.data.dict_tensor import DictTensor
from rlx.data.hindsight import Hindsight
from rlx.data.priorities import Priorities
from rlx.data.reader import Reader
from rlx.data.rings import Index, Rings
from rlx.data.spec import EnvSpecs, Spec
from rlx.data.storage import check_room, show_bytes
from rlx.data.stored_states import StoredStates
from rlx.data.sum_tree import SumTree
from rlx.data.trajectories import Trajectories
from rlx.errors import UserError

_ALIKE = {"priorities": None, "max_priority": 1.0}  # what a checkpoint says of a buffer without priorities
_AT_ONCE = 2**22  # bytes that `batches` draws together: what stays in a processor's cache


class ReplayBuffer:
    """The newest `capacity` slots of experience of `num_envs` environments, and what is drawn from them.

    What is drawn are Trajectories as a batcher makes them: a loss does not see where its batch comes from.

    Attributes:
        num_envs: environments, B.
        num_slots: slots, of all environments. One step each, besides one an episode for its final observation, and
            where frames are stacked k high, k - 1 an episode for its first ones.
        num_bytes: what it takes, known before it is taken.
        num_added: steps added so far.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        capacity: int,
        num_envs: int,
        extra: Mapping[str, Spec] | None = None,
        state: Mapping[str, Spec] | None = None,
        state_every: int = 1,
        alpha: float | None = None,
        hindsight: Hindsight | None = None,
        directory: Path | str | None = None,
    ) -> None:
        """Take the memory.

        Args:
            specs: what the environments show and take.
            capacity: slots, usually 1e4 to 1e6; rounded up to the same number for each environment.
            num_envs: environments, B.
            extra: other fields to keep of each step, by their full names: `agent/log_prob`, `agent_info/skill`.
            state: the agent's state, for recurrent agents: kept as it was at the beginning of each piece that is added.
                Sequences then begin there, or where an episode does.
            state_every: steps of each piece that will be added, where `state` is given.
            alpha: how far priorities count, usually 0.4 to 0.7; 0 for not at all, None for no priorities.
            hindsight: how transitions that are drawn get other goals; None for those that were pursued.
            directory: where there is room to keep the steps on disk; None to keep them in memory.

        Raises:
            SpecError: it would not fit; says how much it takes and how much there is.
            UserError: both `state` and `hindsight` are given, or a count is below 1.
        """
        if state and hindsight is not None:
            raise UserError(
                "algo.hindsight: only single transitions get other goals; a recurrent agent needs sequences"
            )
        _check_counts("ReplayBuffer", capacity=capacity, num_envs=num_envs)
        self.num_envs = num_envs
        self._hindsight = hindsight
        self._rings = rings = Rings(
            specs, capacity=capacity, num_envs=num_envs, extra=extra or {}, track_episodes=hindsight is not None
        )
        self.num_slots = rings.num_slots
        self.num_added = 0
        self._reader = Reader(rings, specs, hindsight)
        prioritised = alpha is not None or state is not None
        self._states = StoredStates(state or {}, num_slots=self.num_slots, num_envs=num_envs, num_steps=state_every)
        self.num_bytes = rings.num_bytes + self._states.num_bytes
        self.num_bytes += SumTree.num_bytes(self.num_slots) if prioritised else 0
        place = None if directory is None else Path(directory)
        check_room(
            self.num_bytes,
            f"a replay buffer of {self.num_slots:,} steps",
            directory=place,
            advice="lower algo.buffer_size"
            + ("" if directory else ", or give algo.buffer_directory to keep it on disk"),
        )
        rings.allocate(place)
        self._states.allocate()
        self._priorities = Priorities(self.num_slots, alpha) if prioritised else None
        self._count: int | None = 0
        self._decisions: dict[str, Index] = {}

    def __len__(self) -> int:
        """Return how many steps may be drawn (with `state`: begin a sequence)."""
        if self._count is None:
            steps = self._rings.is_step
            self._count = int(np.count_nonzero(steps)) if self._priorities is None else len(self._priorities)
        return self._count

    def check(self, *, piece: int, n_step: int = 1, sequence: int = 1) -> None:
        """Refuse, before anything is played, numbers of an algorithm that the buffer is too small for.

        Args:
            piece: steps of each environment that are added at once, at least.
            n_step: as `sample` will be given it.
            sequence: steps of the sequences that will be drawn, a burn-in included; 1 for transitions.

        Raises:
            SpecError: a piece does not fit.
            UserError: what is to be drawn is longer than what is held.
        """
        self._rings.check_piece(piece)
        keys = {"algo.n_step": n_step, "algo.sequence_length and algo.burn_in_steps": sequence}
        for key, count in keys.items():
            if count > (held := self._rings.size):
                raise UserError(
                    f"{key}: got {count}, but the replay buffer holds {held} steps of each of {self.num_envs} "
                    "environments: raise algo.buffer_size"
                )

    # -- what comes in

    def add(self, trajectories: Trajectories) -> Tensor:
        """Add a batcher's piece; the oldest steps make room. Every piece in turn: an episode goes on in the next one.

        Args:
            trajectories: `[B, T]`; rows may be of different lengths. They are copied to the host, wherever they lie.
                Where `env/is_first` is true an episode begins, whether or not the one before has ended. A piece that
                does not begin with the observation that its row's last one ended with follows nothing that is here.

        Returns:
            Slots `[N]` of the new steps, in the order of `trajectories.steps.flatten()`: for `update_priorities`, where
            steps shall begin with priorities of their own.

        Raises:
            SpecError: a piece does not fit into the whole buffer, is of another number of environments, or a field of
                it has another shape or kind of number than the buffer keeps.
        """
        trajectories = trajectories.to("cpu")
        if self._hindsight is not None and not self.num_added and self._hindsight.goal.startswith("env/"):
            self._hindsight.check(trajectories)
        written = self._rings.write(trajectories)
        self._decisions.clear()
        self.num_added += len(written.slots)
        self._count = None
        if self._priorities is not None and len(written.rows):
            new, gone = written.slots, written.cleared
            if self._states.num_pieces:
                stale = self._states.keep(trajectories, written, self._rings.fields["env/is_first"])
                new, gone = np.concatenate([written.begins, written.first]), np.concatenate([gone, new, stale])
            self._priorities.begin(new, gone)
        return torch.from_numpy(written.slots)

    # -- what goes out

    def batches(
        self,
        number: int,
        batch_size: int,
        generator: torch.Generator,
        *,
        num_steps: int | None = None,
        n_step: int = 1,
        gamma: float = 1.0,
        beta: float = 0.0,
        decision: str | None = None,
        also: Callable[[Trajectories], Mapping[str, Tensor]] | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Trajectories]:
        """Yield the batches of so many updates: those that `sample` or `sample_sequences` would return, to the bit.

        Small ones are read, and moved to the device, many at once: by itself each costs as much as a small network's
        pass. With priorities, which updates change, or hindsight it is one at a time. Nothing may be added meanwhile.
        A small network that stands still meanwhile can be asked about many at once, too: give its answers by `also`.

        Args:
            number: updates.
            batch_size: N, of each.
            generator: source of the draws, on the CPU.
            num_steps: T, for sequences of so many steps; None for transitions.
            n_step: for transitions, as for `sample`.
            gamma: discount of a step.
            beta: as for `sample`.
            decision: for transitions, as for `sample`.
            also: gets what is drawn, on the device, and returns more fields `[N, T, ...]` of its steps, by full name.
            device: where the batches go.
        """
        length = 1 if num_steps is None else num_steps
        _check_counts("batches", self._rings.size, batch_size=batch_size, num_steps=length, n_step=n_step)
        moves = self._priorities is not None and self._priorities.alpha is not None
        alone = moves or self._hindsight is not None  # which draws goals in between
        at_once = 1 if alone else max(1, _AT_ONCE // (batch_size * length * self._reader.bytes_of_step))
        for left in range(number, 0, -at_once):
            draws = [self._draw(batch_size, generator, beta, decision) for _ in range(min(left, at_once))]
            slots, weight = np.concatenate([slots for slots, _ in draws]), draws[0][1]
            some = self._read(slots, weight, num_steps, gamma, n_step, decision, generator).to(device)
            some = some if also is None else some.with_steps(**also(some))
            yield from _taken_apart(some, batch_size) if len(draws) > 1 else (some,)

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        n_step: int = 1,
        gamma: float = 1.0,
        beta: float = 0.0,
        decision: str | None = None,
    ) -> Trajectories:
        """Return transitions, each as a sequence of one step `[N, 1]`, with replacement.

        With `n_step` above 1 a step's `next/` group is what came of it n steps later, or at the end of its episode or
        of what is known of it, where that is sooner: `next/obs`, `next/terminated` and `next/truncated` are those of
        the last step, `next/reward` is the discounted sum. `next/discount` is what the value of `next/obs` counts:
        `gamma` to the power of the steps taken.

        Args:
            batch_size: N, usually 32 to 512.
            generator: source of the draw, on the CPU.
            n_step: steps, usually 1 to 5.
            gamma: discount of a step.
            beta: how far weights make up for priorities, 0 to 1 (`info["weight"]`, at most 1; 1 where there are none).
            decision: for transitions of a semi-Markov process: full name of a bool field that was kept, which says at
                which steps something was decided (`agent/new_option`). Only these are drawn, evenly and with their own
                goals, and a transition goes on to the next one, over `n_step` steps at most.

        Returns:
            Trajectories whose `info` has `slot` `[N]` (for `update_priorities`), `weight` `[N]` and what was kept of
            `agent_info/` and `env_info/`.

        Raises:
            UserError: there is nothing to draw yet, or a count is below 1.
        """
        _check_counts("sample", self._rings.size, batch_size=batch_size, n_step=n_step)
        slots, weight = self._draw(batch_size, generator, beta, decision)
        return self._read(slots, weight, None, gamma, n_step, decision, generator)

    def sample_sequences(
        self, batch_size: int, generator: torch.Generator, *, num_steps: int, gamma: float = 1.0, beta: float = 0.0
    ) -> Trajectories:
        """Return sequences `[N, num_steps]`, each of one episode and shorter where that ends, with replacement.

        They begin at any step; with `state`, at those where the agent's state is known (R2D2's stored state,
        Kapturowski et al. 2019), which then is in `info`. They have all the fields of a batcher's pieces.

        Args:
            batch_size: N, usually 16 to 64.
            generator: source of the draw, on the CPU.
            num_steps: T, usually 20 to 120.
            gamma: discount of a step: `next/discount`.
            beta: as for `sample`.

        Raises:
            UserError: there is nothing to draw yet, or transitions shall get other goals, which sequences cannot.
        """
        _check_counts("sample_sequences", self._rings.size, batch_size=batch_size, num_steps=num_steps)
        slots, weight = self._draw(batch_size, generator, beta)
        return self._read(slots, weight, num_steps, gamma)

    def update_priorities(self, slots: Tensor, errors: Tensor) -> None:
        """Set the priorities of what was drawn: |error|, to the power of alpha when drawing.

        Args:
            slots: `[N]`, `info["slot"]` of the batch.
            errors: `[N]`, temporal-difference errors, of either sign.

        Raises:
            UserError: the buffer was made without `alpha`, or an error is not finite.
        """
        if self._priorities is None or self._priorities.alpha is None:
            raise UserError("update_priorities() of a buffer without priorities: give it an alpha")
        self._priorities.update(slots, errors)

    def _read(
        self,
        slots: Index,
        weight: Tensor | None,
        num_steps: int | None,
        gamma: float,
        n_step: int = 1,
        decision: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Trajectories:
        """Return the transitions at `slots`, or the sequences of `num_steps` that begin there."""
        if num_steps is None:
            steps = self._reader.transitions(slots, n_step=n_step, gamma=gamma, decision=decision, generator=generator)
            return Trajectories(self._info(slots, weight), steps, num_steps=len(slots))
        if self._hindsight is not None:
            raise UserError("sequences of a replay buffer with hindsight: only single transitions get other goals")
        return Trajectories(self._info(slots, weight), self._reader.sequences(slots, num_steps=num_steps, gamma=gamma))

    def _draw(
        self, batch_size: int, generator: torch.Generator, beta: float, decision: str | None = None
    ) -> tuple[Index, Tensor | None]:
        """Return slots `[N]`, and their weights where there are priorities."""
        if not self.num_added:
            raise UserError("sample() from an empty replay buffer: call add() first")
        if decision is not None:
            among = self._deciding(decision)
            return among[torch.randint(len(among), (batch_size,), generator=generator).numpy()], None
        if self._priorities is not None:
            return self._priorities.draw(batch_size, generator, beta)
        slots = torch.randint(self._rings.used, (batch_size,), generator=generator).numpy()
        while True:
            is_step = self._rings.is_step.take(slots)
            if is_step.all():
                return slots, None
            wrong = (~is_step).nonzero()[0]
            slots[wrong] = torch.randint(self._rings.used, (len(wrong),), generator=generator).numpy()

    def _deciding(self, decision: str) -> Index:
        """Return the slots of the steps at which something was decided; looked for once after each `add`."""
        known = self._decisions.get(decision)
        if known is None:
            known = self._decisions[decision] = (self._rings.is_step & self._rings.fields[decision]).nonzero()[0]
            if not len(known):
                raise UserError(f"sample(decision={decision!r}): no step has it yet")
        return known

    def _info(self, slots: Index, weight: Tensor | None) -> DictTensor:
        count = len(slots)
        fields = {"slot": torch.from_numpy(slots)}
        fields["weight"] = torch.from_numpy(np.ones(count, np.float32)) if weight is None else weight
        for name in self._reader.info_names:
            fields[name] = torch.from_numpy(self._rings.fields[name].take(slots, 0))
        return DictTensor.trusted(fields | self._states.of(slots), count)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept: as much as the buffer holds."""
        return {
            "rings": self._rings.state_dict(),
            **self._states.state_dict(),
            **(_ALIKE if self._priorities is None else self._priorities.state_dict()),
            "num_added": self.num_added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another buffer of the same sizes held.

        Raises:
            SpecError: it is of other sizes or fields.
        """
        self._rings.load_state_dict(state["rings"])
        self._states.load_state_dict(state)
        if self._priorities is not None:
            self._priorities.load_state_dict(state)
        self.num_added = state["num_added"]
        self._count = None
        self._decisions.clear()

    def __repr__(self) -> str:
        return f"ReplayBuffer({len(self):,} of {self.num_slots:,} steps, {show_bytes(self.num_bytes)})"


def _taken_apart(drawn: Trajectories, batch_size: int) -> Iterator[Trajectories]:
    """Yield what was drawn for several updates in batches of `batch_size` sequences: views."""
    num_steps = batch_size * drawn.steps.max_length if drawn.is_full() else None
    for info, steps in zip(drawn.info.split(batch_size), drawn.steps.split(batch_size), strict=True):
        yield Trajectories(info, steps, num_steps=num_steps)


def _check_counts(call: str, held: int | None = None, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{call}({name}=...): got {count}, expected 1 or more")
        if held is not None and name != "batch_size" and count > held:
            raise UserError(f"{call}({name}=...): got {count}, but the buffer holds {held} steps of each environment")

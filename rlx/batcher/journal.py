"""What environments have gone through since their last seeds: enough to bring new ones to the same place.

Most environments cannot tell what they are in the middle of. But one that was seeded, and then did the same actions, is
in the same place again. So that this never takes long, a row gets a new seed with the first episode that begins 1,000
or more steps after its last one: a rule that looks at the row's own steps only, so that it is the same whether a run is
stopped in between or not, and whoever its neighbours are.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rlx.batcher.slots import Slot
from rlx.data import DictTensor, Spec
from rlx.env.vec_env import Autoreset, VecEnv

RESEED_AFTER = 1000
"""Steps of a row after which its next episode brings a new seed."""
MOST_STEPS = 100_000
"""Steps since its last seed, beyond which a row is given up: an episode so long is not played again."""


class _Reset(NamedTuple):
    """A reset of one row: after how many of its steps, and with which `env_info` (`[1]`, None for none)."""

    step: int
    env_info: DictTensor | None


@dataclass
class _Stretch:
    """What was done in pieces that follow each other and came of it, `[T, B, ...]`, and room for more behind it."""

    before: list[int]  # each row's steps before
    lengths: list[int]  # and in it
    actions: dict[str, Tensor]
    outcome: dict[str, Tensor]  # as _OUTCOME names it

    def begins_at(self, longest: int) -> int | None:
        """Return where a piece goes whose longest row has so many steps; None where it does not fit behind the last."""
        place = self.lengths[0]
        has_room = place + longest <= len(self.outcome["reward"])
        return place if has_room and min(self.lengths) == max(self.lengths) else None


_STRETCH = 256
"""Steps that a stretch has room for, or one piece where that is longer: a step each would take kilobytes, and time."""
_OUTCOME = {"reward": torch.float32, "terminated": torch.bool, "truncated": torch.bool}


class Journal:
    """Gives rows their seeds, and keeps their resets and actions since then.

    Rows are few, and asked for one by one: lists of numbers are faster for that than arrays are.
    """

    def __init__(self, num_envs: int, actions: Mapping[str, Spec], seed_of: Callable[[int, int], int]) -> None:
        """Begin with nothing kept.

        Args:
            num_envs: rows, B.
            actions: what a row takes, by name.
            seed_of: returns the n-th seed of a row (`seed_of(row, n)`, n from 1 on).
        """
        self._num_envs, self._actions, self._seed_of = num_envs, dict(actions), seed_of
        self._seeds = [0] * num_envs
        self._numbers = [0] * num_envs  # seeds so far, besides the first
        self._steps = [0] * num_envs  # each row's steps so far
        self._seeded_at = [0] * num_envs
        self._resets: list[list[_Reset]] = [[] for _ in range(num_envs)]
        self._stretches: deque[_Stretch] = deque()
        self._seen: dict[str, Tensor] = {}  # `[B, ...]`, each row's last observation

    @staticmethod
    def serves(env: VecEnv) -> bool:
        """Return whether rows can be brought to their places one by one."""
        return env.autoreset is Autoreset.NONE and env.row_reset and env.row_step and env.row_seeds

    def reset(
        self, rows: Sequence[int], seeds: Sequence[int | None] | None, env_info: DictTensor | None, after: int = 0
    ) -> list[int | None] | None:
        """Note a reset, and return the seeds to do it with; None where no row has a new one.

        Args:
            rows: which rows.
            seeds: their first seeds; None for those that have one.
            env_info: one row for each of them, or None.
            after: steps that they have done in the piece that is being played.
        """
        given: list[int | None] = [] if seeds is None else list(seeds)
        for place, row in enumerate(rows):
            step = self._steps[row] + after
            seed = None if seeds is None else seeds[place]
            if seed is None and step - self._seeded_at[row] >= RESEED_AFTER:
                self._numbers[row] += 1
                seed = self._seed_of(row, self._numbers[row])
                given = given or [None] * len(rows)
                given[place] = seed
            if seed is not None:
                self._seeds[row], self._seeded_at[row] = seed, step
                self._resets[row].clear()
            self._resets[row].append(_Reset(step, None if env_info is None else env_info[[place]].clone()))
        return given or None

    def saw(self, obs: Mapping[str, Tensor]) -> None:
        """Note what all rows show, `[B, ...]`."""
        self._seen = {key: value.clone() for key, value in obs.items()}

    def add(self, slot: Slot) -> None:
        """Note the piece that `slot` holds, its lengths included."""
        lengths = cast("list[int]", slot.length.tolist())
        longest = max(lengths)
        if min(lengths) == longest > 0:
            for key, value in self._seen.items():
                value.copy_(slot.obs[key][longest])
        else:
            rows = slot.length.nonzero().squeeze(1)
            for key, value in self._seen.items():
                value[rows] = slot.obs[key][slot.length[rows], rows]
        actions = {key: slot.outputs[key][:longest] for key in self._actions}
        outcome: dict[str, Tensor] = {key: getattr(slot, key)[:longest] for key in _OUTCOME}
        place = self._stretches[-1].begins_at(longest) if self._stretches else None
        if place is None:
            place, room = 0, max(longest, _STRETCH)
            empty = [
                {key: value.new_empty(room, *value.shape[1:]) for key, value in it.items()} for it in (actions, outcome)
            ]
            self._stretches.append(_Stretch(self._steps, [0] * self._num_envs, *empty))
        stretch = self._stretches[-1]
        for own, new in ((stretch.actions, actions), (stretch.outcome, outcome)):
            for key, value in new.items():
                own[key][place : place + longest] = value
        stretch.lengths = [place + length for length in lengths]
        self._steps = [step + length for step, length in zip(self._steps, lengths, strict=True)]
        while self._stretches and not self._is_needed(self._stretches[0]):
            self._stretches.popleft()

    def _is_needed(self, stretch: _Stretch) -> bool:
        """Return whether a row that is not given up did something in the stretch since its last seed."""
        rows = zip(stretch.before, stretch.lengths, self._seeded_at, self._steps, strict=True)
        return any(
            before + length > seeded_at and step - seeded_at <= MOST_STEPS for before, length, seeded_at, step in rows
        )

    def get_state(self) -> dict[str, Any] | None:
        """Return what brings new environments here; None where a row has gone too far since its seed."""
        steps = np.array(self._steps)
        lengths = steps - self._seeded_at
        if lengths.max() > MOST_STEPS:
            return None
        rows = range(self._num_envs)
        return {
            "seeds": list(self._seeds),
            "numbers": list(self._numbers),
            "steps": steps,
            "lengths": lengths,
            "resets": [[reset.step for reset in resets] for resets in self._resets],
            "env_info": [
                [None if reset.env_info is None else dict(reset.env_info.items()) for reset in resets]
                for resets in self._resets
            ],
            "actions": {key: torch.cat([self._actions_of(row, key) for row in rows]) for key in self._actions},
            "seen": [_digest(self._seen[key][row] for key in sorted(self._seen)) for row in rows],
            "paid": [_digest(self._outcome_of(row)) for row in rows],
        }

    def set_state(self, state: Mapping[str, Any], env: VecEnv) -> str | None:
        """Take over what another journal held, and bring the environments there.

        Returns:
            None, or what went differently than it had: then the environments are anywhere.
        """
        self._seeds, self._numbers = list(state["seeds"]), list(state["numbers"])
        self._steps = [int(step) for step in state["steps"]]
        lengths = [int(length) for length in state["lengths"]]
        self._seeded_at = [step - length for step, length in zip(self._steps, lengths, strict=True)]
        self._resets = [
            [
                _Reset(step, None if info is None else DictTensor(dict(info), 1))
                for step, info in zip(steps, infos, strict=True)
            ]
            for steps, infos in zip(state["resets"], state["env_info"], strict=True)
        ]
        actions: dict[str, Tensor] = {}
        for key in self._actions:
            values: Tensor = state["actions"][key]
            actions[key] = values.new_zeros(max(lengths), self._num_envs, *values.shape[1:])
            start = 0
            for row, length in enumerate(lengths):
                actions[key][:length, row] = values[start : start + length]
                start += length
        outcome = {key: torch.zeros(max(lengths), self._num_envs, dtype=dtype) for key, dtype in _OUTCOME.items()}
        self._stretches = deque([_Stretch(list(self._seeded_at), lengths, actions, outcome)])
        self._play(env)
        now = self.get_state()
        assert now is not None
        # Rewards tell of what carries over from one episode to the next and is not seen. None: of an older rlx.
        for key, did in (("seen", "showed"), ("paid", "paid")):
            wrong = [row for row, found in enumerate(now[key]) if state[key] is not None and found != state[key][row]]
            if wrong:
                return f"environment {wrong[0]} of the worker {did} something else when its actions were repeated"
        return None

    def _play(self, env: VecEnv) -> None:
        """Repeat what the only stretch holds: each row's resets and actions, so that all rows end at once."""
        stretch, out = self._stretches[0], env.allocate()
        actions, lengths = stretch.actions, np.array(stretch.lengths)
        waiting = [deque(resets) for resets in self._resets]
        every = torch.arange(self._num_envs)
        seeded: list[bool] = [False] * self._num_envs
        longest = int(lengths.max())
        for tick in range(longest + 1):
            place = tick - (longest - lengths)  # of each row among its own actions; below 0: not yet
            for row in np.flatnonzero(place >= 0).tolist():
                while waiting[row] and waiting[row][0].step == self._seeded_at[row] + place[row]:
                    seed = None if seeded[row] else [self._seeds[row]]
                    env.reset(out, rows=[row], seeds=seed, env_info=waiting[row].popleft().env_info)
                    seeded[row] = True
            rows = np.flatnonzero((place >= 0) & (place < lengths)).tolist()
            if rows:
                index = torch.from_numpy(place.clip(0, longest - 1))
                env.step({key: value[index, every] for key, value in actions.items()}, out, rows)
                for key, value in stretch.outcome.items():
                    value[index[rows], rows] = getattr(out, key)[rows]
        self.saw(out.obs)

    def _actions_of(self, row: int, key: str) -> Tensor:
        """Return what a row did since its last seed, `[N, ...]`."""
        return torch.cat([self._actions[key].zeros(0), *self._since(row, lambda stretch: stretch.actions[key])])

    def _outcome_of(self, row: int) -> list[Tensor]:
        """Return what came of that: its rewards and ends."""
        return [
            torch.cat(self._since(row, lambda stretch, key=key: stretch.outcome[key]) or [torch.empty(0)])
            for key in _OUTCOME
        ]

    def _since(self, row: int, field: Callable[[_Stretch], Tensor]) -> list[Tensor]:
        """Return a field's steps of a row since its last seed, a stretch each."""
        found: list[Tensor] = []
        for stretch in self._stretches:
            begin = max(0, self._seeded_at[row] - stretch.before[row])
            found.append(field(stretch)[begin : stretch.lengths[row], row])
        return found


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()

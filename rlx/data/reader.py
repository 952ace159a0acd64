"""What stands in the rings of a replay buffer from some slots on, as the steps of Trajectories."""

import numpy as np
import torch
from torch import Tensor

from rlx.data.hindsight import Hindsight
from rlx.data.interop import Array
from rlx.data.lazy import Lazy
from rlx.data.rings import Index, Rings
from rlx.data.spec import EnvSpecs
from rlx.data.temporal_dict_tensor import TemporalDictTensor


class Reader:
    """Reads transitions and sequences.

    Attributes:
        info_names: the fields that are of a whole sequence: `agent_info/` and `env_info/`.
        bytes_of_step: about what a step takes that is read.
    """

    def __init__(self, rings: Rings, specs: EnvSpecs, hindsight: Hindsight | None) -> None:
        """Find out, once, which fields go where: a draw is a matter of calls.

        Args:
            rings: where the steps are.
            specs: what the environments show and take.
            hindsight: how transitions get other goals; None for those that were pursued.
        """
        self._rings, self._hindsight = rings, hindsight
        self._num_envs, self._num_slots = rings.num_envs, rings.num_slots
        self._observation, self._actions = tuple(specs.observation), tuple(specs.action)
        self.bytes_of_step = 64 + 2 * sum(spec.num_bytes for spec in specs.observation.values())
        self.info_names = tuple(name for name in rings.specs if name.startswith(("agent_info/", "env_info/")))
        observed = {f"env/{key}" for key in self._observation}
        self._step_names = tuple(name for name in rings.specs if name not in observed and name not in self.info_names)
        own = ("env/is_first", "next/reward", "next/terminated", "next/truncated")
        self._kept_names = tuple(name for name in self._step_names if name not in own)

    def transitions(
        self, slots: Index, *, n_step: int, gamma: float, decision: str | None, generator: torch.Generator | None
    ) -> TemporalDictTensor:
        """Return the steps at `slots` `[N]`, as `[N, 1]`; see `ReplayBuffer.sample`."""
        num_rows = len(slots)
        own = self._rings.fields
        fields = {name: _column(own[name].take(slots, 0)) for name in self._kept_names}
        hindsight = self._hindsight if decision is None else None
        goal = None
        if n_step == 1 and hindsight is None:
            ends = slots
            fields["next/reward"] = _column(own["next/reward"].take(slots))
            fields["next/discount"] = torch.full((num_rows, 1), gamma)
            fields["next/terminated"] = _column(own["next/terminated"].take(ends))
        else:
            path = (slots[:, None] + self._num_envs * np.arange(n_step)) % self._num_slots
            alive = self._rings.is_step.take(path)
            reward, terminated = own["next/reward"].take(path), own["next/terminated"].take(path)
            if decision is not None:
                alive[:, 1:] &= ~own[decision].take(path[:, 1:])
            if hindsight is not None:
                assert generator is not None
                goal = hindsight.relabel(self._rings, path, reward, terminated, generator)
                alive[:, 1:] &= ~terminated[:, :-1]
            alive = alive.cumprod(1)
            row, last = np.arange(num_rows), alive.sum(1) - 1
            discount = np.power(gamma, np.arange(n_step + 1), dtype=np.float32)
            ends = path[row, last]
            reward[alive == 0] = 0.0  # what another goal pays where nothing was achieved may be NaN
            fields["next/reward"] = _column((reward * discount[:-1]).sum(1))
            fields["next/discount"] = _column(discount[last + 1])
            fields["next/terminated"] = _column(terminated[row, last])
        fields["next/truncated"] = _column(own["next/truncated"].take(ends))
        following = (ends + self._num_envs) % self._num_slots
        for key in self._observation:
            fields[f"env/{key}"] = _column(self._rings.look(key, slots))
            fields[f"next/{key}"] = _column(self._rings.look(key, following))
        if hindsight is not None and goal is not None:
            fields |= {name: goal.unsqueeze(1) for name in {hindsight.goal, hindsight.goal.replace("env/", "next/")}}
        return TemporalDictTensor.trusted(fields, torch.from_numpy(np.ones(num_rows, np.int64)), 1)

    def sequences(self, slots: Index, *, num_steps: int, gamma: float) -> TemporalDictTensor:
        """Return the sequences that begin at `slots` `[N]`, `[N, num_steps]`; see `ReplayBuffer.sample_sequences`."""
        num_rows = len(slots)
        path = (slots[:, None] + self._num_envs * np.arange(num_steps)) % self._num_slots
        lengths = torch.from_numpy(self._rings.is_step[path].cumprod(1).sum(1))

        def take(name: str, at: Index) -> Tensor:
            return torch.from_numpy(self._rings.fields[name].take(at, 0))

        def look(key: str, at: Index) -> Tensor:
            seen = self._rings.look(key, at.reshape(-1))
            return torch.from_numpy(seen.reshape(num_rows, num_steps, *seen.shape[1:]))

        fields: dict[str, Tensor | Lazy] = {name: take(name, path) for name in self._step_names}
        fields["next/discount"] = torch.full((num_rows, num_steps), gamma)
        is_first = take("env/is_first", path)
        # What is lazy reads the buffer: it is to be asked for before the next add().
        before, after = (path - self._num_envs) % self._num_slots, (path + self._num_envs) % self._num_slots
        for key in self._observation:
            fields[f"env/{key}"] = look(key, path)
            fields[f"next/{key}"] = Lazy(lambda key=key: look(key, after))
        for key in self._actions:
            fields[f"env/prev_{key}"] = Lazy(lambda key=key: _zeroed(take(f"agent/{key}", before), is_first))
        fields["env/prev_reward"] = Lazy(lambda: _zeroed(take("next/reward", before), is_first))
        return TemporalDictTensor.trusted(fields, lengths, num_steps)


def _column(values: Array) -> Tensor:
    """Return values `[N, ...]` as those of one step, `[N, 1, ...]`."""
    return torch.from_numpy(values[:, None])


def _zeroed(values: Tensor, where: Tensor) -> Tensor:
    values[where] = 0
    return values

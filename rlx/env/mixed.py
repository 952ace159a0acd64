"""Different environments in one batch: several tasks, wrappers or difficulties, as long as their specs agree."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from torch import Tensor

from rlx.env.factory import make
from rlx.env.vec_env import StepBuffer, VecEnv
from rlx.errors import ConfigError, SpecError
from rlx.validate import Range, validate

if TYPE_CHECKING:
    from rlx.data import DictTensor


class MixedVecEnv(VecEnv):
    """Several VecEnvs as one: the rows of the first, then those of the second, and so on.

    It can do what all of its members can.

    Args:
        members: the environments, one at least; they are closed with this one.

    Raises:
        SpecError: two members differ in what they show or take; the message has both specs.
        ConfigError: their autoreset modes or devices differ.
    """

    def __init__(self, members: Sequence[VecEnv]) -> None:
        self.members = list(members)
        first = self.members[0]
        self._columns: list[slice] = []
        start = 0
        for member in self.members:
            if member.specs != first.specs:
                raise SpecError(
                    "the environments of one batch must agree in their specs:\n"
                    f"  {first.name}: {first.specs}\n  {member.name}: {member.specs}"
                )
            if (member.autoreset, member.device) != (first.autoreset, first.device):
                raise ConfigError(
                    f"env.members: {first.name} has autoreset={first.autoreset.value} on {first.device}, "
                    f"{member.name} has {member.autoreset.value} on {member.device}; they must agree"
                )
            self._columns.append(slice(start, start + member.num_envs))
            start += member.num_envs
        self.num_envs = start
        self.specs, self.autoreset, self.device = first.specs, first.autoreset, first.device
        self.spaces = first.spaces if all(member.spaces == first.spaces for member in self.members) else None
        self.name = " + ".join(dict.fromkeys(member.name for member in self.members))
        self.row_step = all(member.row_step for member in self.members)
        self.row_reset = all(member.row_reset for member in self.members)
        self.row_seeds = all(member.row_seeds for member in self.members)
        self.env_info = all(member.env_info for member in self.members)
        self.raw_reward = any(member.raw_reward for member in self.members)
        self.own_state = all(member.own_state for member in self.members)
        self._owner = np.repeat(np.arange(len(self.members)), [member.num_envs for member in self.members])
        # A buffer's parts, cut once; the buffer is kept with them, so that no other one can have its identity.
        self._parts: dict[int, tuple[StepBuffer, list[StepBuffer]]] = {}

    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: "DictTensor | None" = None,
    ) -> None:
        """Begin new episodes in some rows; see `VecEnv.reset`."""
        parts = self._parts_of(out)
        for number, (member, columns) in enumerate(zip(self.members, self._columns, strict=True)):
            if rows is None:
                places: slice | list[int] = columns
                inner = None
            else:
                places = [place for place, row in enumerate(rows) if self._owner[row] == number]
                inner = [rows[place] - columns.start for place in places]
                if not inner:
                    continue
            given = None
            if seeds is not None:
                given = seeds[places] if isinstance(places, slice) else [seeds[place] for place in places]
            member.reset(parts[number], inner, given, None if env_info is None else env_info[places])

    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step in some rows; see `VecEnv.step`."""
        parts = self._parts_of(out)
        for number, (member, columns) in enumerate(zip(self.members, self._columns, strict=True)):
            inner = None
            if rows is not None:
                inner = [row - columns.start for row in rows if self._owner[row] == number]
                if not inner:
                    continue
            part = parts[number]
            member.step({key: value[columns] for key, value in action.items()}, part, inner)
            if self.raw_reward and not member.raw_reward and out.raw_reward_np is not None:
                out.raw_reward_np[columns] = part.reward_np

    def goal_outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the one member, where there is one; see `VecEnv.goal_outcome`.

        Raises:
            ConfigError: there are several.
        """
        if len(self.members) == 1:
            return self.members[0].goal_outcome(achieved, desired)
        raise ConfigError(
            f"env=mixed has {len(self.members)} environments ({self.name}), and a stored transition does not say which "
            "of them is to be asked what another goal would have paid; expected one environment"
        )

    def get_state(self) -> dict[str, Any]:
        """Return the members' states; see `VecEnv.get_state`."""
        return {"members": [member.get_state() for member in self.members]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there, every member; see `VecEnv.set_state`."""
        for member, own in zip(self.members, state["members"], strict=True):
            member.set_state(own)

    def render(self, row: int = 0) -> Any:
        """Return a picture of a row as its environment draws it, or None where it draws none."""
        number = int(self._owner[row])
        return self.members[number].render(row - self._columns[number].start)

    def close(self) -> None:
        """Close every member; harmless when called again."""
        for member in self.members:
            member.close()

    def _parts_of(self, out: StepBuffer) -> list[StepBuffer]:
        known = self._parts.get(id(out))
        if known is not None:
            return known[1]
        parts = [
            StepBuffer(
                {key: value[columns] for key, value in out.obs.items()},
                out.reward[columns],
                out.terminated[columns],
                out.truncated[columns],
                None if out.final_obs is None else {key: value[columns] for key, value in out.final_obs.items()},
                None if out.raw_reward_np is None else out.raw_reward_np[columns],
            )
            for columns in self._columns
        ]
        self._parts[id(out)] = out, parts
        return parts


def make_mixed(num_envs: Annotated[int, Range(1)], *, members: list[dict[str, Any]]) -> VecEnv:
    """Build one batch of different environments, in equal shares; the first members get what is left over.

    Args:
        num_envs: rows in all, at least one a member.
        members: the keys of `make` for each: `id`, and any of `kwargs`, `wrappers`, `max_episode_steps`, ...

    Raises:
        ConfigError: no member, more members than rows, or a key that `make` does not have.
        SpecError: two members differ in what they show or take; the message has both specs.
    """
    if not members:
        raise ConfigError("env.members: got none, expected a list such as [{id: CartPole-v1}, {id: CartPole-v0}]")
    if num_envs < len(members):
        raise ConfigError(
            f"env.members: got {len(members)} environments for {num_envs} rows; "
            f"expected batcher.envs_per_worker >= {len(members)}"
        )
    share, more = divmod(num_envs, len(members))
    made: list[VecEnv] = []
    try:
        for number, keys in enumerate(members):
            checked = validate(make, keys, f"env.members[{number}]", given=("num_envs",))
            made.append(make(num_envs=share + (number < more), **checked))
        return MixedVecEnv(made)
    except BaseException:
        for env in made:
            env.close()
        raise

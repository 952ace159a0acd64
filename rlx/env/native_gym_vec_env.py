"""The adapter for environments that are batched by themselves: Gymnasium's native vector environments."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from gymnasium import Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rlx.data.action_mask import ACTION_MASK
from rlx.env.actions import ActionReader
from rlx.env.fault import RAISED, environment_fault, raised
from rlx.env.info_mask import MaskedSpace
from rlx.env.observations import ObservationWriter
from rlx.env.spaces import to_specs
from rlx.env.state import native_state, native_tells, set_native_state
from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv
from rlx.errors import ConfigError, EnvironmentFault, UnsupportedSpaceError

if TYPE_CHECKING:
    from rlx.data import DictTensor

Array = NDArray[Any]

_AUTORESETS = {
    AutoresetMode.NEXT_STEP: Autoreset.NEXT_STEP,
    AutoresetMode.SAME_STEP: Autoreset.SAME_STEP,
    AutoresetMode.DISABLED: Autoreset.NONE,
}


class NativeGymVecEnv(VecEnv):
    """A Gymnasium vector environment as a VecEnv, whatever its autoreset mode.

    NEXT_STEP and SAME_STEP environments reset their rows themselves, so that they can be reset from outside only as a
    whole. DISABLED ones reset the rows that `reset(rows=...)` names. All rows are stepped together. Most native
    environments draw from one generator: the first seed given to `reset` counts for all rows (`row_seeds` False).

    Args:
        env: the vector environment; it is closed with this one.
        name: what messages call the environment: its id.
        reward_scale: what rewards are multiplied with.
        clip_reward: whether rewards are clipped to [-1, 1], before they are scaled.
        action_mask: whether to take the mask in the info, `[B, n]`, into the observation; see `make`.

    Raises:
        ConfigError: the environment declares no autoreset mode, or one that rlx does not know; or its info's mask was
            asked for, and its observation has one already or its actions cannot have one.
        UnsupportedSpaceError: rlx has no layout for one of its spaces.
    """

    def __init__(
        self,
        env: "VectorEnv[Any, Any, Any]",
        *,
        name: str = "environment",
        reward_scale: float = 1.0,
        clip_reward: bool = False,
        action_mask: bool = False,
    ) -> None:
        self.name = name
        self.env = env
        self.num_envs = env.num_envs
        self.autoreset = _autoreset(env, name)
        self.row_reset = self.autoreset is Autoreset.NONE
        self.row_seeds = isinstance(env.unwrapped, (SyncVectorEnv, AsyncVectorEnv))
        self.raw_reward = clip_reward or reward_scale != 1.0
        observation_space, action_space = _single_spaces(env)
        self.own_state = native_tells(env)
        self._masked = MaskedSpace(observation_space, action_space, name) if action_mask else None
        if self._masked is not None:
            observation_space = self._masked.space
        self.spaces = observation_space, action_space
        try:
            self.specs = to_specs(*self.spaces)
        except UnsupportedSpaceError as error:
            raise UnsupportedSpaceError(f"environment '{name}': {error}") from None
        self._writer = ObservationWriter(observation_space)
        self._reader = ActionReader(action_space, env.num_envs)
        self._env_step: Callable[[Any], Any] = env.step
        self._reward_scale, self._clip_reward = reward_scale, clip_reward
        self._shape = (env.num_envs,)
        self._seed: int | None = None
        self._steps = 0
        self._closed = False

    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: "DictTensor | None" = None,
    ) -> None:
        """Begin a new episode in all rows, or, where the environment's autoreset is disabled, in some of them."""
        if env_info is not None:
            raise ConfigError(
                f"environment '{self.name}': env_info was given, and native vector environments take none; "
                "use env.vectorization=per_instance"
            )
        options: dict[str, Any] | None = None
        if rows is not None:
            if not self.row_reset:
                raise ConfigError(
                    f"environment '{self.name}' resets its rows itself ({self.autoreset.name}); "
                    f"got reset(rows={list(rows)}), expected rows=None"
                )
            mask = np.zeros(self.num_envs, np.bool_)
            mask[list(rows)] = True
            options = {"reset_mask": mask}
        seed: Any = self._seed_argument(rows, seeds)
        try:
            answer: Any = self.env.reset(seed=seed, options=options)
        except RAISED as error:
            raise self._fault(raised("reset", error)) from error
        observations, info = self._unpack("reset", answer, ("observations", "info"))
        if self._masked is not None:
            if ACTION_MASK not in info:
                raise self._masked.nothing_told(info)
            observations = self._masked.join(observations, info[ACTION_MASK])
        self._write("reset", observations, out.obs_np, None if rows is None else list(rows))
        if rows is None:
            self._steps = 0

    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step in all rows; see `VecEnv.step` and `Autoreset`."""
        if rows is not None:
            raise ConfigError(
                f"environment '{self.name}' steps all its rows together; "
                f"got step(rows={list(rows)}), expected rows=None"
            )
        actions = self._reader.batch(action)
        self._steps += 1
        try:
            answer: Any = self._env_step(actions)
        except RAISED as error:
            raise self._fault(raised("step", error)) from error
        names = ("observations", "rewards", "terminated", "truncated", "info")
        observations, rewards, terminated, truncated, info = self._unpack("step", answer, names)
        if self._masked is not None:
            observations = self._masked.join(observations, self._mask(info, np.asarray(terminated, np.bool_)))
        self._write("step", observations, out.obs_np, None)
        out.terminated_np[:] = self._checked("terminated", terminated, "b")
        out.truncated_np[:] = self._checked("truncated", truncated, "b")
        out.reward_np[:] = rewards = self._checked("rewards", rewards, "fiub")
        if self.raw_reward:
            if out.raw_reward_np is not None:
                out.raw_reward_np[:] = rewards
            if self._clip_reward and np.count_nonzero(rewards):  # most steps of a game pay nothing
                out.reward_np.clip(-1.0, 1.0, out=out.reward_np)
            if self._reward_scale != 1.0:
                out.reward_np *= self._reward_scale
        if self.autoreset is Autoreset.SAME_STEP:
            self._write_final(cast("Mapping[str, Any]", info), out)

    def get_state(self) -> dict[str, Any]:
        """Return the state of an environment that has `get_state` and `set_state`, or is Gymnasium's own CartPole."""
        return {"env": native_state(self.env), "steps": self._steps, "seed": self._seed}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; see `VecEnv.set_state`."""
        set_native_state(self.env, state["env"])
        self._steps, self._seed = state["steps"], state["seed"]

    def render(self, row: int = 0) -> Any:
        """Return a picture of a row as the environment draws it, or None where it draws none."""
        try:
            frames: Any = self.env.render()
        except NotImplementedError:
            return None
        except Exception as error:
            raise self._fault(raised("render", error)) from error
        return None if frames is None else frames[row]

    def close(self) -> None:
        """Close the environment; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self.env.close()
        except Exception as error:
            raise self._fault(raised("close", error)) from error

    def _seed_argument(
        self, rows: Sequence[int] | None, seeds: Sequence[int | None] | None
    ) -> int | list[int | None] | None:
        """Return the seeds as this environment takes them: one for each of its rows, or one number for all."""
        if seeds is None:
            return None
        given = [seed for seed in seeds if seed is not None]
        self._seed = given[0] if given else self._seed
        if not self.row_seeds:
            return given[0] if given else None
        places = range(self.num_envs) if rows is None else rows
        by_row = dict(zip(places, seeds, strict=True))
        return [by_row.get(row) for row in range(self.num_envs)]

    def _unpack(self, doing: str, answer: object, names: tuple[str, ...]) -> tuple[Any, ...]:
        values = cast("tuple[Any, ...]", answer)
        if not isinstance(answer, tuple) or len(values) != len(names):
            got = f"{len(values)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
            raise self._fault(f"{doing} returned {got}; expected ({', '.join(names)})")
        return values

    def _write(self, doing: str, observations: Any, arrays: Mapping[str, Array], rows: list[int] | None) -> None:
        wrong = self._writer.write_batch(observations, arrays, rows)
        if wrong is not None:
            raise self._fault(f"{doing} returned observations that break their space: {wrong}")

    def _write_final(self, info: Mapping[str, Any], out: StepBuffer) -> None:
        """Write the true final observations of the rows that ended and are already in their next episode."""
        ended = np.flatnonzero(out.terminated_np | out.truncated_np)
        if not ended.size:
            return
        final = info.get("final_obs")
        if final is None:
            raise self._fault("info holds no 'final_obs', where an environment that resets in the same step leaves it")
        masks: Any = None
        if self._masked is not None:
            masks = self._mask(info.get("final_info", {}), out.terminated_np, ended)
        if getattr(final, "dtype", None) == np.dtype(object):
            for row in ended.tolist():
                seen = final[row] if self._masked is None else self._masked.join(final[row], masks[row])
                wrong = self._writer.write_row(seen, out.final_obs_np, row)
                if wrong is not None:
                    raise self._fault(f"the final observation of row {row} breaks its space: {wrong}")
        else:
            seen = final if self._masked is None else self._masked.join(final, masks)
            self._write("step", seen, out.final_obs_np, ended.tolist())

    def _mask(self, info: Mapping[str, Any], terminated: Array, rows: Array | slice = slice(None)) -> Array:
        """Return the masks `[B, n]` that an info tells, zeros where an episode terminated and it tells none."""
        assert self._masked is not None
        size = (self.num_envs, self._masked.size)
        told = np.asarray(info.get(ACTION_MASK, np.zeros(size, np.int8)))
        present = np.asarray(info.get(f"_{ACTION_MASK}", np.full(self._shape, ACTION_MASK in info)), np.bool_)
        if not (present | terminated)[rows].all():
            raise self._fault(f"step's info tells no '{ACTION_MASK}' for some rows, where reset's did")
        return told if told.shape != size or present.all() else np.where(present[:, None], told, 0)

    def _checked(self, name: str, values: Any, kinds: str) -> Array:
        """Return one value a row; NumPy alone would broadcast a wrong shape in silence."""
        array = np.asarray(values)
        if array.shape != self._shape or array.dtype.kind not in kinds:
            expected = "booleans" if kinds == "b" else "numbers"
            raise self._fault(
                f"step returned {name} of shape {array.shape} and dtype {array.dtype}; "
                f"expected {expected} of shape {self._shape}"
            )
        return array

    def _fault(self, what: str) -> EnvironmentFault:
        return environment_fault(self.name, what, seed=self._seed, step=self._steps)


def _single_spaces(env: Any) -> tuple[Space[Any], Space[Any]]:
    return env.single_observation_space, env.single_action_space


def _autoreset(env: "VectorEnv[Any, Any, Any]", name: str) -> Autoreset:
    declared: Any = env.metadata.get("autoreset_mode")
    for mode, autoreset in _AUTORESETS.items():
        if declared in (mode, mode.value):
            return autoreset
    known = ", ".join(mode.name for mode in _AUTORESETS)
    raise ConfigError(
        f"environment '{name}': its autoreset mode, metadata['autoreset_mode'], is {declared!r}; expected one of "
        f"{known}. Without it nobody can tell where an episode ends; use env.vectorization=per_instance"
    )

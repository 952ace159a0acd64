"""The per-instance adapter: B Gymnasium environments, stepped one after the other."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
from torch import Tensor

from rlx.env.actions import ActionReader
from rlx.env.fault import RAISED, environment_fault, raised
from rlx.env.goal_env import goal_outcome
from rlx.env.observations import ObservationWriter
from rlx.env.raw_reward import RawReward
from rlx.env.spaces import to_specs
from rlx.env.state import instance_state, instance_tells, set_instance_state
from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv
from rlx.errors import EnvironmentFault, RlxError, UnsupportedSpaceError

if TYPE_CHECKING:
    from rlx.data import DictTensor

GymEnv = gymnasium.Env[Any, Any]

# The first calls of `step`, and a few of the later ones, check every answer in full. The others check shapes only, and
# rely on what NumPy refuses by itself.
_CHECKED_CALLS = 16
_CHECKED_EVERY = 256

_NOTHING: Any = object()

_NO_OPTIONS = (
    ". It got no options (no task): where it needs some, batcher.env_info gives them in training and evaluation alike, "
    "reset(env_info=...) to one batcher alone"
)
"""What is said of a reset that raises where it finds nothing in its options: an evaluation has no learner's tasks."""


class GymVecEnv(VecEnv):
    """B Gymnasium environments, one instance a row.

    Rows are reset by the caller, one by one, so that `out.obs` of a step that ends an episode is the true final
    observation. A row that ended must be reset before it is stepped again.

    Args:
        make_env: builds the environment of one row; called once for each row.
        num_envs: number of rows, B.
        name: what messages call the environment: its id.
        reward_scale: what rewards are multiplied with.

    Raises:
        EnvironmentFault: an environment cannot be built, rows share one, or their spaces differ.
        UnsupportedSpaceError: rlx has no layout for one of its spaces.
    """

    autoreset = Autoreset.NONE
    row_step = True
    row_reset = True
    row_seeds = True
    env_info = True

    def __init__(
        self,
        make_env: Callable[[], GymEnv],
        num_envs: int,
        *,
        name: str = "environment",
        reward_scale: float = 1.0,
    ) -> None:
        self.name = name
        self.num_envs = num_envs
        self.envs: list[GymEnv] = []
        try:
            for row in range(num_envs):
                self.envs.append(self._make(make_env, row))
            bare = [getattr(env, "unwrapped", env) for env in self.envs]
            if len({id(env) for env in bare}) < num_envs:
                raise environment_fault(name, "rows were given the same one; make_env has to make one at each call")
            first = self.envs[0]
            self.spaces = first.observation_space, first.action_space
            self.specs = to_specs(*self.spaces)
        except BaseException as error:
            self._close_quietly()
            if isinstance(error, UnsupportedSpaceError):
                raise UnsupportedSpaceError(f"environment '{name}': {error}") from None
            raise
        self.own_state = all(map(instance_tells, self.envs))
        self._writer = ObservationWriter(first.observation_space)
        self._reader = ActionReader(first.action_space, num_envs)
        self._plain_shape = self._writer.plain_shape
        self._raw_rewards = np.zeros(num_envs)
        self._steps = [env.step for env in self.envs]
        self._recorders = [recorder for recorder in map(_recorder, self.envs) if recorder is not None]
        self._reward_scale = reward_scale
        self.raw_reward = bool(self._recorders) or reward_scale != 1.0
        self._closed = False
        self._calls = 0
        self._call_at_reset = [0] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._episodes = [0] * num_envs

    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: "DictTensor | None" = None,
    ) -> None:
        """Begin a new episode in some rows; see `VecEnv.reset`.

        `env_info` reaches Gymnasium's `reset` as `options={key: value}`: a Python number for a field without further
        dimensions, an array for others.
        """
        for place, row in enumerate(range(self.num_envs) if rows is None else rows):
            seed = None if seeds is None else seeds[place]
            options = None if env_info is None else _options(env_info, place)
            if seed is not None:
                self._seeds[row] = seed
                self._episodes[row] = 0
            self._episodes[row] += 1
            self._call_at_reset[row] = self._calls
            try:
                answer: Any = self.envs[row].reset(seed=seed, options=options)
            except RlxError:
                raise
            except RAISED as error:
                hint = _NO_OPTIONS if options is None and isinstance(error, TypeError | LookupError) else ""
                raise self._fault(row, raised("reset", error) + hint) from error
            if _length(answer) != 2:
                raise self._fault(row, f"reset returned {_named(answer)}; expected (observation, info)")
            wrong = self._writer.write_row(answer[0], out.obs_np, row)
            if wrong is not None:
                raise self._fault(row, f"reset returned an observation that breaks its space: {wrong}")
            if self._recorders:
                self._recorders[row].take()

    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step in some rows; see `VecEnv.step`."""
        actions = self._reader.rows(action)
        if rows is not None:
            self._step_rows(actions, out, rows)
            return
        self._calls = calls = self._calls + 1
        checking = calls <= _CHECKED_CALLS or not calls % _CHECKED_EVERY
        plain = self._plain_shape
        reward = self._raw_rewards if self.raw_reward else out.reward_np
        terminated, truncated = out.terminated_np, out.truncated_np
        steps = self._steps
        row, answer = 0, _NOTHING
        try:
            if plain is not None and not checking:  # the hot path: nothing is looked at that NumPy would refuse
                target = out.obs_np["obs"]
                for row, chosen in enumerate(actions):
                    answer = steps[row](chosen)
                    observation, reward[row], terminated[row], truncated[row], _ = answer
                    if observation.shape != plain:
                        self._check(row, answer)
                    target[row] = observation
                    answer = _NOTHING
            else:
                observations: list[Any] = []
                for row, chosen in enumerate(actions):
                    answer = steps[row](chosen)
                    observation, reward[row], terminated[row], truncated[row], _ = answer
                    observations.append(observation)
                    if checking:
                        self._check(row, answer)
                    answer = _NOTHING
                self._write(observations, out)
        except RlxError:
            raise
        except RAISED as error:
            if answer is not _NOTHING:
                self._check(row, answer)
            raise self._fault(row, raised("step", error)) from error
        if self.raw_reward:
            self._write_raw_rewards(out)

    def get_state(self) -> dict[str, Any]:
        """Return the states of environments that have `get_state` and `set_state` of their own; see there."""
        counts = {"seeds": self._seeds, "episodes": self._episodes, "calls_at_reset": self._call_at_reset}
        own = {"envs": [instance_state(env) for env in self.envs], "calls": self._calls}
        return own | {name: list(values) for name, values in counts.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; see `VecEnv.set_state`."""
        for env, own in zip(self.envs, state["envs"], strict=True):
            set_instance_state(env, own)
        self._calls, self._seeds = state["calls"], list(state["seeds"])
        self._episodes, self._call_at_reset = list(state["episodes"]), list(state["calls_at_reset"])

    def goal_outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the first row's `compute_reward` and `compute_terminated`; see `VecEnv.goal_outcome`."""
        reward, terminated = goal_outcome(self.envs[0], achieved, desired, self.name)
        return reward * self._reward_scale, terminated

    def render(self, row: int = 0) -> Any:
        """Return a picture of a row as the environment draws it, or None where it draws none."""
        try:
            return self.envs[row].render()
        except Exception as error:
            raise self._fault(row, raised("render", error)) from error

    def close(self) -> None:
        """Close every environment; harmless when called again.

        Raises:
            EnvironmentFault: an environment raised while closing; the others are closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        fault: EnvironmentFault | None = None
        for row, env in enumerate(self.envs):
            try:
                env.close()
            except Exception as error:
                if fault is None:
                    fault = environment_fault(self.name, raised("close", error), row=row)
                    fault.__cause__ = error
        if fault is not None:
            raise fault

    def _make(self, make_env: Callable[[], GymEnv], row: int) -> GymEnv:
        try:
            env = make_env()
        except RlxError:
            raise
        except RAISED as error:
            raise environment_fault(self.name, raised("its constructor", error), row=row) from error
        for kind in ("observation_space", "action_space"):
            if not hasattr(env, kind):
                raise environment_fault(self.name, f"it declares no {kind}", row=row)
            first = getattr(self.envs[0], kind) if self.envs else getattr(env, kind)
            if getattr(env, kind) != first:
                what = f"its {kind} is {getattr(env, kind)}; expected {first}, as in row 0"
                env.close()
                raise environment_fault(self.name, what, row=row)
        return env

    def _step_rows(self, actions: list[Any], out: StepBuffer, rows: Sequence[int]) -> None:
        """Step some rows. The others' step counts stand still while the count of calls goes on."""
        stepped = set(rows)
        self._calls += 1
        for row in range(self.num_envs):
            if row not in stepped:
                self._call_at_reset[row] += 1
        for row in rows:
            try:
                answer: Any = self._steps[row](actions[row])
            except RAISED as error:
                raise self._fault(row, raised("step", error)) from error
            self._check(row, answer)
            observation, reward, terminated, truncated, _ = answer
            self._writer.write_row(observation, out.obs_np, row)
            out.terminated_np[row] = terminated
            out.truncated_np[row] = truncated
            out.reward_np[row] = float(reward) * self._reward_scale
            if out.raw_reward_np is not None:
                out.raw_reward_np[row] = self._recorders[row].take() if self._recorders else reward

    def _write(self, observations: list[Any], out: StepBuffer) -> None:
        try:
            self._writer.write_all(observations, out)
        except Exception as error:
            for row, observation in enumerate(observations):
                wrong = self._writer.problem(observation)
                if wrong is not None:
                    raise self._fault(row, f"step returned an observation that breaks its space: {wrong}") from None
            raise self._fault(0, f"its observations cannot be stored: {error}") from error

    def _write_raw_rewards(self, out: StepBuffer) -> None:
        """Scale the rewards that `step` left in `_raw_rewards`, and tell what the bare environment paid."""
        np.multiply(self._raw_rewards, self._reward_scale, out=out.reward_np, casting="same_kind")
        if self._recorders:
            self._raw_rewards[:] = [recorder.take() for recorder in self._recorders]
        if out.raw_reward_np is not None:
            out.raw_reward_np[:] = self._raw_rewards

    def _check(self, row: int, answer: Any) -> None:
        wrong = self._problem(answer)
        if wrong is not None:
            raise self._fault(row, wrong)

    def _problem(self, answer: Any) -> str | None:
        """Return what is wrong with what one environment's `step` returned, or None."""
        if _length(answer) != 5:
            return f"step returned {_named(answer)}; expected (observation, reward, terminated, truncated, info)"
        wrong = self._writer.problem(answer[0])
        if wrong is not None:
            return f"step returned an observation that breaks its space: {wrong}"
        if np.ndim(answer[1]) or np.asarray(answer[1]).dtype.kind not in "fiub":
            return f"step returned the reward {answer[1]!r}; expected a number"
        for name, value in (("terminated", answer[2]), ("truncated", answer[3])):
            if np.ndim(value) or np.asarray(value).dtype.kind not in "biu":
                return f"step returned {name}={value!r}; expected True or False"
        return None

    def _fault(self, row: int, what: str) -> EnvironmentFault:
        return environment_fault(
            self.name,
            what,
            row=row,
            seed=self._seeds[row],
            episode=self._episodes[row],
            step=self._calls - self._call_at_reset[row],
        )

    def _close_quietly(self) -> None:
        """Close what was built before something else failed, which is what the user must hear of."""
        for env in self.envs:
            with contextlib.suppress(Exception):
                env.close()


def _recorder(env: GymEnv) -> RawReward | None:
    layer: GymEnv = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, RawReward):
            return layer
        layer = layer.env
    return None


def _length(answer: object) -> int | None:
    return len(cast("tuple[Any, ...]", answer)) if isinstance(answer, tuple) else None


def _named(answer: object) -> str:
    length = _length(answer)
    return f"a {type(answer).__name__}" if length is None else f"{length} values"


def _options(env_info: "DictTensor", row: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key in env_info.keys():  # noqa: SIM118
        value = env_info[key][row]
        options[key] = value.item() if value.ndim == 0 else value.numpy().copy()
    return options

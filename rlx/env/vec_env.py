"""The contract of every environment: B rows stepped together, which write their answers into a StepBuffer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.data.spec import EnvSpecs, Spec
from rlx.errors import ConfigError, SpecError

if TYPE_CHECKING:
    from gymnasium import Space

    from rlx.data import DictTensor

Array = NDArray[Any]


class Autoreset(Enum):
    """Who resets a row whose episode has ended, and when.

    Attributes:
        NONE: the caller, by `reset(rows=...)`. A row that ended must be reset before it is stepped again.
        NEXT_STEP: the environment, at the next `step`, which ignores that row's action: the call writes the new
            episode's first observation, and no transition (the row's reward and end flags mean nothing).
        SAME_STEP: the environment, in the `step` that ended the episode: `obs` holds the new episode's first
            observation, and `final_obs` the true final one of the episode that ended.
    """

    NONE = "none"
    NEXT_STEP = "next_step"
    SAME_STEP = "same_step"


class StepFields(dict[str, Tensor]):
    """Tensors of one step, `[B, ...]` by name, with NumPy views of the same memory.

    The rollout loop has them for each time step, as it has a `StepBuffer`: the actions, and all that the agent puts
    out. To make a view costs more than to read it; a plain dict of tensors does everywhere else.

    Attributes:
        arrays: the views, by key; without fields that NumPy has no type for, and empty elsewhere than on the CPU.
    """

    __slots__ = ("arrays",)

    def __init__(self, fields: Mapping[str, Tensor]) -> None:
        """Take views of memory that belongs to the caller."""
        super().__init__(fields)
        self.arrays: dict[str, Array] = {}
        for key, tensor in fields.items():
            if tensor.device.type == "cpu":
                with suppress(TypeError):  # bfloat16
                    self.arrays[key] = tensor.numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied, or sent elsewhere, as a plain dict: views would not be of the copy's own memory."""
        return dict, (dict(self),)


class StepBuffer:
    """Where the answers of one step go: B rows of memory that the caller owns.

    The rollout loop builds one for each time step, once, as views of the block that the learner reads; an environment
    writes straight into them. Each tensor on the CPU is there a second time as a NumPy view of the same memory, since
    writing one row through NumPy costs a tenth of what it costs through torch. Elsewhere the dicts of views are empty
    and the single views have no rows.

    Attributes:
        obs: observations `[B, *shape]` under the keys of the observation specs.
        reward: `[B]`, float32.
        terminated: `[B]`, bool.
        truncated: `[B]`, bool.
        final_obs: like `obs`, for SAME_STEP environments; the rows whose episode ended in this step are valid.
        obs_np: NumPy views of `obs`; likewise `reward_np`, `terminated_np`, `truncated_np`, `final_obs_np`.
        obs_flat_np: NumPy views `[B * n, ...]` of the observations `[B, n, ...]` that lie in one piece of memory: all
            rows can be written by one `np.concatenate`.
        raw_reward_np: `[B]`, float64: the bare environment's reward, for environments that declare `raw_reward`.
    """

    __slots__ = (
        "_flags",
        "_no_flags",
        "_on_host",
        "final_obs",
        "final_obs_np",
        "obs",
        "obs_flat_np",
        "obs_np",
        "raw_reward_np",
        "reward",
        "reward_np",
        "terminated",
        "terminated_np",
        "truncated",
        "truncated_np",
    )

    def __init__(
        self,
        obs: Mapping[str, Tensor],
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        final_obs: Mapping[str, Tensor] | None = None,
        raw_reward_np: NDArray[np.float64] | None = None,
    ) -> None:
        """Take views of memory that belongs to the caller; nothing is copied and nothing is checked.

        Args:
            obs: tensors `[B, *shape]` under the keys of the observation specs.
            reward: `[B]`, float32.
            terminated: `[B]`, bool.
            truncated: `[B]`, bool.
            final_obs: like `obs`; only SAME_STEP environments need it.
            raw_reward_np: `[B]`, float64; only environments that declare `raw_reward` need it.
        """
        self.obs: dict[str, Tensor] = dict(obs)
        self.reward = reward
        self.terminated = terminated
        self.truncated = truncated
        self.final_obs: dict[str, Tensor] | None = None if final_obs is None else dict(final_obs)
        self.raw_reward_np = raw_reward_np
        self.obs_np = _views(self.obs)
        self.obs_flat_np = {
            key: array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
            for key, array in self.obs_np.items()
            if array.ndim > 1 and array.flags.c_contiguous
        }
        self.final_obs_np = _views(self.final_obs or {})
        self.reward_np: Array = _view(reward)
        self.terminated_np: Array = _view(terminated)
        self.truncated_np: Array = _view(truncated)
        self._flags = [_bytes_of(self.terminated_np), _bytes_of(self.truncated_np)]
        self._no_flags = bytes(len(self.terminated_np))
        self._on_host = reward.device.type == "cpu"

    def ended_rows(self) -> list[int]:
        """Return the rows whose episode ended in this step. Elsewhere than on the CPU, this waits for the device."""
        terminated, truncated = self._flags  # bytes tell in a fifth of NumPy's time that there are none
        if self._on_host and terminated() == self._no_flags and truncated() == self._no_flags:
            return []
        if self._on_host:
            return (self.terminated_np | self.truncated_np).nonzero()[0].tolist()
        return cast("list[int]", (self.terminated | self.truncated).nonzero().flatten().tolist())

    @classmethod
    def allocate(
        cls,
        observation_specs: Mapping[str, Spec],
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        final_obs: bool = False,
        raw_reward: bool = False,
    ) -> Self:
        """Return a buffer of new zeroed memory.

        Args:
            observation_specs: `VecEnv.specs.observation`.
            num_envs: number of rows.
            device: where the tensors live: `VecEnv.device`.
            final_obs: whether to hold final observations too (SAME_STEP environments).
            raw_reward: whether to hold the bare environment's rewards too.
        """

        def observations() -> dict[str, Tensor]:
            return {key: spec.zeros(num_envs, device=device) for key, spec in observation_specs.items()}

        return cls(
            obs=observations(),
            reward=torch.zeros(num_envs, device=device),
            terminated=torch.zeros(num_envs, dtype=torch.bool, device=device),
            truncated=torch.zeros(num_envs, dtype=torch.bool, device=device),
            final_obs=observations() if final_obs else None,
            raw_reward_np=np.zeros(num_envs) if raw_reward else None,
        )


class VecEnv(ABC):
    """B environments stepped together.

    Resets belong to the rollout loop, except where `autoreset` says otherwise. An environment declares what it can do
    in the attributes below; what needs a thing that it lacks is refused by name. Episode return and length are
    counted by the rollout loop.

    Attributes:
        name: what messages call this environment: its id.
        num_envs: number of rows, B.
        specs: what a row shows and takes, without the batch dimension. An observation `obs/action_mask` says which
            actions are allowed at the next step; see `rlx.data.find_mask`.
        device: where observations are written and actions are expected.
        autoreset: who resets a row whose episode has ended.
        row_step: whether `step(rows=...)` can step some rows and leave the others alone.
        row_reset: whether `reset(rows=...)` can reset some rows and leave the others alone.
        row_seeds: whether each row takes its own seed at reset; otherwise the first seed given counts for all rows.
        env_info: whether `reset` takes `env_info`.
        raw_reward: whether `step` writes `out.raw_reward_np`, because a wrapper changes the reward.
        own_state: whether there are `get_state` and `set_state`.
        spaces: Gymnasium's observation and action space of one row: what the environment itself shows and takes, where
            that is not what `specs` say (dtypes, and where Discrete numbers begin); None where it is.
    """

    name: str = "environment"
    num_envs: int
    specs: EnvSpecs
    device: torch.device = torch.device("cpu")
    autoreset: Autoreset = Autoreset.NONE
    row_step: bool = False
    row_reset: bool = False
    row_seeds: bool = False
    env_info: bool = False
    raw_reward: bool = False
    own_state: bool = False
    spaces: "tuple[Space[Any], Space[Any]] | None" = None

    @abstractmethod
    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: "DictTensor | None" = None,
    ) -> None:
        """Begin a new episode in some rows and write their first observations into `out.obs`.

        Args:
            out: memory of all B rows; only `obs` of the rows that are reset is written.
            rows: the rows to reset, None for all.
            seeds: one seed a row of `rows` (of all, where `rows` is None); None for a row goes on with the generator
                that it has.
            env_info: one row for each row of `rows`: task, goal, level, as the environment understands them.

        Raises:
            EnvironmentFault: the environment raised, or showed what its own spaces do not allow.
            ConfigError: `rows` or `env_info` were given and the environment does not take them.
        """

    @abstractmethod
    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step in some rows and write what came of it into `out`.

        Args:
            action: tensors `[B, *shape]` under the keys of the action specs, on `device`.
            out: memory of all B rows; all that `StepBuffer` holds is written, of the rows that are stepped.
            rows: the rows to step, None for all.

        Raises:
            EnvironmentFault: the environment raised, or showed what its own spaces do not allow.
            ConfigError: `rows` were given and the environment lacks `row_step`.
        """

    def goal_outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a step pays and whether it ends the episode, `[N]` float32 and `[N]` bool, from its goals alone.

        For environments that show `obs/achieved_goal` and `obs/desired_goal`: what a step that led to the one would
        have been worth, had the other been pursued.

        Args:
            achieved: `[N, ...]`, on the CPU, as `obs/achieved_goal` is stored.
            desired: `[N, ...]`, likewise.

        Raises:
            ConfigError: the environment does not pursue goals.
            EnvironmentFault: it raised, or answered with anything but one number and one truth value a row.
        """
        raise ConfigError(f"environment '{self.name}' does not tell what other goals would have paid (goal_outcome)")

    def allocate(self) -> StepBuffer:
        """Return a new `StepBuffer` that fits this environment."""
        return StepBuffer.allocate(
            self.specs.observation,
            self.num_envs,
            self.device,
            final_obs=self.autoreset is Autoreset.SAME_STEP,
            raw_reward=self.raw_reward,
        )

    def get_state(self) -> dict[str, Any]:
        """Return all that decides what the environments do next, so that a run goes on in the middle of an episode.

        Episodes, time limits, and every generator that is drawn from: after `set_state` of another instance of the same
        make, the same actions get the same answers, to the bit. Plain data: dictionaries, lists, numbers, text, None,
        tensors and NumPy arrays, copied, so that later steps do not change them. For environments that declare
        `own_state`. With others a resumed run repeats what was done since the rows' last seeds, where rows can be reset
        and stepped one by one, or begins new episodes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no state of its own to give: own_state is False")

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` of another instance returned.

        Args:
            state: as it was returned; tensors are on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} has no state of its own to take: own_state is False")

    def render(self, row: int = 0) -> Any:
        """Return a picture of a row as the environment draws it, or None where it draws none."""
        del row
        return None

    def close(self) -> None:  # noqa: B027
        """Let go of what the environment holds; harmless when called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _bytes_of(flags: Array) -> Callable[[], bytes]:
    return memoryview(cast(Any, flags.view(np.uint8))).tobytes


def _view(tensor: Tensor) -> Array:
    return tensor.numpy() if tensor.device.type == "cpu" else np.empty(0)


def _views(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    views: dict[str, Array] = {}
    for key, tensor in tensors.items():
        if tensor.device.type == "cpu":
            try:
                views[key] = tensor.numpy()
            except TypeError:
                raise SpecError(f"'{key}' is {tensor.dtype}; on a CPU expected a dtype that NumPy has") from None
    return views

"""What small batched environments share: rows that begin and end, and goals that they pursue."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlx.data.spec import EnvSpecs, Spec
from rlx.env.random_rows import RandomRows
from rlx.env.vec_env import StepBuffer, VecEnv
from rlx.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rlx.data import DictTensor


class BatchedEnv(VecEnv):
    """B rows stepped by the same few tensor operations; a subclass has the state `[B, ...]` and says what it does.

    What a row draws depends on its seed and on how much it has drawn, and on no other row. A subclass keeps all that
    decides what its rows do next in tensors, attributes of its own: `get_state` returns these. It may write to them or
    put others in their place: `reset` and `step` are done in inference mode, whoever calls.

    Attributes:
        random: what the rows draw from.
    """

    row_reset = True
    row_seeds = True
    own_state = True

    def __init__(self, num_envs: int, name: str, specs: EnvSpecs, *, max_episode_steps: int) -> None:
        """Prepare.

        Args:
            num_envs: number of rows, B.
            name: what messages call it.
            specs: what a row shows and takes.
            max_episode_steps: steps after which an episode is truncated.
        """
        self.num_envs, self.name, self.specs = num_envs, name, specs
        self.random = RandomRows(num_envs)
        self._steps = torch.zeros(num_envs, dtype=torch.int64)
        self._max_steps = max_episode_steps

    @abstractmethod
    def begin(self, rows: Tensor, env_info: "DictTensor | None") -> None:
        """Begin a new episode in the rows that are true in `rows` `[B]` bool; `env_info` has one row for each of them.

        Raises:
            ConfigError: `env_info` has something else than the environment takes.
        """

    @abstractmethod
    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Do one step in all rows, and return rewards `[B]` and terminations `[B]` bool."""

    @abstractmethod
    def show(self) -> dict[str, Tensor]:
        """Return what the rows show, `[B, ...]` under the keys of the observation specs."""

    @torch.inference_mode()
    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: "DictTensor | None" = None,
    ) -> None:
        """Begin a new episode in some rows; see `VecEnv.reset`."""
        if env_info is not None and not self.env_info:
            raise ConfigError(f"environment '{self.name}': env_info was given, and it takes none")
        places = list(range(self.num_envs)) if rows is None else list(rows)
        if seeds is not None:
            self.random.seed(places, seeds)
        chosen = torch.zeros(self.num_envs, dtype=torch.bool)
        chosen[places] = True
        if env_info is not None:  # in the order of the rows, as `begin` wants it
            env_info = env_info[torch.tensor(places).argsort()]
        self.begin(chosen, env_info)
        self._steps.masked_fill_(chosen, 0)
        for key, value in self.show().items():
            out.obs[key][chosen] = value[chosen]

    @torch.inference_mode()
    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step in all rows; see `VecEnv.step`."""
        if rows is not None:
            raise ConfigError(
                f"environment '{self.name}' steps all its rows together; "
                f"got step(rows={list(rows)}), expected rows=None"
            )
        self._steps += 1
        reward, terminated = self.move(action["action"])
        out.reward.copy_(reward)
        out.terminated.copy_(terminated)
        torch.ge(self._steps, self._max_steps, out=out.truncated)
        for key, value in self.show().items():
            out.obs[key].copy_(value)

    def get_state(self) -> dict[str, Any]:
        """Return where the rows are, and how far their random numbers; see `VecEnv.get_state`."""
        own = {name: value.clone() for name, value in self._tensors().items()}
        return {"tensors": own, "random": self.random.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; see `VecEnv.set_state`."""
        for name in self._tensors():
            setattr(self, name, state["tensors"][name].clone())
        self.random.set_state(state["random"])

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


class GoalVecEnv(BatchedEnv):
    """A batched environment with a goal for each episode: 1 is paid where it is reached, which ends the episode.

    So a mean return is the part of the episodes in which the goal was reached. Goals are drawn, or are given for each
    row as `env_info["goal"]`.

    Shows: `obs/observation`, `obs/achieved_goal` and `obs/desired_goal`.
    """

    env_info = True

    def __init__(
        self, num_envs: int, name: str, *, observation: Spec, goal: Spec, action: Spec, max_episode_steps: int
    ) -> None:
        """Prepare.

        Args:
            num_envs: number of rows, B.
            name: what messages call it.
            observation: what is seen besides the goals.
            goal: what a goal is.
            action: what a row takes.
            max_episode_steps: steps after which an episode is truncated.
        """
        seen = {"obs/observation": observation, "obs/achieved_goal": goal, "obs/desired_goal": goal}
        specs = EnvSpecs(observation=seen, action={"action": action})
        super().__init__(num_envs, name, specs, max_episode_steps=max_episode_steps)
        self.goal = goal.zeros(num_envs)

    @abstractmethod
    def reached(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return whether goals `[N, ...]` were reached, `[N]` bool."""

    @abstractmethod
    def begin_with_goal(self, rows: Tensor) -> Tensor:
        """Begin a new episode in the rows that are true, and return goals drawn for them `[B, ...]` (others: any)."""

    @abstractmethod
    def observe(self) -> tuple[Tensor, Tensor]:
        """Return what is seen besides the goals, and what is achieved, `[B, ...]` each."""

    @abstractmethod
    def act(self, action: Tensor) -> None:
        """Do one step in all rows."""

    def begin(self, rows: Tensor, env_info: "DictTensor | None") -> None:
        """Begin a new episode; see `BatchedEnv.begin`."""
        drawn = self.begin_with_goal(rows)
        if env_info is not None:
            drawn[rows] = self._given(env_info)
        self.goal[rows] = drawn[rows]

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Do one step; see `BatchedEnv.move`."""
        self.act(action)
        return self.goal_outcome(self.observe()[1], self.goal)

    def show(self) -> dict[str, Tensor]:
        """Return what is seen, and both goals."""
        observation, achieved = self.observe()
        return {"obs/observation": observation, "obs/achieved_goal": achieved, "obs/desired_goal": self.goal}

    def goal_outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and the end where the goal is reached; see `VecEnv.goal_outcome`."""
        reached = self.reached(achieved, desired)
        return reached.float(), reached

    def _given(self, env_info: "DictTensor") -> Tensor:
        unknown = [key for key in env_info if key != "goal"]
        if unknown:
            raise ConfigError(
                f"environment '{self.name}': env_info has {unknown}, expected 'goal' alone."
                f"{did_you_mean(unknown[0], ['goal'])}"
            )
        given, expected = env_info["goal"], self.goal[0]
        if given.shape[1:] != expected.shape:
            raise ConfigError(
                f"environment '{self.name}': env_info['goal'] is {list(given.shape[1:])} a row, "
                f"expected {list(expected.shape)}"
            )
        return given.to(expected.dtype)

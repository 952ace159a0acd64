"""Environments that live on an accelerator, for those who hold their memory on the CPU."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from rlx.data import DictTensor
from rlx.env.vec_env import StepBuffer, VecEnv


class OnHost(VecEnv):
    """Takes actions on the CPU and writes answers there; the environments stay where they are.

    Each step waits for the device. Where everything may lie there (`batcher=local`), nothing of this is needed.
    """

    def __init__(self, env: VecEnv) -> None:
        """Take over environments; they are closed with this one."""
        self._env, self._answers = env, env.allocate()
        self.name, self.num_envs, self.specs = env.name, env.num_envs, env.specs
        self.autoreset, self.row_step, self.row_reset = env.autoreset, env.row_step, env.row_reset
        self.row_seeds, self.env_info, self.raw_reward = env.row_seeds, env.env_info, env.raw_reward
        self.own_state, self.spaces = env.own_state, env.spaces

    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: DictTensor | None = None,
    ) -> None:
        """Begin new episodes; see `VecEnv.reset`."""
        self._env.reset(self._answers, rows, seeds, None if env_info is None else env_info.to(self._env.device))
        _copy(self._answers.obs, out.obs, rows)

    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step; see `VecEnv.step`."""
        found = self._answers
        self._env.step({key: value.to(self._env.device) for key, value in action.items()}, found, rows)
        _copy(_numbers(found), _numbers(out), rows)
        if found.final_obs is not None and out.final_obs is not None:
            _copy(found.final_obs, out.final_obs, rows)
        if found.raw_reward_np is not None and out.raw_reward_np is not None:
            out.raw_reward_np[:] = found.raw_reward_np

    def goal_outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a step pays; see `VecEnv.goal_outcome`."""
        return self._env.goal_outcome(achieved, desired)

    def get_state(self) -> dict[str, Any]:
        """Return the environments' state, on the CPU: it may go where that device is not; see `VecEnv.get_state`."""
        return _brought_over(self._env.get_state())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; see `VecEnv.set_state`."""
        self._env.set_state(state)

    def render(self, row: int = 0) -> Any:
        """Return a picture of a row."""
        return self._env.render(row)

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def on_host(env: VecEnv) -> VecEnv:
    """Return environments whose actions and answers are on the CPU: these, where theirs are."""
    return env if env.device.type == "cpu" else OnHost(env)


def _numbers(buffer: StepBuffer) -> dict[str, Tensor]:
    flags = {"terminated": buffer.terminated, "truncated": buffer.truncated}
    return {**buffer.obs, "reward": buffer.reward, **flags}


def _brought_over(state: Any) -> Any:
    """Return nested plain data with its tensors on the CPU."""
    if isinstance(state, dict):
        return {key: _brought_over(value) for key, value in cast("dict[Any, Any]", state).items()}
    if isinstance(state, list):
        return [_brought_over(value) for value in cast("list[Any]", state)]
    return state.cpu() if isinstance(state, Tensor) else state


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor], rows: Sequence[int] | None) -> None:
    place = slice(None) if rows is None else torch.tensor(rows, dtype=torch.int64)
    for key, values in target.items():
        values[place] = source[key][place].to(values.device)

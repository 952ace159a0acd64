"""CartPole for a whole batch at once, in torch, on a CPU or a GPU: the worked example of the VecEnv contract."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from rlx.data.spec import EnvSpecs, Spec
from rlx.env.random_rows import RandomRows
from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv
from rlx.errors import ConfigError, DeviceError, did_you_mean
from rlx.validate import Range

if TYPE_CHECKING:
    from rlx.data import DictTensor

# Barto, Sutton and Anderson (1983), with the numbers of Gymnasium's CartPole-v1: kilograms, metres, seconds, newtons.
_GRAVITY = 9.8
_POLE_MASS = 0.1
_TOTAL_MASS = 1.0 + _POLE_MASS
_HALF_LENGTH = 0.5
_POLE_MASS_LENGTH = _POLE_MASS * _HALF_LENGTH
_FORCE = 10.0
_SECONDS = 0.02
_MAX_POSITION = 2.4
_MAX_ANGLE = 12 * 2 * math.pi / 360
_BEGIN_WITHIN = 0.05


class TorchCartPole(VecEnv):
    """B cart-poles, stepped by the same few tensor operations however many they are.

    The state is `[4, B]` float64, as Gymnasium's is, so that whole episodes agree with it; observations are float32.
    Initial states depend on a row's seed and on how many episodes it has begun, and on nothing else: the same on every
    device, and whatever other rows do. On a GPU nothing is copied to the host.

    Args:
        num_envs: number of rows, B.
        autoreset: who resets a row that ended. `next_step`: the next call does (nothing waits for the device);
            `same_step`: the same call does; `none`: the caller does.
        max_episode_steps: steps after which an episode is truncated; 500 for CartPole-v1, 200 for CartPole-v0.
        device: where it lives: `cpu`, `cuda`, `cuda:1`.

    Raises:
        ConfigError: an autoreset that does not exist.
        DeviceError: the device is not here.
    """

    name = "TorchCartPole"
    row_seeds = True
    own_state = True

    def __init__(
        self,
        num_envs: Annotated[int, Range(1)],
        *,
        autoreset: Literal["next_step", "same_step", "none"],
        max_episode_steps: Annotated[int, Range(1)],
        device: str,
    ) -> None:
        self.num_envs = num_envs
        self.autoreset = _autoreset(autoreset)
        self.row_reset = self.autoreset is Autoreset.NONE
        self.device = _device(device)
        # Rounded as the observations are, so that the specs equal those of Gymnasium's CartPole.
        high = tuple(float(np.float32(number)) for number in (2 * _MAX_POSITION, math.inf, 2 * _MAX_ANGLE, math.inf))
        low = tuple(-number for number in high)
        self.specs = EnvSpecs(
            observation={"obs": Spec(shape=(4,), dtype=torch.float32, low=low, high=high)},
            action={"action": Spec(shape=(), dtype=torch.int64, kind="discrete", nvec=(2,))},
        )
        self._max_steps = max_episode_steps
        self._random = RandomRows(num_envs, self.device)
        self._state = torch.zeros(4, num_envs, dtype=torch.float64, device=self.device)
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    def reset(
        self,
        out: StepBuffer,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        env_info: "DictTensor | None" = None,
    ) -> None:
        """Begin a new episode in all rows, or, with `autoreset=none`, in some of them; see `VecEnv.reset`."""
        if env_info is not None:
            raise ConfigError(f"environment '{self.name}': env_info was given, and it takes none")
        if rows is not None and not self.row_reset:
            raise ConfigError(
                f"environment '{self.name}' resets its rows itself ({self.autoreset.name}); "
                f"got reset(rows={list(rows)}), expected rows=None"
            )
        if seeds is not None:
            self._random.seed(range(self.num_envs) if rows is None else rows, seeds)
        chosen = torch.ones_like(self._ended)
        if rows is not None:
            chosen.zero_()[list(rows)] = True
        self._begin(chosen)
        obs = out.obs["obs"]
        torch.where(chosen.unsqueeze(1), self._state.T.to(obs.dtype), obs, out=obs)

    def step(self, action: Mapping[str, Tensor], out: StepBuffer, rows: Sequence[int] | None = None) -> None:
        """Do one step in all rows; see `VecEnv.step` and `Autoreset`."""
        if rows is not None:
            raise ConfigError(
                f"environment '{self.name}' steps all its rows together; "
                f"got step(rows={list(rows)}), expected rows=None"
            )
        self._state = _move(self._state, action["action"])
        self._steps += 1
        position, angle = self._state[0], self._state[2]
        torch.logical_or(position.abs() > _MAX_POSITION, angle.abs() > _MAX_ANGLE, out=out.terminated)
        torch.ge(self._steps, self._max_steps, out=out.truncated)
        out.reward.fill_(1.0)
        if self.autoreset is Autoreset.NEXT_STEP:
            self._finish_resets(out)
        if self.autoreset is Autoreset.SAME_STEP:
            assert out.final_obs is not None, "allocate() gives a SAME_STEP environment's buffer its final_obs"
            out.final_obs["obs"].copy_(self._state.T)
            self._begin(out.terminated | out.truncated)
        out.obs["obs"].copy_(self._state.T)

    def get_state(self) -> dict[str, Any]:
        """Return where the poles are, and how far the rows' random numbers; see `VecEnv.get_state`."""
        return {
            "state": self._state.clone(),
            "steps": self._steps.clone(),
            "ended": self._ended.clone(),
            "random": self._random.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; see `VecEnv.set_state`."""
        # New tensors: those of now may be results of inference mode, which nothing else may write to.
        self._state, self._steps, self._ended = (
            state[name].to(self.device, copy=True) for name in ("state", "steps", "ended")
        )
        self._random.set_state(state["random"])

    def _finish_resets(self, out: StepBuffer) -> None:
        """Rows that ended in the call before begin an episode in this one, whatever their action did to them."""
        resetting = self._ended
        self._begin(resetting)
        out.terminated.masked_fill_(resetting, False)
        out.truncated.masked_fill_(resetting, False)
        out.reward.masked_fill_(resetting, 0.0)
        self._ended = out.terminated | out.truncated

    def _begin(self, rows: Tensor) -> None:
        """Begin a new episode in the rows that are true in `rows`, `[B]` bool."""
        # To ask whether there is any would make a GPU's caller wait; on a CPU it saves most calls the drawing.
        if self.device.type == "cpu" and not rows.any():
            return
        drawn = self._random.uniform(rows, 4) * (2 * _BEGIN_WITHIN) - _BEGIN_WITHIN
        self._state = torch.where(rows, drawn, self._state)
        self._steps.masked_fill_(rows, 0)
        self._ended = self._ended & ~rows


def _move(state: Tensor, action: Tensor) -> Tensor:
    """Return the state `[4, B]` one Euler step later, after a push to the left (action 0) or to the right (1)."""
    speed, angle, turn = state[1], state[2], state[3]
    force = action * (2 * _FORCE) - _FORCE
    cos, sin = angle.cos(), angle.sin()
    push = (force + _POLE_MASS_LENGTH * turn.square() * sin) / _TOTAL_MASS
    spin = (_GRAVITY * sin - cos * push) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * cos.square() / _TOTAL_MASS))
    thrust = push - _POLE_MASS_LENGTH * spin * cos / _TOTAL_MASS
    return state + _SECONDS * torch.stack((speed, thrust, turn, spin))


def _autoreset(name: str) -> Autoreset:
    choices = {mode.value: mode for mode in Autoreset}
    if name not in choices:
        raise ConfigError(
            f"env.autoreset: got {name!r}; expected one of {', '.join(choices)}.{did_you_mean(name, choices)}"
        )
    return choices[name]


def _device(name: str) -> torch.device:
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise DeviceError(f"env.device: got {name!r}, which is not here ({reason}); cpu works anywhere") from None

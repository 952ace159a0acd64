"""Small environments that draw: well, in a size that no codec takes, and badly."""

import signal
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Drawing(gymnasium.Env[np.ndarray, int]):
    """Pays its goal at each of 3 to 8 steps, and draws the step as a grey, 33 rows and 51 columns."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, *, render_mode: str | None = None, wrong: str = "") -> None:
        self.render_mode, self._wrong = render_mode, wrong

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._goal, self._step = (options or {}).get("goal", 1.0), 0
        self._length = int(self.np_random.integers(3, 9))
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        return np.zeros(2, np.float32), self._goal, self._step == self._length, False, {}

    def render(self) -> Any:
        if self._wrong == "GL":
            raise RuntimeError("could not create a GLX context\nand more of it")
        if self._wrong == "ended" and self._step == 2:
            signal.raise_signal(signal.SIGTERM)
        elif self._wrong and self._step == 2:
            return {"none": None, "float": np.zeros((33, 51, 3)), "size": np.zeros((40, 51, 3), np.uint8)}[self._wrong]
        return np.full((33, 51, 3), 20 * self._step, np.uint8) if self.render_mode == "rgb_array" else None


class Blind(Drawing):
    """Draws nothing but text."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012


gymnasium.register("Drawing-v0", "tests.tools.drawing:Drawing")
gymnasium.register("Blind-v0", "tests.tools.drawing:Blind")

"""Small environments for whole runs: one whose return is its length, and one for each way to be broken."""

import logging
import multiprocessing
import os
import resource
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ShortAndLong(gymnasium.Env[np.ndarray, int]):
    """Pays 1 a step; an episode has 2 steps or 60, by its seed's draw, whatever the actions."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._left = 2 if self.np_random.random() < 0.5 else 60
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._left -= 1
        return np.zeros(2, np.float32), 1.0, self._left == 0, False, {}


class Forgetful(ShortAndLong):
    """Shows a number that no seed decides."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._left -= 1
        return np.random.default_rng().random(2, np.float32), 1.0, self._left == 0, False, {}


class Telling(ShortAndLong):
    """Tells its state, and shows it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._shown(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        _, *others = super().step(action)
        return self._shown(), *others

    def get_state(self) -> dict[str, Any]:
        return {"left": self._left, "generator": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self._left = state["left"]
        self.np_random.bit_generator.state = state["generator"]

    def _shown(self) -> np.ndarray:
        return np.array([self._left / 60, self.np_random.random()], np.float32)


class Raises(ShortAndLong):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ZeroDivisionError("no such level")


class Unsupported(ShortAndLong):
    """Shows text, for which there is no layout."""

    observation_space = spaces.Text(5)


class ShowsNaN(ShortAndLong):
    """Shows NaN from its first step on."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.full(2, np.nan, np.float32), 1.0, False, False, {}


class FillsDisk(ShortAndLong):
    """Leaves the run room for no file of more than `limit` bytes, from its `at_step`-th step on (0: its reset)."""

    def __init__(self, at_step: int, limit: int) -> None:
        self._steps_before = at_step
        self._limit = limit

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if self._steps_before == 0:
            self._fill()
        return super().reset(seed=seed, options=options)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._steps_before -= 1
        if self._steps_before == 0:
            self._fill()
        return super().step(action)

    def _fill(self) -> None:
        learner = multiprocessing.parent_process()
        pid = os.getpid() if learner is None else learner.pid
        assert pid is not None
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (self._limit, hard))


class WaitsForOthers(ShortAndLong):
    """Says a word into the pipe `ready`, and is made once there is a letter for it in the pipe `go`."""

    def __init__(self) -> None:
        with open("ready", "w") as ready:
            ready.write("here\n")
        with open("go", "rb", buffering=0) as go:
            go.read(1)


class Warns(ShortAndLong):
    """Warns at its first step, in both of Python's ways."""

    warned = False

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not Warns.warned:
            Warns.warned = True
            warnings.warn("levels are deprecated", FutureWarning, stacklevel=1)
            logging.getLogger("levels").warning("level %d is missing", 3)
        return super().step(action)


for kind in (ShortAndLong, Forgetful, Telling, Raises, Unsupported, ShowsNaN, FillsDisk, WaitsForOthers, Warns):
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind)

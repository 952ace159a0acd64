"""An environment that goes wrong in a way and at a place of choice."""

import ctypes
import os
import signal
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class TwoArguments(Exception):  # noqa: N818
    """Pickle takes it along and cannot make it again."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Unpicklable(Exception):  # noqa: N818
    """Holds what cannot travel."""

    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.function = lambda: None


class Unprintable(Exception):  # noqa: N818
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise ValueError


def wait_in_python() -> None:
    signal.pause()
    wait_in_python()


def wait_in_c() -> None:
    """Wait with the interpreter's lock held: no thread of Python's can do anything about it."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(error: Exception) -> None:
    raise error


WAYS: dict[str, Any] = {
    "raises": lambda: fail(RuntimeError("out of order")),
    "two arguments": lambda: fail(TwoArguments(7, "out of order")),
    "unpicklable": lambda: fail(Unpicklable()),
    "unprintable": lambda: fail(Unprintable()),
    "huge": lambda: fail(RuntimeError("out of order" + "x" * 10_000_000)),
    "exits": lambda: os._exit(3),
    "system exit": lambda: sys_exit(),
    "waits": wait_in_python,
    "waits in C": wait_in_c,
    "stops": stop,
}


def sys_exit() -> None:
    raise SystemExit(3)


class Sick(gymnasium.Env[np.ndarray, int]):
    """Goes wrong at `place`: its constructor, its first reset, its third step, or the reset after an episode of three.

    Args:
        way: of `WAYS`.
        place: `constructor`, `reset`, `step` or `later reset`.
        which: the environment of its process that does, by number; None for all.
        exits_first: a file that is not there yet: the first of all processes makes it and ends at its third step.
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    _made = 0

    def __init__(self, way: str, place: str, which: int | None = None, exits_first: str | None = None) -> None:
        self._way, self._place, self._steps, self._resets = WAYS[way], place, 0, 0
        self._well = which not in (None, Sick._made)
        self._exits_at = None if exits_first is None or os.path.exists(exits_first) else exits_first
        Sick._made += 1
        self._go_wrong("constructor")

    def _go_wrong(self, place: str) -> None:
        if place == self._place and not self._well and self._exits_at is None:
            self._way()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._resets += 1
        self._go_wrong("reset" if self._resets == 1 else "later reset")
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._steps += 1
        if self._steps == 3 and self._exits_at is not None:
            os.close(os.open(self._exits_at, os.O_CREAT))
            os._exit(3)
        if self._steps == 3:
            self._go_wrong("step")
        ends = self._place == "later reset" and self._steps == 3
        return np.zeros(2, np.float32), 0.0, ends, False, {}


gymnasium.register("Sick-v0", entry_point=Sick, disable_env_checker=True, order_enforce=False)
ID = "tests.faults.sick:Sick-v0"

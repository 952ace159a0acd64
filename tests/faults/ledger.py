"""An environment that keeps books which outlive its process, and ways for that process to die at a chosen moment.

An observation says who made it, so that a row of experience that is mixed up, lost, doubled or torn cannot pass for a
whole one.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlx.agent import Agent
from rlx.batcher import wire
from rlx.batcher.worker import Worker
from rlx.data import DictTensor, EnvSpecs

MARK = "RLX_TEST_MARK"
"""Environment variable: the file that the process which is to die makes."""

SEED, PROCESS, EPISODE, STEP, CHECKSUM = range(5)
WORDS = 5


def checksum(words: Any) -> Any:
    """Return what the last word of an observation must be, given those before it."""
    return (words[..., SEED] * 31 + words[..., PROCESS] * 17 + words[..., EPISODE] * 7 + words[..., STEP]) % 1_000_003


class Books:
    """Counts of steps done, one a process, in a file that a killed process leaves as it was."""

    size = 8 * 4096

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.size)
        self.counts = memoryview(self._map).cast("Q")

    @staticmethod
    def create(path: str) -> "Books":
        with open(path, "wb") as file:
            file.truncate(Books.size)
        return Books(path)

    def total(self) -> int:
        """Return the steps of all processes."""
        return sum(self.counts)


class Ledger(gymnasium.Env[np.ndarray, int]):
    """Shows (seed, process, episode, step, checksum), 64-bit integers; pays 10 * step + action.

    Episodes take 1 to 7 steps. The process dies in the middle of a step, or of a reset, when told to.
    """

    observation_space = spaces.Box(-(2**62), 2**62, (WORDS,), np.int64)
    action_space = spaces.Discrete(2)

    def __init__(self, books: str) -> None:
        self._books = Books(books).counts
        self._seed, self._episode, self._step = 0, -1, 0
        self.at_step: Callable[[], None] | None = None
        self.at_reset: Callable[[], None] | None = None

    def _seen(self) -> np.ndarray:
        seen = np.array([self._seed, os.getpid(), self._episode, self._step, 0], np.int64)
        seen[CHECKSUM] = checksum(seen)
        return seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if self.at_reset is not None:
            self.at_reset()
        if seed is not None:
            self._seed, self._episode = seed, -1
        self._episode += 1
        self._step = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.at_step is not None:
            self.at_step()
        reward = 10.0 * self._step + float(action)
        self._step += 1
        self._books[os.getpid() % len(self._books)] += 1
        over = self._step >= 1 + (3 * self._episode + self._seed) % 7
        return self._seen(), reward, over and self._episode % 2 == 0, over and self._episode % 2 == 1, {}


gymnasium.register("FaultLedger-v0", entry_point=Ledger)
ID = "tests.faults.ledger:FaultLedger-v0"


class Parity(Agent):
    """Acts by the number of the step, and puts out all that it saw."""

    def __init__(self, specs: EnvSpecs) -> None:
        super().__init__()

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"seen": observation["obs"]}), state

    def act(self, outputs, agent_info, generator):
        seen = outputs["seen"]
        return DictTensor({"action": (seen[:, EPISODE] + seen[:, STEP]) % 2, "seen": seen})


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def exits() -> None:
    os._exit(3)


DEATHS: dict[str, Callable[[], None]] = {"killed": killed, "segfault": segfault, "exit": exits}

POINTS = ("before", "first step", "half a step", "last step", "reset", "after", "half an answer", "answered")
"""Moments of a piece: nothing written; its first step; one of three rows stepped; in its last step; an episode's reset;
all written, nothing told; half of the answer in the pipe; answered, so committed."""


class _After:
    """Calls something once it has been called `count` times before."""

    def __init__(self, count: int, act: Callable[[], None]) -> None:
        self._left, self._act = count, act

    def __call__(self) -> None:
        if not self._left:
            self._act()
        self._left -= 1


def arm(worker: Worker, victim: int, point: str, how: str, num_steps: int) -> None:
    """Make the victim's process die at a point of its next piece; other workers do nothing."""
    if worker.options.index != victim:
        return
    die = DEATHS[how]
    envs: list[Ledger] = [env.unwrapped for env in worker.env.envs]  # pyright: ignore
    if point in ("before", "after"):
        run = worker.run

        def fatal_run(*arguments: Any) -> Any:
            if point == "before":
                die()
            run(*arguments)
            die()

        worker.run = fatal_run  # pyright: ignore
    elif point == "first step":
        envs[0].at_step = die
    elif point == "half a step":
        envs[1].at_step = _After(num_steps // 2, die)
    elif point == "last step":
        envs[-1].at_step = _After(num_steps - 1, die)
    elif point == "reset":
        envs[1].at_reset = die
    else:
        send = wire.send

        def fatal_send(connection: Any, message: Any) -> None:
            if point == "answered":
                send(connection, message)
            else:
                data = wire.pickle.dumps(message)
                os.write(connection.fileno(), (struct.pack("!i", len(data)) + data)[: 4 + len(data) // 2])
            die()

        wire.send = fatal_send


def check_row(observations: torch.Tensor, following: torch.Tensor, actions: torch.Tensor, rewards: torch.Tensor) -> int:
    """Check all that one row ever handed over, `[N, WORDS]` and `[N]`; return how many incarnations it had.

    Each incarnation begins with its first episode's first step, leaves out nothing, and never comes back after another.
    """
    for words in (observations, following):
        assert torch.equal(words[:, CHECKSUM], checksum(words)), "a torn observation"
    assert torch.equal(actions, (observations[:, EPISODE] + observations[:, STEP]) % 2)
    assert torch.equal(rewards, (10 * observations[:, STEP] + actions).float())
    seen: list[tuple[int, int]] = []
    episode = step = 0
    for words, after in zip(observations.tolist(), following.tolist(), strict=True):
        who = (words[SEED], words[PROCESS])
        if not seen or who != seen[-1]:
            assert who not in seen, f"{who} came back"
            assert who[0] not in [seed for seed, _ in seen], "a seed was used twice"
            seen.append(who)
            episode = step = 0
        assert words[EPISODE : STEP + 1] == [episode, step], "a step is missing or doubled"
        step += 1
        assert (after[SEED], after[PROCESS]) == who
        assert after[EPISODE : STEP + 1] == [episode, step]
        if step >= 1 + (3 * episode + who[0]) % 7:
            episode, step = episode + 1, 0
    return len(seen)


class DiesOnce(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole whose process is killed at the 100th step of whichever environment comes there first; once in all."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._steps = 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 100:
            with contextlib.suppress(FileExistsError):
                open(os.environ[MARK], "x").close()
                killed()
        return super().step(action)


gymnasium.register("DiesOnce-v0", entry_point=DiesOnce)

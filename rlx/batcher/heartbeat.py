"""Signs of life: a page of memory that a worker process writes and its batcher reads, without a message.

The worker counts its environments' steps there. When the count stands still for too long, the batcher asks where the
worker is: a signal wakes a thread of the worker that does nothing else, and looks at the main thread's stack.
"""

import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, MutableSequence, Sequence
from multiprocessing.reduction import DupFd
from types import FrameType
from typing import Any

from rlx.batcher.memory import anonymous_file
from rlx.env.gym_vec_env import GymVecEnv
from rlx.env.vec_env import VecEnv

# The words of the page. The worker writes all but STOP.
ALIVE = 0  # 1 once the worker's own code runs
COMMANDS = 1  # commands begun
CALLS = 2  # calls of the environments' step since the command began
RESETS = 3  # calls of their reset, ever
ROW = 4  # answer to "where are you?": 1 + the environment whose code runs, 0 where that is not known
SAID = 5  # bytes of text in that answer; written last
STOP = 6  # 1: the batcher wants the worker to end at its next step
NUM_WORDS = 8

_TEXT_START = 8 * NUM_WORDS
_NUM_BYTES = 4 * mmap.PAGESIZE
_QUESTION: int | None = getattr(signal, "SIGRTMIN", 0) + 4 if hasattr(signal, "SIGRTMIN") else None

Words = MutableSequence[int]


class Heartbeat:
    """The page, on either side.

    Attributes:
        words: its numbers; see the names above.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """Make a new page, or map the one behind `descriptor` (which is then owned by this object)."""
        if descriptor is None:
            descriptor = anonymous_file()
            os.ftruncate(descriptor, _NUM_BYTES)
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, _NUM_BYTES)
        self._view = memoryview(self._map)[:_TEXT_START].cast("Q")
        self.words: Words = self._view  # pyright: ignore[reportAttributeAccessIssue] (no stub calls it a sequence)

    def seal(self) -> None:
        """Let go of the descriptor: nobody else will map the page."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Let go of the page; harmless when called again."""
        self.seal()
        if not self._map.closed:
            self._view.release()
            self._map.close()

    def begin(self) -> None:
        """Note that a command begins."""
        self.words[CALLS] = 0
        self.words[COMMANDS] += 1

    def ask(self, pid: int, pidfd: int | None) -> bool:
        """Ask the worker where it is; `answer` has it a little later. Return whether the question could be put.

        Args:
            pid: the worker's process.
            pidfd: the same where the system has such, which never is another process.
        """
        if _QUESTION is None or not self.words[ALIVE]:  # whoever does not listen yet would die of it
            return False
        self.words[SAID] = 0
        try:
            if pidfd is None:
                os.kill(pid, _QUESTION)
            else:
                signal.pidfd_send_signal(pidfd, _QUESTION)
        except OSError:
            return False
        return True

    def answer(self) -> tuple[int | None, str] | None:
        """Return which of the worker's environments runs, if known, and its stack; None: no answer yet."""
        said = self.words[SAID]
        if not said:
            return None
        text = self._map[_TEXT_START : _TEXT_START + said].decode(errors="replace")
        row = self.words[ROW]
        return (row - 1 if row else None), text

    def answer_when_asked(self, environments: Callable[[], Sequence[Any]], num_envs: Callable[[], int]) -> None:
        """Start the thread that answers; called in the worker's main thread, before others are made.

        Args:
            environments: returns the objects whose methods are the environments' code, row by row, as far as known.
            num_envs: returns how many there are to be.
        """
        if _QUESTION is None:
            return
        question, main = _QUESTION, threading.get_ident()
        signal.pthread_sigmask(signal.SIG_BLOCK, {question})  # other threads inherit it: only the one below hears

        def listen() -> None:
            while True:
                signal.sigwait({question})
                frame = sys._current_frames().get(main)  # pyright: ignore[reportPrivateUsage]
                if frame is not None:
                    self._tell(frame, environments(), num_envs())

        threading.Thread(target=listen, daemon=True, name="rlx-where").start()

    def _tell(self, frame: FrameType, environments: Sequence[Any], num_envs: int) -> None:
        found, stack = place_in(frame, environments, num_envs)
        text = stack.encode()[-(_NUM_BYTES - _TEXT_START) :]
        self._map[_TEXT_START : _TEXT_START + len(text)] = text
        self.words[ROW] = 0 if found is None else found + 1
        self.words[SAID] = len(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _map, (DupFd(self._descriptor),)


def instances_in(env: VecEnv | None) -> list[Any]:
    """Return the objects whose methods are the environments' code, row by row; none where that is not known."""
    members: list[VecEnv] = getattr(env, "members", [])
    parts = [instances_in(member) for member in members]
    known = all(len(part) == member.num_envs for part, member in zip(parts, members, strict=True))
    return [one for part in parts for one in part] if parts and known else list(getattr(env, "envs", []))


def place_in(frame: FrameType, environments: Sequence[Any], num_envs: int) -> tuple[int | None, str]:
    """Return in which environment's code a thread is, if that is known, and its stack as text.

    Args:
        frame: the innermost one of the thread.
        environments: see `instances_in`; none while they are made.
        num_envs: how many there are to be.
    """
    text = "".join(traceback.format_stack(frame))
    row = {id(environment): row for row, environment in enumerate(environments)}
    layer: FrameType | None = frame
    while layer is not None:
        owner = layer.f_locals.get("self")
        found = row.get(id(owner))
        if not row and isinstance(owner, GymVecEnv) and owner.num_envs == num_envs and len(owner.envs) < num_envs:
            found = len(owner.envs)  # the constructor of the next one
        if found is not None:
            return found, text
        layer = layer.f_back
    return None, text


def _map(descriptor: Any) -> Heartbeat:
    beat = Heartbeat(descriptor.detach())
    beat.seal()
    return beat

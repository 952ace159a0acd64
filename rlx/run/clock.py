"""Where a run's time goes: collecting, learning, and neither; and what of the machine it takes."""

import time

import torch

from rlx.batcher.batcher import Batcher
from rlx.run.metrics import Value
from rlx.run.system import SystemFigures


class Clock:
    """The time of a run, those before it was resumed included.

    Attributes:
        saved: when the last checkpoint was taken, as `time.perf_counter` has it.
    """

    def __init__(
        self, batcher: Batcher | None = None, device: torch.device | None = None, *, before: float = 0.0
    ) -> None:
        """Begin now.

        Args:
            batcher: whose waiting is collecting.
            device: the learner's.
            before: seconds that the run had had when it was stopped.
        """
        self.saved = self._last = time.perf_counter()
        self._started = self._last - before
        self._system = SystemFigures(device)
        self._collected = 0.0 if batcher is None else batcher.collect_seconds

    @property
    def wall_time(self) -> float:
        """Return the seconds of the run so far."""
        return time.perf_counter() - self._started

    def leave_out(self, seconds: float) -> None:
        """Note that of the iteration that goes on, so much was neither collecting nor learning."""
        self._last += seconds

    def iteration(self, batcher: Batcher, env_steps: int) -> dict[str, Value]:
        """End an iteration of so many steps, and return its speeds, and the machine's figures where they are due.

        Where nothing was collected (offline learning), there is no speed of collecting.
        """
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        collect = batcher.collect_seconds - self._collected
        self._last, self._collected = now, batcher.collect_seconds
        speeds: dict[str, Value] = {"speed/steps_per_second": env_steps / seconds}
        if collect > 0:
            speeds["speed/collect_steps_per_second"] = env_steps / collect
        speeds["speed/learn_steps_per_second"] = env_steps / max(seconds - collect, 1e-9)
        return {**speeds, **self._system.take()}

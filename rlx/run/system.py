"""What of the machine a run takes: processors, memory, GPU."""

import time
from contextlib import suppress
from typing import Any

import psutil
import torch

from rlx.run.metrics import Value

MEBIBYTE = 1 << 20


class SystemFigures:
    """Looks at the processes of a run, every few seconds at most: it takes a millisecond."""

    def __init__(self, device: torch.device | None = None, *, every_s: float = 5.0) -> None:
        """Begin to count.

        Args:
            device: the learner's; figures of a GPU are those of this one.
            every_s: seconds between two looks.
        """
        self._device, self._every = device, every_s
        self._own = psutil.Process()
        self._looked, self._due = time.perf_counter(), 0.0
        self._used = self._look()[0]
        psutil.cpu_percent()  # of the machine, since the last call

    def take(self) -> dict[str, Value]:
        """Return the figures of now: nothing where the last look was not long ago.

        Returns:
            `system/cpu_percent`: CPU time of this process and those it started, since the last look (100: one core);
            `system/memory_mb`: memory of theirs (MiB), what they share counted once; `system/machine_cpu_percent` and
            `system/machine_memory_percent` of the whole machine. With a GPU: `system/gpu_memory_mb`, what torch holds
            there, and `system/gpu_percent`, its utilization, where nvidia-ml-py is installed.
        """
        now = time.perf_counter()
        if now < self._due:
            return {}
        seconds, self._looked, self._due = now - self._looked, now, now + self._every
        used, memory = self._look()
        spent = sum(value - self._used.get(pid, 0.0) for pid, value in used.items())
        self._used = used
        figures: dict[str, Value] = {
            "system/cpu_percent": 100 * spent / max(seconds, 1e-9),
            "system/memory_mb": memory / MEBIBYTE,
            "system/machine_cpu_percent": psutil.cpu_percent(),
            "system/machine_memory_percent": psutil.virtual_memory().percent,
        }
        return figures | self._gpu()

    def _look(self) -> tuple[dict[int, float], int]:
        """Return the CPU seconds of each process so far, and the memory of all, in bytes."""
        used: dict[int, float] = {}
        private, shared = 0, [0]
        for process in [self._own, *self._own.children(recursive=True)]:
            with suppress(psutil.Error), process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                used[process.pid] = times.user + times.system
                common = int(getattr(memory, "shared", 0))  # elsewhere than on Linux nobody says
                private += memory.rss - common
                shared.append(common)
        return used, private + max(shared)

    def _gpu(self) -> dict[str, Value]:
        if self._device is None or self._device.type != "cuda":
            return {}
        figures: dict[str, Value] = {"system/gpu_memory_mb": torch.cuda.memory_reserved(self._device) / MEBIBYTE}
        with suppress(Exception):  # whatever is missing of the driver's library
            utilization: Any = torch.cuda.utilization(self._device)
            figures["system/gpu_percent"] = utilization
        return figures

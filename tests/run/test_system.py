"""Figures of the machine that a run takes."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rlx.run.metrics import read_metrics
from rlx.run.system import SystemFigures
from tests.run.jobs import SMALL, train


def test_time_and_memory_of_this_process_and_of_those_it_started_are_counted() -> None:
    figures = SystemFigures(every_s=0)
    before = figures.take()["system/memory_mb"]
    program = "block = bytearray(200 << 20)\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            figures.take()
            began, own = time.perf_counter(), time.process_time()
            started = psutil.Process(child.pid).cpu_times().user
            while time.process_time() - own < 0.3 or psutil.Process(child.pid).cpu_times().user - started < 0.3:
                pass
            own = time.process_time() - own
            found = figures.take()
            seconds = time.perf_counter() - began
        finally:
            child.kill()
    assert found["system/memory_mb"] - before > 190
    assert found["system/cpu_percent"] / 100 * seconds > 0.95 * (own + 0.3)
    assert found["system/cpu_percent"] < 250
    assert 0 <= found["system/machine_cpu_percent"] <= 100
    assert 0 < found["system/machine_memory_percent"] < 100


def test_nothing_is_looked_at_again_until_it_is_due() -> None:
    figures = SystemFigures(every_s=3600)
    assert figures.take()
    assert figures.take() == {}


def test_the_first_row_of_a_run_has_them_so_that_no_column_comes_late(tmp_path: Path) -> None:
    rows = read_metrics(train(tmp_path / "run", *SMALL, "total_steps=128") / "metrics.csv")
    assert rows[0]["system/memory_mb"] > 100
    assert rows[0]["system/cpu_percent"] is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_memory_is_counted() -> None:
    block = torch.zeros(1 << 26, device="cuda")
    found = SystemFigures(block.device, every_s=0).take()
    assert found["system/gpu_memory_mb"] >= 256

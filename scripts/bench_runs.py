"""Time what keeps and shows runs: checkpoints, rows, resuming, `rlx runs` and `rlx plot`; print each beside its limit.

    python scripts/bench_runs.py

Each figure is the median of several turns, with the smallest and the largest. Programs are timed from their start to
their end, imports included.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from rlx.run.metrics import CsvSink, Row, read_metrics
from rlx.run.saver import Saver
from rlx.run.system import SystemFigures
from rlx.run.tensorboard import TensorBoardSink

RLX = [sys.executable, "-m", "rlx"]
TURNS = 7


def main() -> None:
    """Measure everything in a temporary directory."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoints(directory / "checkpoints")
        rows(directory / "rows")
        resuming(directory / "resuming")
        many_runs(directory / "runs")
        many_rows(directory / "plot")


def checkpoints(directory: Path) -> None:
    """A policy of 10 MB with Adam's two moments: how long the run waits, and how long the thread writes."""
    directory.mkdir()
    agent = nn.Sequential(nn.Linear(1600, 1600), nn.Linear(1600, 1))
    optimizer = torch.optim.Adam(agent.parameters(), fused=True)
    agent(torch.ones(1, 1600)).sum().backward()
    optimizer.step()
    state = {"agent": agent.state_dict(), "optimizer": optimizer.state_dict(), "run": {"counters": {"env_steps": 0}}}
    megabytes = sum(value.nbytes for value in agent.state_dict().values()) / 1e6
    saver = Saver(directory, keep_last=2, keep_every=0)
    waits: list[float] = []
    took: list[float] = []
    cpu: list[float] = []
    for turn in range(TURNS):
        used, start = time.process_time(), time.perf_counter()
        saver.save(state, {"seed": 0}, {"env_steps": turn})
        waits.append(time.perf_counter() - start)
        saver.wait()
        took.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    tell(f"checkpoint of a {megabytes:.0f} MB policy: the run waits", waits, "ms", "100 ms")
    tell("  until it is written, by a thread", took, "ms")
    share = [100 * seconds / 300 for seconds in cpu]
    tell("  its CPU time at checkpoint.minutes=5", share, "%", "1 %")


def rows(directory: Path) -> None:
    """A row of PPO's for CSV and TensorBoard, and a look at the machine."""
    directory.mkdir()
    run = directory / "run"
    program([*RLX, "train", "total_steps=4096", f"run_dir='{run}'", "logger.console=false"])
    row: Row = read_metrics(run / "metrics.csv")[0]
    sinks = [CsvSink(directory / "metrics.csv"), TensorBoardSink(directory / "tensorboard")]
    taken: list[float] = []
    for step in range(2000):
        changed = {**row, "env_steps": step}
        start = time.perf_counter()
        for sink in sinks:
            sink.write(changed)
        taken.append(time.perf_counter() - start)
    tell("a row to CSV and TensorBoard, of a second", [100 * seconds for seconds in taken], "%", "1 %")
    figures = SystemFigures(every_s=0)
    looks = [timed(figures.take) for _ in range(100)]
    tell("a look at the machine, of its five seconds", [100 * seconds / 5 for seconds in looks], "%")


def resuming(directory: Path) -> None:
    """A run of one iteration beside one that is resumed for one more, as whole programs, in turns."""
    directory.mkdir()
    small = ["env=CartPoleVec", "logger.console=false"]
    begun = directory / "begun"
    program([*RLX, "train", *small, f"run_dir='{begun}'", "total_steps=2048"])
    fresh: list[float] = []
    more: list[float] = []
    for turn in range(TURNS):
        new, old = directory / f"new-{turn}", directory / f"old-{turn}"
        shutil.copytree(begun, old)
        fresh.append(program([*RLX, "train", *small, f"run_dir='{new}'", "total_steps=2048"]))
        more.append(program([*RLX, "train", f"resume={old}", "total_steps=4096", "logger.console=false"]))
    tell("a fresh run of one iteration", fresh, "s")
    longer = [one - other for one, other in zip(more, fresh, strict=True)]
    tell("  a resumed one takes longer by", longer, "s", "1 s")


def many_runs(directory: Path) -> None:
    """`rlx runs` over a thousand copies of a run."""
    directory.mkdir()
    run = directory / "0"
    program([*RLX, "train", "total_steps=60000", f"run_dir='{run}'", "logger.console=false"])
    for number in range(1, 1000):
        shutil.copytree(run, directory / str(number), ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    tell("rlx runs, 1,000 runs", [program([*RLX, "runs", str(directory)]) for _ in range(TURNS)], "s", "1 s")


def many_rows(directory: Path) -> None:
    """`rlx plot` over a hundred runs of 10,000 rows."""
    directory.mkdir()
    run = directory / "0"
    program([*RLX, "train", "total_steps=4096", f"run_dir='{run}'", "logger.console=false"])
    row = read_metrics(run / "metrics.csv")[0]
    (run / "metrics.csv").unlink()
    sink = CsvSink(run / "metrics.csv")
    for step in range(10_000):
        sink.write({**row, "env_steps": 100 * step, "episode/return": float(step % 500)})
    sink.close()
    config = (run / "config.yaml").read_text()
    for number in range(1, 100):
        shutil.copytree(run, directory / str(number), ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        (directory / str(number) / "config.yaml").write_text(config.replace("\nseed: 0\n", f"\nseed: {number}\n"))
    picture = directory.parent / "plot.png"
    times = [program([*RLX, "plot", str(directory), "--out", str(picture)]) for _ in range(TURNS)]
    tell("rlx plot, 100 runs of 10,000 rows", times, "s", "5 s")


def program(command: list[str]) -> float:
    """Run a program; return its seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def timed(call: Callable[[], object]) -> float:
    """Call; return the seconds it took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def tell(what: str, values: list[float], unit: str, limit: str | None = None) -> None:
    """Print a figure; values in seconds where the unit is `ms`."""
    scale = 1e3 if unit == "ms" else 1.0
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    wanted = f"   (wanted: {limit})" if limit else ""
    print(f"{what:52s} {middle:8.3f} {unit:2s} [{low:.3f}, {high:.3f}]{wanted}", flush=True)


if __name__ == "__main__":
    main()

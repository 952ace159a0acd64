"""`rlx bench start`: how long a program takes to its first experience and to its end, and what each worker costs.

Measured from outside, on a process that does nothing else (this module's `main`), imports included.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def bench_start(
    *, env: str = "CartPole-v1", num_workers: int = 2, envs_per_worker: int = 4, times: int = 3
) -> dict[str, Any]:
    """Start a batcher in a fresh program, and measure.

    Args:
        env: the environment's id.
        num_workers: worker processes.
        envs_per_worker: environments of each.
        times: programs started one after the other; medians are returned.

    Returns:
        `start_seconds` (from the program's start until its workers have made and reset their environments),
        `first_piece_seconds` (until the first piece of 16 steps is there), `close_seconds` (`Batcher.close`),
        `private_megabytes` (memory that a worker shares with nobody, the largest worker's; None where the system does
        not tell), and the arguments.
    """
    found: list[dict[str, Any]] = []
    for _ in range(times):
        command = [sys.executable, "-m", "rlx.tools.startup", env, str(num_workers), str(envs_per_worker)]
        started = time.time()
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout
        told = json.loads(printed)
        told["start_seconds"] -= started
        told["first_piece_seconds"] -= started
        found.append(told)
    medians: dict[str, Any] = {
        key: None if found[0][key] is None else statistics.median(told[key] for told in found) for key in found[0]
    }
    return medians | {"env": env, "num_workers": num_workers, "envs_per_worker": envs_per_worker, "times": times}


_SECONDS = 300.0  # no start takes that long


def private_megabytes(pid: int) -> float | None:
    """Return the memory that a process shares with no other, in MB; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    return sum(int(kilobytes) for kilobytes in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE)) / 1024


def main() -> None:
    """Start a batcher as the arguments say, and print the moments as JSON."""
    from rlx.batcher.start import prestart

    prestart()  # as `rlx train` does: the workers' server imports torch while this process does

    from functools import partial

    import torch

    from rlx.agent.actor_critic import ActorCritic
    from rlx.batcher.batcher import Batcher
    from rlx.env import make

    env, num_workers, envs_per_worker = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    make_agent = partial(ActorCritic, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)
    batcher = Batcher(
        make_agent,
        partial(make, env),
        num_workers=num_workers,
        envs_per_worker=envs_per_worker,
        num_steps=16,
        seed=0,
    )
    batcher.reset()
    ready = time.time()
    private = [private_megabytes(pid) for pid in batcher.call(_process_id)]
    batcher.publish(make_agent(batcher.specs))
    batcher.collect()
    first_piece = time.time()
    began = time.perf_counter()
    batcher.close()
    told = {
        "start_seconds": ready,
        "first_piece_seconds": first_piece,
        "close_seconds": time.perf_counter() - began,
        "private_megabytes": None if None in private else max(size for size in private if size is not None),
    }
    sys.stdout.write(json.dumps(told))


def _process_id(worker: Any) -> int:
    import os

    del worker
    return os.getpid()


if __name__ == "__main__":
    main()

"""Run directories as a run leaves them, without training."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlx.run.directory import CONFIG, LOG, METRICS, create_run_directory, write_summary
from rlx.run.metrics import CsvSink
from rlx.run.migrate import KEY, SCHEMA


def make_run(
    directory: Path,
    *,
    algo: str = "ppo",
    env: str = "CartPole-v1",
    seed: int = 0,
    returns: Sequence[float | None] = (1.0, 2.0, 3.0),
    steps: int = 100,
    total_steps: int | None = None,
    status: str | None = "done",
    reason: str | None = None,
    pid: int | None = None,
    **numbers: Any,
) -> Path:
    """Write a run of `algo` on `env` with one row a return, `steps` apart; no summary where `status` is None."""
    create_run_directory(directory)
    config = {
        KEY: SCHEMA,
        "env": {"_target_": "rlx.env.make", "id": env},
        "agent": {"_target_": "rlx.agent.ActorCritic", "hidden_sizes": [64, 64]},
        "algo": {"_target_": f"rlx.algo.{algo}.train", "learning_rate": 0.001, "gamma": 0.99, **numbers},
        "seed": seed,
        "total_steps": total_steps or steps * len(returns),
        "run_dir": str(directory),
    }
    (directory / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    typed = " ".join(f"algo.{key}={value}" for key, value in numbers.items())
    (directory / LOG).write_text(
        f"2026-11-25 12:00:00,000 INFO begins: {algo} on {env.removesuffix('-v1')}, {steps * len(returns):,} steps\n"
        f"2026-11-25 12:00:00,001 INFO command: rlx train algo={algo} seed={seed} run_dir='{directory}' {typed}\n"
        f"2026-11-25 12:00:00,002 INFO host: {platform.node()}, Linux, 2 cores, process {pid or os.getpid()}\n"
    )
    sink = CsvSink(directory / METRICS)
    for row, value in enumerate(returns, 1):
        sink.write({"env_steps": row * steps, "iteration": row, "wall_time": row / 2, "episode/return": value})
    sink.close()
    if status is not None:
        write_summary(directory, {"status": status, "reason": reason, "env_steps": steps * len(returns)})
    return directory

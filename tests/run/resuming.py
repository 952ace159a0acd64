"""Small runs of every algorithm, and how two of them are compared to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

from rlx.run.checkpoint import find_checkpoint, list_checkpoints, step_of, verify_checkpoint
from rlx.run.launch import resume_run
from rlx.run.metrics import TIMED, read_metrics

ITERATIONS = 6
COMMON = [
    "logger.console=false",
    "checkpoint.minutes=0",
    "checkpoint.every=1",
    "checkpoint.keep_last=99",
    "checkpoint.buffer=true",
    "seed=5",
]
OFF_POLICY = [
    "algo.num_steps=20",
    "algo.batch_size=16",
    "algo.num_updates=3",
    "algo.learning_starts=100",
    "algo.buffer_size=300",
]
JOBS: dict[str, list[str]] = {
    "ppo": [
        "algo=ppo",
        "algo.num_steps=20",
        "algo.batch_size=40",
        "algo.num_epochs=2",
        "algo.learning_rate=[linear,1e-3,0]",
    ],
    "ppo_normalised": [
        *("algo=ppo", "env=Pendulum", "algo.num_steps=20", "algo.batch_size=40", "algo.num_epochs=2"),
        *("agent.normalize_observation=true", "agent.normalize_return=true"),
    ],
    "ppo_gru": ["algo=ppo", "agent=gru", "algo.num_steps=20", "algo.batch_size=40", "algo.num_epochs=2"],
    "ppo_transformer": [
        "algo=ppo",
        "agent=transformer",
        "algo.num_steps=20",
        "algo.batch_size=40",
        "algo.num_epochs=2",
    ],
    "ppo_native": ["algo=ppo", "env=CartPoleVec", "algo.num_steps=20", "algo.batch_size=40", "algo.num_epochs=2"],
    "ppo_torch": ["algo=ppo", "env=CartPoleTorch", "algo.num_steps=20", "algo.batch_size=40", "algo.num_epochs=2"],
    "ppo_starts": [
        *("algo=ppo", "algo.num_steps=20", "algo.batch_size=40", "algo.num_epochs=2"),
        "batcher.env_info={low: {uniform: [-0.2, -0.01]}, high: {uniform: [0.01, 0.2]}}",
    ],
    "ppo_population": [
        *("algo=ppo", "agent=population", "algo.num_steps=20", "algo.batch_size=40", "algo.num_epochs=2"),
        "batcher.agent_info={policy: {choice: [0, 1]}}",
    ],
    "a2c": ["algo=a2c", "algo.num_steps=20"],
    "reinforce": ["algo=reinforce", "algo.num_steps=20"],
    "dqn": [
        *("algo=dqn", *OFF_POLICY, "algo.target_update_interval=4", "algo.prioritized_alpha=0.6", "algo.n_step=3"),
        "logger.every=160",  # stopped between two rows, too
    ],
    "dqn_recurrent": [
        *("algo=dqn", "agent=recurrent_q_network", *OFF_POLICY, "algo.sequence_length=4", "algo.burn_in_steps=2"),
    ],
    "dqn_hindsight": [
        *("algo=dqn", "env=BitFlip", "env.num_bits=5", *OFF_POLICY, "algo.prioritized_alpha=0.6", "algo.n_step=3"),
        *("algo.hindsight=0.8", "algo.epsilon_spread=2"),
    ],
    "hdqn": ["algo=hdqn", "env=Errand", "env.length=5", "agent.option_steps=4", *OFF_POLICY],
    "sac": ["algo=sac", "env=Pendulum", *OFF_POLICY],
    "sac_hindsight": ["algo=sac", "env=PointReach", *OFF_POLICY, "algo.hindsight=0.8"],
    "diayn": ["algo=diayn", "env=Pendulum", *OFF_POLICY],
}
EVALUATED = ["evaluation.every=2", "evaluation.episodes=3"]


def job(name: str, *, workers: str = "local") -> list[str]:
    """Return the overrides of a run of six iterations; with processes, of two workers."""
    group = "episodes" if name == "reinforce" else "process"
    size = ["batcher.num_workers=2", "batcher.envs_per_worker=2"]
    return [*JOBS[name], f"batcher={group}", f"batcher.workers={workers}", *size, *COMMON]


def total_steps(name: str) -> str:
    """Return the key that ends a run after six iterations: of 80 steps, or a batch of episodes."""
    return f"total_steps={400 if name == 'reinforce' else 80 * ITERATIONS}"


def stopped_at(whole: Path, copy: Path, step: int) -> Path:
    """Return a copy of a run as it is left by SIGKILL some time after its checkpoint at `step`: rows beyond it stay."""
    shutil.copytree(whole, copy)
    for path in list_checkpoints(copy):
        if step_of(path) > step:
            shutil.rmtree(path)
    (copy / "summary.json").unlink()
    return copy


def resume(directory: Path, **changes: Any) -> list[str]:
    """Go on with a run, in this process; return what was said."""
    said: list[str] = []
    resume_run(directory, changes, "test", tell=said.append, trust=True)
    return said


def end_of(directory: Path) -> dict[str, Any]:
    """Return what has to be equal to the bit: the last checkpoint's hashes, and all rows without times."""
    files = verify_checkpoint(find_checkpoint(directory))["files"]
    rows = read_metrics(directory / "metrics.csv")
    kept = [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]
    best = directory / "checkpoints" / "best"
    return {
        "state": files["state.json"]["sha256"],
        "tensors": files["tensors.safetensors"]["sha256"],
        "rows": json.dumps(kept),
        "best": verify_checkpoint(best)["files"]["tensors.safetensors"]["sha256"] if best.exists() else None,
    }


def steps_of(directory: Path) -> list[int]:
    """Return the steps of a run's checkpoints."""
    return [step_of(path) for path in list_checkpoints(directory)]

"""On a CPU the same seed gives the same run, bit for bit, with worker processes."""

from pathlib import Path

import pytest

from rlx.run.checkpoint import find_checkpoint
from rlx.run.metrics import TIMED, read_metrics
from tests.run.jobs import train

REPLAY = ("algo.num_steps=8", "algo.learning_starts=32", "algo.num_updates=3", "algo.batch_size=16")
ALGORITHMS = {
    "ppo": ("algo.num_steps=16", "algo.batch_size=32", "algo.num_epochs=2"),
    "a2c": ("algo.num_steps=16",),
    "reinforce": ("algo.num_steps=16",),
    "dqn": (*REPLAY, "algo.prioritized_alpha=0.6"),
    "dqn+hindsight": (*REPLAY, "env=BitFlip", "env.num_bits=4", "algo.hindsight=0.8"),
    "hdqn": (*REPLAY, "env=Errand", "env.length=5", "agent.option_steps=4"),
    "sac": (*REPLAY, "env=Pendulum"),
    "diayn": (*REPLAY, "env=Pendulum"),
}


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_two_runs_of_one_seed_have_the_same_rows_and_the_same_bytes_of_weights(tmp_path: Path, kind: str) -> None:
    algo = f"algo={kind.split('+')[0]}"
    small = ("logger.console=false", "logger=csv", "batcher.num_workers=2", "batcher.envs_per_worker=2")
    found = []
    for name in ("a", "b", "other"):
        seed = "seed=4" if name == "other" else "seed=3"
        directory = train(tmp_path / name, algo, *small, *ALGORITHMS[kind], "total_steps=256", seed)
        rows = read_metrics(directory / "metrics.csv")
        kept = [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]
        tensors = sorted(find_checkpoint(directory).rglob("*.safetensors"))
        assert tensors
        found.append((kept, {path.name: path.read_bytes() for path in tensors}))
    first, again, other = found
    assert len(first[0]) >= 2
    assert again == first
    assert other[1] != first[1]

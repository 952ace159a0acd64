"""Batches as files, and the run that stops on a loss which is not finite."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.errors import CheckpointError, RunWriteError
from rlx.run.batches import failed_loss, load_batch, save_batch
from rlx.run.directory import read_summary
from tests.agent.agents import steps_of


def equal(one: DictTensor | TemporalDictTensor, other: DictTensor | TemporalDictTensor) -> bool:
    return sorted(one) == sorted(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("lengths", [[5, 3, 0], [0, 0], [1]])
def test_a_batch_comes_back_as_it_was(lengths: list[int], tmp_path: Path) -> None:
    batch = steps_of(lengths, 5)
    save_batch(tmp_path / "new" / "batch.safetensors", batch)
    found = load_batch(tmp_path / "new" / "batch.safetensors")
    for part in ("info", "steps", "bootstrap"):
        assert equal(getattr(found, part), getattr(batch, part)), part
    assert found.steps.lengths.tolist() == lengths
    assert found.bootstrap.batch_size == batch.bootstrap.batch_size


def test_folders_that_are_missing_are_made_for_a_path_as_text_too(tmp_path: Path) -> None:
    save_batch(f"{tmp_path}/a/b/c.safetensors", steps_of([2], 2))
    assert load_batch(f"{tmp_path}/a/b/c.safetensors").num_steps == 2
    (tmp_path / "file").touch()
    with pytest.raises(RunWriteError, match=r"cannot write '.*/file/b'"):
        save_batch(tmp_path / "file" / "b" / "c.safetensors", steps_of([2], 2))


def test_what_a_failed_loss_came_from_makes_no_run_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RunWriteError, match=r"cannot write '.*/gone/failed'"):
        failed_loss(torch.tensor(0.0), tmp_path / "gone" / "failed", steps_of([2], 2), torch.nn.Linear(1, 1), 0)
    assert not (tmp_path / "gone").exists()


def test_fields_that_share_memory_are_written_too(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(2, 6)
    steps = TemporalDictTensor({"a": whole[:, :3], "b": whole[:, :3], "c": whole[:, 3:]}, [3, 2])
    save_batch(tmp_path / "x.safetensors", Trajectories(DictTensor.empty(2), steps, DictTensor.empty(0)))
    assert equal(load_batch(tmp_path / "x.safetensors").steps, steps)


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_what_is_no_batch_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read a batch from"):
        load_batch(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="cannot read a batch from"):
        load_batch(path)


@pytest.mark.parametrize(
    "algo",
    [
        "algo=ppo env=CartPole",
        "algo=a2c env=CartPole",
        "algo=reinforce env=CartPole",
        "algo=dqn env=CartPole algo.learning_starts=64 algo.max_grad_norm=1e30",
        "algo=sac env=Pendulum algo.learning_starts=64",
        "algo=diayn env=Pendulum algo.learning_starts=64",
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(algo: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Its square, or the sum of a few, is infinite.
    huge = "agent.temperature_init=1e38" if "Pendulum" in algo else "env.reward_scale=3e38"
    words = [*algo.split(), huge, "algo.num_steps=16", f"run_dir={run}", "batcher.num_workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "rlx", "train", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error: the loss is" in done.stderr
    assert str(run / "failed") in done.stderr.replace("\n", "")
    batch = load_batch(run / "failed" / "batch.safetensors")
    assert batch.num_steps > 0
    weights = safetensors.torch.load_file(run / "failed" / "agent.safetensors")
    assert weights
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert read_summary(run)["status"] == "failed"

"""What an algorithm names in `run.track` is kept, or refused by name before anything is written."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rlx.cli.members import config_directory
from rlx.errors import CheckpointError, UserError
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.run.launch import launch
from rlx.run.tracked import check_fits, load_into, state_of


def tracked(directory: Path, how: str) -> Path:
    """Train with an algorithm that tracks what `how` says."""
    words = ["batcher=local", "batcher.envs_per_worker=2", "total_steps=32", "logger.console=false"]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [*words, f"run_dir='{directory}'"]), resolve=True)
    assert isinstance(config, dict)
    launch({**config, "algo": {"_target_": "tests.run.tracking.train", "how": how}}, {"algo": "own", "env": "CartPole"})
    return directory


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no batcher", r"run\.track\(batcher=\.\.\.\): got None, expected what make_batcher made"),
        ("no agent", r"run\.track\(agent=\.\.\.\): got None, expected the agent"),
        ("number", r"run\.track\(updates=\.\.\.\): got 3 \(int\), expected something with state_dict"),
        ("object", r"'counters/of' cannot be kept in a checkpoint: got a builtins\.object"),
        ("name", r"run\.track\(run=\.\.\.\): this name is the run's own"),
        ("log", r"run\.log\(\) before run\.track\(\)"),
    ],
)
def test_what_a_run_cannot_keep_track_of_is_refused_before_anything_is_written(
    tmp_path: Path, how: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tracked(tmp_path / "run", how)
    assert not (tmp_path / "run").exists()


def test_a_second_call_is_refused_and_the_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.track\(\) came before"):
        tracked(tmp_path / "run", "twice")
    assert "run.track() came before" in (tmp_path / "run" / "summary.json").read_text()


def test_what_can_be_kept_is_in_the_checkpoint(tmp_path: Path) -> None:
    state = load_checkpoint(find_checkpoint(tracked(tmp_path / "run", "tensor"))).state
    assert state["counters"] == {"updates": 0}
    assert state["mean"]["tensor"].tolist() == [0.0, 0.0]


def test_a_tensor_takes_over_the_numbers_of_another_in_place() -> None:
    scores, before = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
    weight = torch.nn.Parameter(torch.zeros(3))
    for value in (scores, weight):
        check_fits("scores", value, state_of(before))
        load_into("scores", value, state_of(before))
        assert torch.equal(value, before)
    assert weight.requires_grad
    with pytest.raises(CheckpointError, match=r"scores\.tensor is \[4\] float32 in the checkpoint and \[3\] float32"):
        check_fits("scores", scores, state_of(torch.zeros(4)))

"""`load_policy`: a policy as its checkpoint has it, or a refusal that says what is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlx.errors import CheckpointError
from rlx.run.checkpoint import (
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    take_snapshot,
    verify_checkpoint,
    write_snapshot,
)
from rlx.run.policy import check_trust, load_policy
from tests.run.jobs import SMALL, train


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train(tmp_path_factory.mktemp("cartpole") / "run", *SMALL, "total_steps=64")
    (checkpoint,) = (run / "checkpoints").iterdir()
    return checkpoint


def write(run: Path, source: Path, step: int, name: str | None = None) -> Path:
    """Write a checkpoint again as that of another step, by which its weights are told."""
    state, config, meta = load_checkpoint(source)
    state["agent"] = {key: torch.full_like(value, float(step)) for key, value in state["agent"].items()}
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    return write_snapshot(run, take_snapshot(state, config, {**meta, "env_steps": step}), name)


def interrupted(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Any]) -> None:
    """Let a run do something between a reader's look at a checkpoint and its reading; once."""
    left = [meanwhile]

    def verify_and_wait(path: Path) -> Any:
        manifest = verify_checkpoint(path)
        if left:
            left.pop()()
        return manifest

    monkeypatch.setattr("rlx.run.checkpoint.verify_checkpoint", verify_and_wait)


def steps_and_weights(path: Path) -> tuple[int, set[float]]:
    policy = load_policy(path)
    return policy.env_steps, {
        float(value) for tensor in policy.agent.state_dict().values() for value in tensor.view(-1)
    }


def test_best_that_is_replaced_under_the_reader_is_the_old_or_the_new(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = write(tmp_path, cartpole, 1, "best")
    interrupted(monkeypatch, lambda: write(tmp_path, cartpole, 2, "best"))
    assert steps_and_weights(best) == (2, {2.0})


def test_newest_that_is_removed_under_the_reader_gives_way_to_a_newer_one(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, cartpole, 1)
    interrupted(monkeypatch, lambda: (write(tmp_path, cartpole, 2), prune_checkpoints(tmp_path, keep_last=1)))
    assert steps_and_weights(tmp_path) == (2, {2.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_played(value: float, cartpole: Path, tmp_path: Path) -> None:
    state, config, meta = load_checkpoint(cartpole)
    name = next(name for name, tensor in state["agent"].items() if tensor.is_floating_point())
    state["agent"][name].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=rf"step-.*agent\.{name} has NaN or infinity in it"):
        load_policy(save_checkpoint(tmp_path, state, config, meta))


@pytest.mark.parametrize("specs", [None, {}, {"observation": 3, "action": 4}, {"observation": {"obs": {}}}])
def test_checkpoint_that_does_not_say_what_it_was_trained_on_is_refused(
    specs: Any, cartpole: Path, tmp_path: Path
) -> None:
    state, config, meta = load_checkpoint(cartpole)
    meta = {key: value for key, value in meta.items() if key != "specs"} | ({} if specs is None else {"specs": specs})
    with pytest.raises(CheckpointError, match=r"does not say what its agent was trained on: meta\['specs'\]"):
        load_policy(save_checkpoint(tmp_path, state, config, meta))


def test_what_else_lies_beside_a_users_yaml_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".#mine.yaml").symlink_to("somebody@somewhere.1:2")  # Emacs, while it edits
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "old.yaml").write_bytes("# \u00e9\n".encode("latin-1"))
    env, agent = {"_target_": "rlx.env.make"}, {"_target_": "mine.Agent"}
    with pytest.raises(CheckpointError, match=r"mine\.Agent\. No YAML file in"):
        check_trust(Path("here"), env, agent, tmp_path)
    (tmp_path / "mine.yaml").write_text("_target_: mine.Agent\n")
    check_trust(Path("here"), env, agent, tmp_path)

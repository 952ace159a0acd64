"""Checkpoints in the background: which stay, and what happens when one cannot be written."""

import logging
from pathlib import Path

import pytest
import torch

from rlx.errors import RunWriteError
from rlx.run.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, step_of
from rlx.run.saver import BEST, Saver


def steps_of(directory: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(directory)]


def save(saver: Saver, step: int) -> None:
    saver.save({"step": step}, {}, {"env_steps": step})


def test_the_newest_stay_and_the_first_of_each_period(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep_last=2, keep_every=100)
    for step in range(30, 480, 30):
        save(saver, step)
    saver.wait()
    assert steps_of(tmp_path) == [120, 210, 300, 420, 450]
    assert saver.saved_at == 450


def test_the_best_is_kept_beside_the_others_and_replaced_by_a_better_one(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep_last=1, keep_every=0)
    for step in (10, 20, 30):
        saver.save({"weights": torch.tensor(step)}, {}, {"env_steps": step}, name=BEST)
        save(saver, step + 5)
    saver.wait()
    assert steps_of(tmp_path) == [35]
    assert load_checkpoint(find_checkpoint(tmp_path / "checkpoints" / BEST)).state["weights"] == 30
    assert find_checkpoint(tmp_path).name == "step-000000035"


def test_what_is_saved_is_the_state_of_the_call_whatever_comes_after(tmp_path: Path) -> None:
    saver, weights = Saver(tmp_path, keep_last=1, keep_every=0), torch.ones(1_000_000)
    saver.save({"weights": weights}, {}, {"env_steps": 1})
    weights.zero_()
    saver.wait()
    assert load_checkpoint(find_checkpoint(tmp_path)).state["weights"].eq(1).all()


def test_one_failure_is_told_of_and_the_second_in_turn_is_an_error(tmp_path: Path, caplog) -> None:
    saver = Saver(tmp_path, keep_last=9, keep_every=0)
    save(saver, 1)
    saver.wait()
    folder = tmp_path / "checkpoints"
    hidden = folder.rename(tmp_path / "hidden")
    folder.write_text("no folder any more")
    with caplog.at_level(logging.WARNING):
        save(saver, 2)
        saver.wait()
    assert "cannot write checkpoint" in caplog.text
    assert "the run goes on, and ends if the next checkpoint cannot be written either" in caplog.text
    folder.unlink()
    hidden.rename(folder)
    save(saver, 3)  # well again: the count begins anew
    saver.wait()
    folder.rename(hidden)
    folder.write_text("no folder any more")
    save(saver, 4)
    save(saver, 5)
    with pytest.raises(RunWriteError, match="step-000000005"):
        saver.wait()
    assert saver.saved_at == 3


def test_the_last_try_fails_at_once(tmp_path: Path) -> None:
    saver = Saver(tmp_path / "gone", keep_last=1, keep_every=0)
    save(saver, 1)
    with pytest.raises(RunWriteError, match="No such file or directory"):
        saver.wait(last=True)


def test_what_is_not_the_disks_doing_is_raised_at_once(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep_last=1, keep_every=0)
    saver.save({}, {}, {"env_steps": 1}, logs=[None])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Path"):
        saver.wait()


def test_weights_that_were_best_are_no_substitute_for_a_checkpoint(tmp_path: Path, caplog) -> None:
    saver, folder = Saver(tmp_path, keep_last=9, keep_every=0), tmp_path / "checkpoints"
    for step in (1, 2):
        folder.write_text("no folder")
        save(saver, step)
        if step == 2:
            break
        with caplog.at_level(logging.WARNING):
            saver.wait()
        assert "and ends if the next checkpoint cannot be written either" in caplog.text
        folder.unlink()
        saver.save({"weights": torch.ones(1)}, {}, {"env_steps": 1}, name=BEST)
        saver.wait()
        folder.rename(tmp_path / "hidden")
    with pytest.raises(RunWriteError):
        saver.wait()

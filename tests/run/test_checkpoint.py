"""Checkpoints: what is found is whole, and what is not whole is refused by name."""

import errno
import hashlib
import importlib
import json
import logging
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rlx.errors import CheckpointError, RunWriteError
from rlx.run.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    remove_checkpoint,
    save_checkpoint,
    take_snapshot,
    verify_checkpoint,
    write_snapshot,
)
from rlx.run.migrate import SCHEMA

FILES = ["checkpoint.json", "config.json", "state.json", "tensors.safetensors"]
CONFIG = {"algo": {"gamma": 0.99, "clip": float("inf")}, "seed": 0, "none": None}


def save(run: Path, step: int) -> Path:
    state = {"agent": {"w": torch.full((100,), float(step))}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}
    return save_checkpoint(run, state, CONFIG, {"env_steps": step, "iteration": step // 10})


def save_best(run: Path, step: int) -> Path:
    return write_snapshot(run, take_snapshot({"w": torch.full((100,), float(step))}, {}, {"env_steps": step}), "best")


def test_a_checkpoint_comes_back_and_lies_where_it_should(tmp_path):
    path = save(tmp_path, 123)
    assert path == tmp_path / "checkpoints" / "step-000000123"
    assert sorted(entry.name for entry in path.iterdir()) == FILES
    state, config, meta = load_checkpoint(path)
    assert state["agent"]["w"].eq(123).all()
    assert list(state["optimizer"]["state"]) == [0]
    assert config == CONFIG
    assert meta == {"env_steps": 123, "iteration": 12}


def test_others_can_read_the_tensors_and_all_json_is_strict(tmp_path):
    path = save(tmp_path, 1)
    assert set(safetensors.torch.load_file(path / "tensors.safetensors")) == {"agent/w", "optimizer/state/0/step"}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for name in FILES[:3]:
        json.loads((path / name).read_text(), parse_constant=refuse)
    assert not any(b"pickle" in entry.read_bytes() for entry in path.iterdir())


def test_a_state_without_tensors_is_kept_too(tmp_path):
    state, config, _ = load_checkpoint(save_checkpoint(tmp_path, {}, {}, {"env_steps": 0}))
    assert state == config == {}


def test_loaded_tensors_outlive_their_file(tmp_path):
    path = save(tmp_path, 5)
    state = load_checkpoint(path).state
    with open(path / "tensors.safetensors", "r+b") as file:  # in place: what is mapped would change, or end the process
        file.write(bytes((path / "tensors.safetensors").stat().st_size))
    assert state["agent"]["w"].eq(5).all()
    state["agent"]["w"].zero_()


def test_a_snapshot_is_of_its_moment(tmp_path):
    weights = torch.ones(3)
    snapshot = take_snapshot({"w": weights}, {}, {"env_steps": 1})
    weights.zero_()
    assert load_checkpoint(write_snapshot(tmp_path, snapshot)).state["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("meta", [{}, {"env_steps": -1}, {"env_steps": 1.5}])
def test_a_checkpoint_without_its_step_is_refused(tmp_path, meta):
    with pytest.raises(CheckpointError, match="env_steps"):
        save_checkpoint(tmp_path, {}, {}, meta)
    assert not list(tmp_path.iterdir())


def test_a_process_killed_at_any_operation_leaves_a_whole_checkpoint():
    script = Path(__file__).with_name("checkpoint_kills.py")
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    found = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert found.returncode == 0, found.stderr
    deaths = {name: int(count) for name, count in (line.split() for line in found.stdout.splitlines())}
    assert set(deaths) == {"new", "replaced", "pruned", "outside"}
    assert deaths["new"] >= 8
    assert deaths["replaced"] >= 12
    assert deaths["pruned"] >= 30


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    for size in {0, 1, 7, 8, len(whole) // 2, len(whole) - 2}:
        (path / name).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=f"'{name}' is truncated or damaged".replace(".", r"\.")):
            load_checkpoint(path)
    (path / name).write_bytes(whole)
    load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, name):
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    for place in range(0, len(whole) - 1, max(len(whole) // 97, 1)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (path / name).write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # white space of the indented manifest may differ, its content not
            assert name == "checkpoint.json"
            assert json.loads(damaged) == json.loads(whole)


def rewrite(path: Path, **changes: object) -> None:
    """Change a manifest and note its new hash."""
    manifest = json.loads((path / "checkpoint.json").read_text())
    del manifest["sha256"]
    manifest |= changes
    text = json.dumps(manifest, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(manifest))


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    path = save(tmp_path, 1)
    rewrite(path, schema=SCHEMA + 1, rlx="9.9.9")
    with pytest.raises(CheckpointError, match=rf"format version {SCHEMA + 1}, written by rlx 9\.9\.9.*upgrade rlx"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": {}},
        {"files": {name: {} for name in FILES}},
        {"files": dict.fromkeys(FILES, 3)},
        {"meta": {"$tensor": "x"}},
        {"meta": [1]},
        {"meta": {"$tuple": 3}},
        {"meta": {"$bytes": "?"}},
        {"schema": "1"},
        {"schema": 0},
    ],
    ids=str,
)
def test_a_manifest_that_no_rlx_wrote_is_refused(tmp_path, changes):
    path = save(tmp_path, 1)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


def test_something_else_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of rlx: it has no 'checkpoint\.json'"):
        load_checkpoint(tmp_path)
    file = tmp_path / "model.pt"
    file.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is no checkpoint of rlx"):
        load_checkpoint(file)
    for text in ("[]", "{}", '{"format": "other"}', "3"):
        (tmp_path / "checkpoint.json").write_text(text)
        with pytest.raises(CheckpointError, match="is no checkpoint of rlx: the format"):
            load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        load_checkpoint(tmp_path)


def test_a_run_its_folder_and_a_checkpoint_all_lead_to_a_checkpoint(tmp_path):
    older, newer = save(tmp_path, 999_999_999), save(tmp_path, 1_000_000_000)
    assert list_checkpoints(tmp_path) == [older, newer]
    assert find_checkpoint(tmp_path) == find_checkpoint(str(tmp_path / "checkpoints")) == newer
    assert find_checkpoint(older) == older


def test_a_damaged_newest_one_falls_back_and_says_so(tmp_path, caplog):
    oldest, middle, newest = (save(tmp_path, step) for step in (1, 2, 3))
    (newest / "tensors.safetensors").write_bytes(b"short")
    said = []
    assert find_checkpoint(tmp_path, said.append) == middle
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "truncated" in said[0]
    assert said[0].endswith("falling back to 'step-000000002'")
    (middle / "checkpoint.json").unlink()
    with caplog.at_level(logging.WARNING, logger="rlx"):
        assert find_checkpoint(tmp_path) == oldest
    assert len(caplog.records) == 2
    (oldest / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint that is whole:\n(.*\n){2}.*state\.json"):
        find_checkpoint(tmp_path)


def test_a_path_without_checkpoints_says_what_it_is(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; expected a run directory or a checkpoint"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a run directory nor a checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="neither a run directory nor a checkpoint"):
        find_checkpoint(tmp_path / "metrics.csv")
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="it is a run: name one of its checkpoints"):
        load_checkpoint(tmp_path)


def test_the_newest_checkpoints_are_kept(tmp_path):
    paths = [save(tmp_path, step) for step in range(5)]
    prune_checkpoints(tmp_path, 2)
    assert list_checkpoints(tmp_path) == paths[3:]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [path.name for path in paths[3:]]
    prune_checkpoints(tmp_path, 0)  # never the last one
    assert list_checkpoints(tmp_path) == paths[4:]
    prune_checkpoints(tmp_path / "nothing", 1)


def test_a_full_disk_keeps_the_checkpoints_that_were_there(tmp_path):
    before = save(tmp_path, 1)
    large = {"w": torch.ones(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunWriteError, match=r"cannot write checkpoint '.*step-000000002'"):
            save_checkpoint(tmp_path, large, {}, {"env_steps": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "checkpoints") == [before.name]
    assert find_checkpoint(tmp_path) == before


def test_a_failure_while_replacing_keeps_the_old_one(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    rename = Path.rename

    def fail(source, target):
        if ".writing-" in source.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(RunWriteError, match="Input/output error"):
            save_checkpoint(tmp_path, {"other": 1}, {}, {"env_steps": 1})
    found = find_checkpoint(tmp_path)
    assert "agent" in load_checkpoint(found).state
    save(tmp_path, 1)
    assert os.listdir(tmp_path / "checkpoints") == [path.name]


def test_a_run_may_be_called_as_a_checkpoint_is(tmp_path):
    run = tmp_path / "step-5"
    run.mkdir()
    (run / "config.yaml").write_text("")
    path = save(run, 1)
    assert find_checkpoint(run) == path
    assert find_checkpoint(path) == path


@pytest.mark.parametrize(
    ("meanwhile", "message"),
    [
        (lambda run, path: save_best(run, 2), "was replaced by its run while it was read"),
        (lambda run, path: remove_checkpoint(path), "cannot be read: .*No such file"),
    ],
)
def test_a_checkpoint_that_its_run_takes_away_under_the_reader_is_no_mixture(tmp_path, monkeypatch, meanwhile, message):
    path = save_best(tmp_path, 1)

    def verify_and_wait(path):
        manifest = verify_checkpoint(path)
        meanwhile(tmp_path, path)
        return manifest

    monkeypatch.setattr("rlx.run.checkpoint.verify_checkpoint", verify_and_wait)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_run_directory_that_is_gone_is_named(tmp_path):
    with pytest.raises(RunWriteError, match="No such file or directory"):
        save(tmp_path / "gone", 1)


def test_loading_runs_nothing_that_a_checkpoint_names(tmp_path, monkeypatch):
    config = {"agent": {"_target_": "os.mkdir", "path": str(tmp_path / "made"), "other": "${oc.env:HOME}"}}
    path = save_checkpoint(tmp_path, {"w": torch.ones(1)}, config, {"env_steps": 1})

    def refuse(*arguments, **keywords):
        raise AssertionError("a checkpoint was about to run code")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (importlib, "import_module")):
        monkeypatch.setattr(owner, name, refuse)
    assert load_checkpoint(path).config == config
    assert not (tmp_path / "made").exists()


def test_verifying_returns_what_is_noted(tmp_path):
    manifest = verify_checkpoint(save(tmp_path, 7))
    assert manifest["schema"] == SCHEMA
    assert manifest["meta"]["env_steps"] == 7

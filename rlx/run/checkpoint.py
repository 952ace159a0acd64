"""Checkpoints: directories that are whole or not there, in safetensors and JSON.

    checkpoints/step-000000123/
        tensors.safetensors    every tensor of the state
        state.json             the rest of it (see `rlx.run.state`)
        config.json            the run's configuration, as data
        checkpoint.json        format, schema version, meta, and each file's size and SHA-256; its own, too

A checkpoint is written into a hidden directory beside, made durable, and renamed. So a process killed at any moment
leaves the checkpoints that were there before, and perhaps a hidden directory that the next save removes.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from rlx import __version__
from rlx.errors import CheckpointError, RunWriteError
from rlx.run.directory import CHECKPOINTS, is_run_directory
from rlx.run.files import expanded, fsync_directory, reason_of, sha256_of, sync_file, write_durable
from rlx.run.migrate import SCHEMA, bring_state_up_to_date, bring_up_to_date, check_schema
from rlx.run.state import decode, encode

_FORMAT = "rlx-checkpoint"
_MANIFEST = "checkpoint.json"
_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_CONFIG = "config.json"
_FILES = (_TENSORS, _STATE, _CONFIG)
_NAME = re.compile(r"step-(\d+)")
_REPLACED = re.compile(r"\.(step-\d+|[a-z]+)\.replaced-\w+")
_UNFINISHED = re.compile(r"\.(step-\d+|[a-z]+)\.(writing|removed)-\w+")


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the nested state that was saved; tensors on the CPU.
        config: the run's configuration, as data.
        meta: what the run noted about the checkpoint; `env_steps` is always there.
    """

    state: dict[str, Any]
    config: dict[str, Any]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A run's state at one moment, copied: the run may go on while this is written (see `take_snapshot`).

    Attributes:
        tensors: every tensor, on the CPU, with memory of its own.
        state: the rest, as JSON data.
        config: the configuration, as JSON data.
        meta: notes, as JSON data.
        env_steps: environment steps so far; names the checkpoint.
    """

    tensors: dict[str, Tensor]
    state: Any
    config: Any
    meta: Any
    env_steps: int

    @property
    def name(self) -> str:
        """Return the name of the checkpoint that it becomes, where it gets no other: `step-000000123`."""
        return f"step-{self.env_steps:09d}"


def take_snapshot(state: Mapping[str, Any], config: Mapping[str, Any], meta: Mapping[str, Any]) -> Snapshot:
    """Copy a run's state, so that a thread may write it while training goes on.

    Args:
        state: nested dictionaries, lists, tensors, numbers, text, ... (see `rlx.run.state`).
        config: the run's resolved configuration; no tensors.
        meta: what to note about the checkpoint; must have `env_steps`, an int >= 0; no tensors.

    Raises:
        CheckpointError: something in it cannot be kept; names its path and type.
    """
    env_steps = meta.get("env_steps")
    if not isinstance(env_steps, int) or env_steps < 0:
        raise CheckpointError(f"meta['env_steps'] of a checkpoint: got {env_steps!r}, expected an integer >= 0")
    tensors: dict[str, Tensor] = {}
    encoded = encode(state, tensors)
    return Snapshot(tensors, encoded, encode(config, path="config"), encode(meta, path="meta"), env_steps)


def write_snapshot(directory: Path | str, snapshot: Snapshot, name: str | None = None) -> Path:
    """Write a snapshot as `checkpoints/step-N` of a run directory; one writer at a time.

    A checkpoint of the same step is replaced, and stays until the new one is whole.

    Args:
        directory: the run directory.
        snapshot: what to write.
        name: another name than `step-N`, letters only, such as `best`: it is found by that name alone.

    Returns:
        The checkpoint's directory.

    Raises:
        RunWriteError: it cannot be written (a full disk, no permission); earlier checkpoints are as they were.
    """
    folder = Path(directory) / CHECKPOINTS
    name = name or snapshot.name
    target = folder / name
    token = secrets.token_hex(4)
    temporary = folder / f".{name}.writing-{token}"
    try:
        folder.mkdir(exist_ok=True)
        _tidy(folder)
        temporary.mkdir()
        try:
            _write_files(temporary, snapshot)
            if target.exists():
                target.rename(folder / f".{name}.replaced-{token}")
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(folder)
        _tidy(folder)
    except (OSError, SafetensorError) as error:
        raise RunWriteError(f"cannot write checkpoint '{target}': {reason_of(error)}") from error
    return target


def save_checkpoint(
    directory: Path | str, state: Mapping[str, Any], config: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Save a run's state: `take_snapshot`, then `write_snapshot`; see there for the arguments and errors.

    Returns:
        The checkpoint's directory, `<directory>/checkpoints/step-<meta["env_steps"]>`.
    """
    return write_snapshot(directory, take_snapshot(state, config, meta))


def load_checkpoint(path: Path | str, report: Callable[[str], None] | None = None) -> Checkpoint:
    """Load one checkpoint; sizes and hashes are verified first, and nothing in it is ever run.

    The configuration of an older rlx is brought up to date.

    Args:
        path: a checkpoint's directory; `find_checkpoint` finds a run's newest.
        report: told how, in a line; None: `logging` is, as a warning.

    Returns:
        `(state, config, meta)`; tensors on the CPU, each with memory of its own unless it was one and the same before.

    Raises:
        CheckpointError: missing, truncated, damaged, foreign, or of a newer format; says which file and what. Or its
            run replaced or removed it meanwhile.
    """
    path = Path(path)
    manifest = verify_checkpoint(path)
    try:
        # Cloned, because they are views of one mapped file, which may go while they are still in use.
        mapped = safetensors.torch.load_file(path / _TENSORS)  # pyright: ignore[reportUnknownMemberType]
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        state = decode(json.loads((path / _STATE).read_bytes()), tensors)
        config = decode(json.loads((path / _CONFIG).read_bytes()))
        meta = decode(manifest["meta"])
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint '{path}': {error}") from error
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint '{path}' cannot be read: {reason_of(error)}") from error
    for name, part in (("state", state), ("config", config), ("meta", meta)):
        if not isinstance(part, dict):
            raise CheckpointError(f"checkpoint '{path}': {name} is a {type(part).__name__}, expected a dictionary")
    if _read_manifest(path) != manifest:  # else files of two checkpoints would pass for one
        raise CheckpointError(f"checkpoint '{path}' was replaced by its run while it was read")
    config, note = bring_up_to_date(config, manifest["schema"], f"checkpoint '{path}'", CheckpointError)
    bring_state_up_to_date(state, config, manifest["schema"])
    if note is not None:
        (report or logging.getLogger(__name__).warning)(note)
    return Checkpoint(state, config, meta)


def verify_checkpoint(path: Path | str) -> dict[str, Any]:
    """Check that a checkpoint is whole: its format, and each file's size and SHA-256.

    Returns:
        The content of its `checkpoint.json`.

    Raises:
        CheckpointError: it is not; says which file and what.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    try:
        noted = {name: (int(manifest["files"][name]["size"]), manifest["files"][name]["sha256"]) for name in _FILES}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"checkpoint '{path}': '{_MANIFEST}' does not note size and SHA-256 of each of {', '.join(_FILES)}"
        ) from None
    for name, (expected_size, expected_hash) in noted.items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != expected_size:
                raise CheckpointError(
                    f"checkpoint '{path}': '{name}' is truncated or damaged: "
                    f"it has {size:,} bytes, expected {expected_size:,}"
                )
            if sha256_of(file) != expected_hash:
                raise CheckpointError(f"checkpoint '{path}': '{name}' is damaged: its SHA-256 is not the one noted")
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint '{path}': '{name}' is missing") from None
        except OSError as error:
            raise CheckpointError(f"checkpoint '{path}': '{name}' cannot be read: {reason_of(error)}") from error
    return manifest


def list_checkpoints(directory: Path | str) -> list[Path]:
    """Return a run's checkpoints, oldest first, whole or not; an empty list where there are none.

    A checkpoint that was being replaced when its process died counts, where its successor is not there.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    folder = Path(directory) / CHECKPOINTS
    found: dict[int, Path] = {}
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be read: {reason_of(error)}") from error
    for name in names:  # hidden names sort first, so that the plain one of the same step takes over
        replaced = _REPLACED.fullmatch(name)
        match = _NAME.fullmatch(replaced[1] if replaced else name)
        if match:
            found[int(match[1])] = folder / name
    return [found[step] for step in sorted(found)]


def find_checkpoint(path: Path | str, report: Callable[[str], None] | None = None) -> Path:
    """Return the checkpoint that a path means: itself, or the newest whole one of a run.

    Args:
        path: a checkpoint, a run directory, or its `checkpoints` folder.
        report: told of each damaged checkpoint that is passed over; None: `logging` is, as a warning.

    Raises:
        CheckpointError: there is none; says what is there instead.
    """
    path = expanded(path)
    try:
        if not path.exists():
            raise CheckpointError(f"'{path}' does not exist; expected a run directory or a checkpoint")
        if (path / _MANIFEST).exists() or (_NAME.fullmatch(path.name) and not is_run_directory(path)):
            return path
    except PermissionError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from error
    run = path.parent if path.name == CHECKPOINTS else path
    candidates = list_checkpoints(run)
    if not candidates:
        if is_run_directory(run):
            raise CheckpointError(f"run '{run}' has no checkpoint yet")
        raise CheckpointError(f"'{path}' is neither a run directory nor a checkpoint of rlx")
    tell = report or logging.getLogger(__name__).warning
    reasons: list[str] = []
    for candidate in reversed(candidates):
        try:
            verify_checkpoint(candidate)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            tell(f"{reason}; falling back to '{candidate.name}'")
        return candidate
    raise CheckpointError(f"run '{run}' has no checkpoint that is whole:\n  " + "\n  ".join(reasons))


def prune_checkpoints(directory: Path | str, keep_last: int, keep_every: int = 0) -> None:
    """Remove all but a run's newest checkpoints, and one for each so many steps.

    Args:
        directory: the run directory.
        keep_last: how many stay, >= 1.
        keep_every: of the older ones, the first at or behind each multiple of so many environment steps stays, too.
    """
    try:
        kept = list_checkpoints(directory)
    except CheckpointError:
        return  # what cannot be seen, stays
    before = 0
    for path in kept[: -max(keep_last, 1)]:
        period = step_of(path) // keep_every if keep_every else 0
        if period == before:
            remove_checkpoint(path)
        before = period


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, such that a removal cut short leaves nothing that looks like one; what cannot go, stays."""
    hidden = path.with_name(f".{path.name.removeprefix('.').split('.')[0]}.removed-{secrets.token_hex(4)}")
    try:
        path.rename(hidden)
    except OSError:
        return
    shutil.rmtree(hidden, ignore_errors=True)


def step_of(path: Path) -> int:
    """Return the environment steps that a checkpoint of a run is named after."""
    return int(path.name.removeprefix(".").split(".")[0].removeprefix("step-"))


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    """Write all files of a checkpoint and wait until the disk has them."""
    safetensors.torch.save_file(snapshot.tensors, folder / _TENSORS)  # pyright: ignore[reportUnknownMemberType]
    sync_file(folder / _TENSORS)
    write_durable(folder / _STATE, _json(snapshot.state))
    write_durable(folder / _CONFIG, _json(snapshot.config))
    files = {name: {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in _FILES}
    manifest = {"format": _FORMAT, "schema": SCHEMA, "rlx": __version__, "meta": snapshot.meta, "files": files}
    manifest["sha256"] = hashlib.sha256(_json(manifest)).hexdigest()
    write_durable(folder / _MANIFEST, json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n")
    fsync_directory(folder)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, checked by itself."""
    if not path.exists():
        raise CheckpointError(f"checkpoint '{path}' does not exist")
    try:
        text = (path / _MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        hint = "it is a run: name one of its checkpoints" if is_run_directory(path) else f"it has no '{_MANIFEST}'"
        raise CheckpointError(f"'{path}' is no checkpoint of rlx: {hint}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint '{path}': '{_MANIFEST}' cannot be read: {reason_of(error)}") from error
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"checkpoint '{path}': '{_MANIFEST}' is truncated or damaged: it is not JSON") from None
    manifest = cast(dict[str, Any], data) if isinstance(data, dict) else {}
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"'{path}' is no checkpoint of rlx: the format in '{_MANIFEST}' is {manifest.get('format')!r}, "
            f"expected '{_FORMAT}'"
        )
    check_schema(manifest.get("schema"), f"checkpoint '{path}'", CheckpointError, by=manifest.get("rlx"))
    noted = manifest.pop("sha256", None)
    if hashlib.sha256(_json(manifest)).hexdigest() != noted:
        raise CheckpointError(f"checkpoint '{path}': '{_MANIFEST}' is damaged: its SHA-256 is not the one noted")
    return manifest


def _tidy(folder: Path) -> None:
    """Remove what was never finished; a replaced checkpoint goes too, or takes its place back where no new one is."""
    for entry in list(folder.iterdir()):
        replaced = _REPLACED.fullmatch(entry.name)
        plain = folder / replaced[1] if replaced else None
        if plain is not None and not plain.exists():
            entry.rename(plain)
        elif plain is not None or _UNFINISHED.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _json(data: Any) -> bytes:
    """Return compact strict JSON; the same bytes for the same data."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()

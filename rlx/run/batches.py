"""A batch as a file: what a loss that is not finite was computed on, to be looked at afterwards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.errors import CheckpointError, LossError, RunWriteError
from rlx.run.files import reason_of

_PARTS = ("info", "steps", "bootstrap", "context")


def save_batch(path: Path | str, batch: Trajectories) -> None:
    """Write trajectories as one safetensors file: `info/...`, `steps/...`, `bootstrap/...`, `context/...`.

    Folders that are missing are made.

    Raises:
        RunWriteError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        fields: DictTensor | TemporalDictTensor = getattr(batch, part)
        tensors |= {f"{part}/{key}": fields[key] for key in fields}
        if isinstance(fields, TemporalDictTensor):
            tensors[f"{part}.lengths"] = fields.lengths
    make_folder(Path(path).parent, parents=True)
    save_tensors(Path(path), tensors, {"rows": str(batch.batch_size), "ends": str(batch.bootstrap.batch_size)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, in a folder that is there.

    Raises:
        RunWriteError: it cannot be written.
    """
    # Several may be views of one memory, which the format does not take.
    apart = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    try:
        safetensors.torch.save_file(apart, path, notes)
    except (OSError, SafetensorError) as error:
        raise RunWriteError(f"cannot write '{path}': {reason_of(error)}") from error


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder where it is missing.

    Raises:
        RunWriteError: it cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True, parents=parents)
    except OSError as error:
        raise RunWriteError(f"cannot write '{folder}': {reason_of(error)}") from error


def load_batch(path: Path | str) -> Trajectories:
    """Return the trajectories that `save_batch` wrote, on the CPU.

    Raises:
        CheckpointError: there is no such file, or it is something else.
    """
    try:
        with cast("Any", safe_open)(path, framework="pt") as file:  # its module has no types
            notes = cast("dict[str, str]", file.metadata())
        rows, ends = int(notes["rows"]), int(notes["ends"])
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read a batch from '{path}': {error}") from error

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}

    def in_time(name: str) -> TemporalDictTensor:
        return TemporalDictTensor(part(name), tensors[f"{name}.lengths"])

    info, bootstrap = DictTensor(part("info"), rows), DictTensor(part("bootstrap"), ends)
    return Trajectories(info, in_time("steps"), bootstrap, in_time("context"))


def failed_loss(loss: Tensor, folder: Path, batch: Trajectories, agent: nn.Module, env_steps: int) -> LossError:
    """Save what a loss came from that is not finite, and return the error that says so.

    Args:
        loss: 0-dimensional.
        folder: where `batch.safetensors` and `agent.safetensors` go.
        batch: what it was computed on.
        agent: with which weights.
        env_steps: of the run so far.

    Raises:
        RunWriteError: they cannot be saved.
    """
    make_folder(folder)  # its parent is the run's directory: that one may be gone, and stays so
    save_batch(folder / "batch.safetensors", batch)
    save_tensors(folder / "agent.safetensors", agent.state_dict())
    return LossError(
        f"the loss is {float(loss.detach())} after {env_steps:,} steps, before the step was made. The batch and the "
        f"agent's weights are in '{folder}'; look for rewards or observations out of all proportion, or a "
        "learning rate too high"
    )

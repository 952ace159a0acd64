"""Large named tensors, in memory or in files: how much they will take is known, and found to fit, beforehand."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlx.data.spec import Spec
from rlx.errors import SpecError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def allocate(specs: Mapping[str, Spec], count: int, *, directory: Path | None = None) -> dict[str, Tensor]:
    """Return zeros `[count, *shape]` for each spec.

    Args:
        specs: shape and dtype of one row, by name.
        count: rows.
        directory: where there is room for files, one a tensor, that the tensors are mapped to; None for memory. They
            have no name there: several processes may share it, and the room is free when the tensors are gone.

    Raises:
        SpecError: there is no such directory, or no room.
    """
    if directory is None:
        return {name: spec.zeros(count) for name, spec in specs.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return {name: _mapped(directory, spec, count) for name, spec in specs.items()}
    except OSError as error:
        needed = show_bytes(sum(count * spec.num_bytes for spec in specs.values()))
        raise SpecError(f"'{directory}' cannot hold {needed}: {error.strerror}") from error


def _mapped(directory: Path, spec: Spec, count: int) -> Tensor:
    num_bytes = max(1, count * spec.num_bytes)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="rlx-") as file:
        if hasattr(os, "posix_fallocate"):  # room now, rather than a SIGBUS at a later write
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:
            file.truncate(num_bytes)
        raw = torch.from_file(file.name, shared=True, size=num_bytes, dtype=torch.uint8)
    return raw[: count * spec.num_bytes].view(spec.dtype).view(count, *spec.shape)


def check_room(num_bytes: int, what: str, *, directory: Path | None = None, advice: str = "") -> None:
    """Check that so many bytes are free: in memory, or in the file system of `directory`.

    Args:
        num_bytes: how many.
        what: what they are for, as the message begins.
        directory: where files would be made; None for memory.
        advice: what to do about it, as the message ends.

    Raises:
        SpecError: there is less; says both figures.
    """
    if directory is None:
        free, where = available_memory(), "memory"
    else:
        existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
        free, where = shutil.disk_usage(existing).free, f"'{existing}'"
    if free is not None and num_bytes > free:
        raise SpecError(
            f"{what} takes {show_bytes(num_bytes)}, but {where} has {show_bytes(free)} left"
            f"{f'; {advice}' if advice else ''}"
        )


def available_memory() -> int | None:
    """Return the bytes that this process could still get: what the machine has free, and its container allows."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.extend(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError):
        pass
    for limit, used in _CGROUP:
        try:
            most, now = limit.read_text(encoding="ascii").strip(), used.read_text(encoding="ascii").strip()
            if most != "max":
                found.append(int(most) - int(now) + _reclaimable(limit.parent))
        except (OSError, ValueError):
            continue
    return max(0, min(found)) if found else None


def _reclaimable(group: Path) -> int:
    """Return the bytes of the container's page cache that the kernel would give up."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "total_inactive_file ")))


def show_bytes(num_bytes: float) -> str:
    """Return a number of bytes for people: `6.71 GiB`."""
    unit = 0
    while num_bytes >= 1024 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.3g} {_UNITS[unit]}"

"""The cores that this process was given, by whoever gives them, and whether a run fits them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rlx.errors import ConfigError, did_you_mean

AUTO = "auto"
"""As `batcher.num_workers` or `num_threads`: as many as there are cores."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Cores:
    """How many cores a run has.

    Attributes:
        count: whole cores, at least 1.
        limit: what sets the limit, in words.
    """

    count: int
    limit: str

    def shared_by(self, runs: int) -> "Cores":
        """Return the part of each of several runs."""
        if runs <= 1:
            return self
        return replace(self, count=max(1, self.count // runs), limit=f"{self.limit}, shared by {runs} runs")


def find_cores(environment: Mapping[str, str] = os.environ) -> Cores:
    """Return the cores that this process may use: the least of what the machine, its mask, cgroup and SLURM say."""
    total = os.cpu_count() or 1
    found = [Cores(total, "the machine's")]
    if hasattr(os, "sched_getaffinity"):
        found.append(Cores(len(os.sched_getaffinity(0)), "affinity mask"))
    quota = cgroup_quota()
    if quota is not None:
        found.append(Cores(max(1, int(quota)), f"cgroup limit of {quota:.3g}"))
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    if given.isdigit() and int(given) > 0:
        found.append(Cores(int(given), "SLURM_CPUS_PER_TASK"))
    return min(found, key=lambda cores: cores.count)


def cgroup_quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float | None:
    """Return the cores' worth of time that this process's cgroups, of version 1 or 2, allow; None without a limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            read = _version_1 if controllers else _version_2
            mount = root / controllers if controllers else root
            if controllers and not mount.is_dir():
                mount = root / "cpu"
            inside = mount / path.lstrip("/")
            # A container sees its own cgroup as the root, whatever its path is called outside.
            for folder in {mount, *(place for place in (inside, *inside.parents) if place.is_relative_to(mount))}:
                quota = read(folder)
                if quota is not None:
                    found.append(quota)
    return min(found, default=None)


def fitted(config: Mapping[str, Any], cores: Cores) -> Mapping[str, Any]:
    """Return a configuration whose `batcher.num_workers` and `num_threads` are numbers, also where they were `auto`.

    The learner gets all cores, since workers wait while it computes; where they do not (`batcher.asynchronous`), those
    that they leave.

    Raises:
        ConfigError: one is another word.
    """
    if "batcher" not in config:
        return config  # it was taken away, which whoever reads it says
    batcher, asked = cast("Mapping[str, Any]", config["batcher"]), config.get("num_threads")
    workers = _number_for("batcher.num_workers", batcher.get("num_workers"), cores.count)
    ahead = batcher.get("workers") == "process" and batcher.get("asynchronous") and isinstance(workers, int)
    threads = _number_for("num_threads", asked, max(1, cores.count - (workers if ahead else 0)))
    if workers == batcher.get("num_workers") and threads == asked:
        return config
    return {**config, "num_threads": threads, "batcher": {**batcher, "num_workers": workers}}


def _number_for(key: str, asked: Any, count: int) -> Any:
    """Return what was asked for, or `count` where that is `auto`."""
    if isinstance(asked, str) and asked != AUTO:
        raise ConfigError(f"{key}: expected an integer >= 1 or {AUTO}, got {asked!r}.{did_you_mean(asked, [AUTO])}")
    return count if asked == AUTO else asked


def describe_use(config: Mapping[str, Any], cores: Cores) -> tuple[str, str | None]:
    """Return how a run uses its cores, and a warning where it asks for more than it has.

    A run's data depend on its number of workers, so that it is never changed here.
    """
    batcher = cast("Mapping[str, Any]", config["batcher"])
    workers = int(batcher.get("num_workers") or 1) if batcher.get("workers") == "process" else 0
    threads = int(config["num_threads"])
    use = f"cores: {cores.count} ({cores.limit}), for {workers} worker processes; the learner's threads: {threads}"
    if max(workers, threads) <= cores.count:
        return use, None
    key, value = ("batcher.num_workers", workers) if workers >= threads else ("num_threads", threads)
    fitting = f"{key}={cores.count}" + (f" or {key}={AUTO}" if workers >= threads else "")
    there = "there is 1 core" if cores.count == 1 else f"there are {cores.count} cores"
    return use, (
        f"{key} is {value}, but {there} ({cores.limit}): they wait for each other. It stays "
        f"{value}, since results depend on it; {fitting} fits."
    )


def _version_1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _version_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

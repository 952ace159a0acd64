"""How the ranks of a distributed learner find each other: by what torchrun or srun tell each of them."""

import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal, cast

import torch
from torch import distributed

from rlx.errors import ConfigError, DeviceError, RankError
from rlx.run.files import reason_of
from rlx.run.ranks import Ranks
from rlx.run.watch import Watch, here
from rlx.validate import Range, validate

TCPStore: Any = vars(distributed)["TCPStore"]  # public, and not declared so
PrefixStore: Any = vars(distributed)["PrefixStore"]

_LOOK_SECONDS = 0.1
_CONNECT_SECONDS = 5.0
_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Place:
    """What a launcher says of this process.

    Attributes:
        rank: among all.
        size: how many there are.
        local_rank: among those of this machine.
        local_size: how many there are on this machine.
        host: of the store that all can reach.
        port: likewise.
        serves: whether this process is to serve that store; torchrun does so itself.
        attempt: which start of the same job this is.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    serves: bool
    attempt: str = "0"


def alone(*, kind: Literal["alone"]) -> dict[str, Any]:
    """Return the keys of `learner=alone`; the signature is their schema."""
    return dict(locals())


def ddp(*, kind: Literal["ddp"], timeout: Annotated[float, Range(1)]) -> dict[str, Any]:
    """Return the keys of `learner=ddp`: seconds that ranks wait for each other at any one point."""
    return dict(locals())


def read_learner(values: Any) -> dict[str, Any]:
    """Return what the group `learner` says, checked; what was written before there was one is alone.

    Raises:
        ConfigError: a wrong key or value.
    """
    given = {"kind": "alone"} if values is None else values
    named = cast("Mapping[str, Any]", given if isinstance(given, Mapping) else {"kind": given})
    kind = named.get("kind")
    if kind not in ("alone", "ddp"):
        raise ConfigError(f"learner: got {kind!r}, expected a member of conf/learner: learner=alone or learner=ddp")
    return validate(ddp if kind == "ddp" else alone, named, "learner")


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Return what torchrun or srun say in the environment's variables; None where neither started this process.

    Raises:
        ConfigError: they contradict themselves.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in names if name not in environment]
        if missing:
            raise _refused(f"RANK and WORLD_SIZE are set, and {missing[0]} is not; torchrun sets all of them")
        place = Place(
            rank=_number(environment, "RANK"),
            size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK", "0"),
            local_size=_number(environment, "LOCAL_WORLD_SIZE", "1"),
            host=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
            serves=environment["RANK"] == "0" and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )
    elif "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        step = int(environment.get("SLURM_JOB_ID", "0")) * 7 + int(environment.get("SLURM_STEP_ID", "0"))
        place = Place(
            rank=_number(environment, "SLURM_PROCID"),
            size=_number(environment, "SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")),
            local_rank=_number(environment, "SLURM_LOCALID", "0"),
            local_size=int(re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]),  # type: ignore[index]
            host=environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
            port=_number(environment, "MASTER_PORT", str(_FIRST_PORT + step % _PORTS)),
            serves=environment["SLURM_PROCID"] == "0",
        )
    else:
        return None
    if not 0 <= place.rank < place.size:
        raise _refused(f"got rank {place.rank} of {place.size}, expected 0 to {place.size - 1}")
    return place


def first_host(nodes: str) -> str:
    """Return the first of SLURM's nodes, such as `n01` of `n[01-03,7],gpu2`."""
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return "" if match is None else match[1] + (match[2] or "")


def join(learner: Mapping[str, Any], command: str | None = None, *, resumed: bool = False) -> Ranks:
    """Return this process among its ranks, once all of them are there.

    Args:
        learner: what `read_learner` returned.
        command: what started this process, `rlx train ...`, for the message that says how to.
        resumed: whether the run was trained before, and so by as many ranks as it will be.

    Raises:
        ConfigError: not started as a distributed learner is, or started as one that it is not to be.
        RankError: a rank did not come within the time limit; names it.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if learner["kind"] == "alone":
        if size not in ("", "1"):
            hint = "" if resumed else "give learner=ddp to let them train one together, or "
            raise ConfigError(
                f"learner=alone: this is one of {size} processes (WORLD_SIZE={size}), which would each train the same "
                f"run; {hint}start it without torchrun"
            )
        return Ranks()
    place = find_place(os.environ)
    if place is None:
        raise ConfigError(
            "learner=ddp: this process was started neither by torchrun nor by srun (RANK and WORLD_SIZE are not set); "
            f"start it as\n  torchrun --standalone --nproc-per-node 2 -m {command or 'rlx train learner=ddp'}"
        )
    return Ranks(place.rank, place.size, _watch(place, float(learner["timeout"])))


def device_of(device: str, ranks: Ranks) -> str:
    """Return the device of one rank: each has a GPU of its own.

    Args:
        device: as configured: `cuda` becomes the rank's own.
        ranks: this rank.

    Raises:
        ConfigError: one GPU is named, which all would share.
        DeviceError: there are fewer GPUs than ranks on this machine.
    """
    place = find_place(os.environ)
    if ranks.size == 1 or place is None or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise ConfigError(f"device: got {device!r}, but with learner=ddp each rank has a GPU of its own: device=cuda")
    count = torch.cuda.device_count()
    if count == 1 and "SLURM_PROCID" in os.environ and "LOCAL_WORLD_SIZE" not in os.environ:
        return "cuda:0"  # srun shows each rank its own only
    if count and place.local_rank >= count:
        raise DeviceError(
            f"device: rank {place.rank} is the number {place.local_rank} on this machine, which has {count} CUDA "
            "devices; start as many ranks as there are GPUs, or give device=cpu"
        )
    return f"cuda:{place.local_rank}" if count else device


def _watch(place: Place, timeout: float) -> Watch:
    """Connect to the others, and return what watches them."""
    deadline = time.monotonic() + timeout
    if place.local_size == place.size and os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the machine's own name resolves to
    try:
        if not place.serves:
            _wait_until_served(place, deadline)
        limit = timedelta(seconds=timeout)
        first = TCPStore(place.host, place.port, None, place.serves, limit, wait_for_workers=False)
        second = TCPStore(place.host, place.port, None, False, limit, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        who = "rank 0 of this run cannot be served" if place.serves else "rank 0 does not answer"
        raise RankError(
            f"learner=ddp: rank {place.rank} of {place.size}: {who} at {place.host}:{place.port} within {timeout:g} s "
            f"(learner.timeout): {reason_of(error).splitlines()[0]}"
        ) from None
    store, beats = (PrefixStore(f"rlx/{place.attempt}", one) for one in (first, second))
    store.set(f"place/{place.rank}", here())
    keys = [f"place/{rank}" for rank in range(place.size)]
    absent = list(range(place.size))
    while absent:
        absent = [rank for rank in absent if not store.check([keys[rank]])]
        if absent and time.monotonic() > deadline:
            who = " and ".join(f"rank {rank}" for rank in absent)
            error = RankError(
                f"learner=ddp: {who} of {place.size} did not join within {timeout:g} s (learner.timeout); "
                f"rank {place.rank} is {here()}"
            )
            if store.compare_set("failed", "", f"{place.rank}:1:{error}") != f"{place.rank}:1:{error}".encode():
                raise SystemExit(1) from None  # another one that waits has told
            raise error
        if absent:
            time.sleep(_LOOK_SECONDS)
    places = [store.get(key).decode() for key in keys]
    watch = Watch(
        store, beats, place.rank, places, timeout, own_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        # Waits are the watch's affair: the limit here only has to lie behind it.
        distributed.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=10 * timeout),
        )
    except RuntimeError as error:
        found = watch.failure(error)
        watch.close()
        raise found from None
    return watch


def _wait_until_served(place: Place, deadline: float) -> None:
    """Wait until somebody listens there; torch's own wait hears no signals, and writes stack traces meanwhile.

    Raises:
        OSError: nobody does in time.
    """
    while True:
        try:
            socket.create_connection((place.host, place.port), _CONNECT_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default)
    try:
        return int(str(text))
    except ValueError:
        raise _refused(f"{name}={text!r} in the environment, expected a number") from None


def _refused(what: str) -> ConfigError:
    """Return the error over an environment that contradicts itself: whichever rank finds that tells."""
    error = ConfigError(f"learner=ddp: {what}")
    error.of_one_rank = True
    return error

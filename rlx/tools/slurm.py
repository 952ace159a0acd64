"""SLURM's own commands: sbatch, squeue, sacct, scontrol, sinfo, and what they say when something is wrong."""

import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence

from rlx.errors import UserError, did_you_mean

_SECONDS = 60.0
"""SLURM's controller may be busy; but it answers within a minute, or not at all."""
_ASK_SECONDS = 5.0
_RETRIES = "temporarily unable to accept job"
"""What sbatch says when the queue is full, and then waits for minutes."""
_LENGTH = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class SubmitError(UserError):
    """SLURM is not here, or refused a job."""


def submit(script: str) -> str:
    """Hand a script to sbatch.

    Returns:
        SLURM's number of the job.

    Raises:
        SubmitError: there is no sbatch, or it refused; says why, and what may help.
    """
    try:
        process = subprocess.Popen(
            ["sbatch", "--parsable", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
    except OSError:
        raise SubmitError(
            "sbatch: there is no such program here; rlx submit runs on a machine of a SLURM cluster "
            "(--dry-run shows what it would submit)"
        ) from None
    with process:
        out, err = _listen(process)
    if process.returncode == 0:
        return out.strip().split(";")[0]
    raise SubmitError(explain_refusal(err, process.returncode))


def explain_refusal(text: str, status: int) -> str:
    """Return one line for what sbatch said when it refused a job."""
    lines = [line.split("error: ")[-1].strip() for line in text.splitlines() if "error: " in line]
    said = lines[-1] if lines else (text.strip().splitlines() or [f"exit status {status}"])[-1]
    everything = text.lower()
    if _RETRIES in everything:
        return "sbatch: the queue is full (SLURM's MaxJobCount); give the same command again when there is room"
    if "invalid partition" in everything:
        named = re.search(r"partition specified: (\S+)", text)
        known = partitions()
        hint = did_you_mean(named[1], known) if named else ""
        listing = f" Partitions: {', '.join(known)}." if known else ""
        return f"sbatch: there is no partition{f' {named[1]!r}' if named else ''}.{hint}{listing}"
    if "invalid account" in everything:
        return f"sbatch: {said}; --account names one of yours: sacctmgr show user $USER withassoc"
    if "accounting/qos policy" in everything or "maxsubmit" in everything:
        return (
            f"sbatch: {said}; you may not have more jobs in the queue: give the same command again when some have ended"
        )
    if "unable to contact" in everything:
        return "sbatch: SLURM's controller does not answer (scontrol ping tells more)"
    if "node configuration is not available" in everything:
        return f"sbatch: {said}; no node of the partition has that many cores, GPUs or that much memory (sinfo -Nl)"
    return f"sbatch: {said}"


def queue() -> dict[str, str] | None:
    """Return the state of each job that the user has in the queue, by its name (`12`, or `12_3` in an array).

    Returns:
        None where SLURM is not here, or does not answer.
    """
    out = _ask(["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T"])
    if out is None:
        return None
    found: dict[str, str] = {}
    for line in out.splitlines():
        job, task, state = line.strip().split("|")
        found[f"{job}_{task}" if task.isdigit() else job] = state
    return found


def states(jobs: Collection[str]) -> dict[str, str]:
    """Return SLURM's state of jobs by their names (`12`, `12_3`), of those that it knows.

    These are the jobs in the queue and, where the cluster keeps accounting, those that have left it: `OUT_OF_MEMORY`.
    """
    found = queue()
    if found is None:
        return {}
    gone = sorted({job.partition("_")[0] for job in jobs if job not in found})
    if gone:
        sacct = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
        for line in (_ask([*sacct, f"--jobs={','.join(gone)}"]) or "").splitlines():
            job, _, state = line.partition("|")
            found.setdefault(job, state.split(" ")[0])  # CANCELLED by 1000
    return found


def check_accounting() -> None:
    """Check that SLURM is here, and remembers how jobs ended once they have left the queue.

    Raises:
        SubmitError: one or the other is not so.
    """
    if shutil.which("sbatch") is None:
        raise SubmitError("sbatch: there is no such program here; submitit_slurm runs on a machine of a SLURM cluster")
    try:
        done = subprocess.run(
            ["sacct", "--noheader", "-j", "1"], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
        said = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["sacct failed"])[-1]
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    if said:
        raise SubmitError(
            f"submitit_slurm: this cluster keeps no accounting ({said}), so that the launcher would wait for ever "
            "for a job that died; rlx submit needs none"
        )


def partitions() -> list[str]:
    """Return the names of the cluster's partitions; none where SLURM does not answer."""
    return sorted(set((_ask(["sinfo", "--noheader", "--format=%R"]) or "").split()))


def requeue(job: str) -> str | None:
    """Put a running job back into the queue; SLURM then ends this run of it.

    Returns:
        Why not, in one line; None where it was.
    """
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"scontrol: {error}"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["scontrol requeue failed"])[-1]


def seconds_of(length: str) -> int | None:
    """Return the seconds of a time limit as SLURM writes it (`30`, `4:00:00`, `2-12`); None where it is none."""
    found = _LENGTH.fullmatch(length.strip())
    if found is None:
        return None
    days, *parts = (None if part is None else int(part) for part in found.groups())
    first, second, third = parts
    assert first is not None
    if days is not None:  # D-H, D-H:M, D-H:M:S
        return ((days * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:  # H:M:S
        return (first * 60 + (second or 0)) * 60 + third
    return first * 60 + (second or 0)  # M, M:S


def task_ranges(tasks: Sequence[int]) -> str:
    """Return numbers as SLURM writes them: `0-3,7`."""
    ranges: list[list[int]] = []
    for task in sorted(tasks):
        if ranges and task == ranges[-1][1] + 1:
            ranges[-1][1] = task
        else:
            ranges.append([task, task])
    return ",".join(str(first) if first == final else f"{first}-{final}" for first, final in ranges)


def _listen(process: "subprocess.Popen[bytes]") -> tuple[str, str]:
    """Return what sbatch writes, on both outputs; end it where it would wait."""
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    left, end = set(texts), time.monotonic() + _SECONDS
    while left:
        ready, _, _ = select.select(list(left), [], [], max(0.0, end - time.monotonic()))
        for descriptor in ready:
            piece = os.read(descriptor, 1 << 16)
            texts[descriptor] += piece
            if not piece:
                left.discard(descriptor)
        if not ready or _RETRIES in texts[process.stderr.fileno()].decode(errors="replace"):
            process.kill()
            if not ready:
                texts[process.stderr.fileno()] += f"\nerror: no answer within {_SECONDS:.0f} s".encode()
            break
    out, err = (texts[stream.fileno()].decode(errors="replace") for stream in (process.stdout, process.stderr))
    return out, err


def _ask(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None

"""The whole `rlx` command, mostly in a process of its own, and what it leaves behind."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlx.cli.start import run_train

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from rlx.cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
SMALL = ["batcher.envs_per_worker=2", "algo.num_steps=16", "total_steps=64"]
"""With two worker processes: 64 steps an iteration."""


def rlx(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, env=ENVIRONMENT)


def rlx_train(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return rlx(cwd, "train", *SMALL, *arguments)


def train_here(*arguments: str) -> int:
    """Run `rlx train` in this process with a local worker, where nothing is asked that only a program shows."""
    try:
        run_train([*SMALL, "batcher=local", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextmanager
def training(cwd: Path, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Give a `rlx train` that has finished its first iteration and would go on for hours; both outputs are one."""
    program = subprocess.Popen(
        [*COMMAND, "train", *SMALL, "total_steps=100_000_000", "algo.num_steps=64", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        ready, _, _ = select.select([program.stdout], [], [], 60)  # the first plain line follows the first iteration
        assert ready
        yield program
    finally:
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()


def own(name: str) -> list[str]:
    """Return what chooses an environment of `tests/run/short_and_long.py`."""
    return ["env=gym", f"env.id=tests.run.short_and_long:{name}-v0"]


def left_in(directory: Path, seconds: float = 5.0) -> list[str]:
    """Return the processes that still work in `directory` after so long; those that are just ending are waited for."""
    found: list[str] = []
    deadline = time.monotonic() + seconds
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Not resolved: of a directory that was removed only the link's text is left.
            if os.readlink(process / "cwd").removesuffix(" (deleted)") == str(directory):
                command = (process / "cmdline").read_text().replace("\0", " ")
                handle = os.pidfd_open(int(process.name))
                ended, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
                os.close(handle)
                found += [] if ended else [command]
    return found

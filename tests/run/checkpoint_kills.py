"""Saves checkpoints in processes that are killed (SIGKILL), and checks after each death what is found.

Run by `test_checkpoint.py` in a process of its own, which forks: torch is imported once. Writes one line a scenario.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import torch

from rlx.run.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)

TOUCHING = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")


def save(run: Path, step: int, value: int) -> None:
    state = {"weights": torch.full((50_000,), float(value)), "value": value}
    save_checkpoint(run, state, {"seed": 0}, {"env_steps": step})


def found(run: Path) -> tuple[int, int]:
    """Return step and value of what a resuming run would take up; fails unless it is whole."""
    for path in list_checkpoints(run):
        verify_checkpoint(path)
    damaged: list[str] = []
    state, _, meta = load_checkpoint(find_checkpoint(run, damaged.append))
    assert not damaged, damaged
    assert state["weights"].eq(state["value"]).all()
    return meta["env_steps"], state["value"]


def die_at(call: int, run: Path) -> None:
    """Make this process kill itself right before its `call`-th operation on the file system."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in TOUCHING and str(run) in str(arguments[:2]):
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def scenario(name: str, work, allowed: set[tuple[int, int]], done: tuple[int, int]) -> None:
    """Kill `work` before each of its operations in turn, until it lives to its end."""
    deaths = 0
    while True:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            run.mkdir()
            save(run, 1, 1)
            child = os.fork()
            if child == 0:
                die_at(deaths + 1, run)
                work(run)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            survived = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            assert survived or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), (
                name,
                deaths,
                status,
            )
            got = found(run)
            assert got == done if survived else got in allowed, (name, deaths, got)
            save(run, 9, 9)  # the run goes on, and clears away what was left
            assert found(run) == (9, 9)
            hidden = [entry for entry in os.listdir(run / "checkpoints") if entry.startswith(".")]
            assert not hidden, (name, deaths, hidden)
        if survived:
            sys.stdout.write(f"{name} {deaths}\n")
            return
        deaths += 1


def killed_from_outside() -> None:
    """Kill a process that saves without pause, after its first, second, ... save."""
    for saves in range(1, 9):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                step = 0
                while True:
                    step += 1
                    save(run, step // 2, step)  # every other save replaces
                    prune_checkpoints(run, 2)
                    os.write(writer, b".")
            os.close(writer)
            for _ in range(saves):
                assert os.read(reader, 1) == b"."
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            step, value = found(run)
            assert value >= saves
            assert step == value // 2
    sys.stdout.write("outside 8\n")


def prune(run: Path) -> None:
    save(run, 2, 2)
    save(run, 3, 3)
    prune_checkpoints(run, 1)
    assert len(list_checkpoints(run)) == 1


torch.set_num_threads(1)
scenario("new", lambda run: save(run, 2, 2), {(1, 1), (2, 2)}, (2, 2))
scenario("replaced", lambda run: save(run, 1, 2), {(1, 1), (1, 2)}, (1, 2))
scenario("pruned", prune, {(1, 1), (2, 2), (3, 3)}, (3, 3))
killed_from_outside()

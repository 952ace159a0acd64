"""Short runs for the tests of tools that work on them, each trained when it is first asked for."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.program import train_here

Trained = Callable[[str], Path]

MIXED = [
    "env=mixed",
    "env.members=[{id: CartPole-v1, max_episode_steps: 5}, {id: CartPole-v1, max_episode_steps: 7}]",
]
"""Two environments in one batch, told apart by how long an episode lasts."""


def trained_once(kinds: Mapping[str, Sequence[str]], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return what gives the run directory of a kind, whose overrides `kinds` has.

    What training prints is kept from the test that happens to ask first: which one does depends on who runs beside it.
    """
    made: dict[str, Path] = {}

    def run_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                status = train_here(*kinds[kind], f"run_dir={made[kind]}")
            assert status == 0, printed.getvalue()
        return made[kind]

    return run_of

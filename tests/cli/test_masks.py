"""Masks from the command line: a real task that tells one, and what is wrong in one message."""

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.program import train_here

HERE = "tests.cli.test_masks"


class Fenced(gymnasium.Env):
    """Shows a mask of any length, all zeros from its third step on where `closes`."""

    action_space = spaces.Discrete(2)

    def __init__(self, size: int = 2, closes: bool = False) -> None:
        mask = spaces.Box(0, 1, (size,), np.int8)
        self.observation_space = spaces.Dict(seen=spaces.Box(0, 1, (1,)), action_mask=mask)
        self._size, self._closes, self._steps = size, closes, 0

    def _seen(self) -> Any:
        return {
            "seen": np.zeros(1, np.float32),
            "action_mask": np.full(self._size, not (self._closes and self._steps >= 3), np.int8),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self._steps += 1
        return self._seen(), 0.0, False, self._steps == 9, {}


class Told(gymnasium.Env):
    """Tells a mask of the wrong length in the info."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return np.zeros(1, np.float32), {"action_mask": np.ones(5, np.int8)}


gymnasium.register("Fenced-v0", entry_point=Fenced)
gymnasium.register("ToldWrong-v0", entry_point=Told)


@pytest.mark.parametrize("agent", ["actor_critic", "gru", "options"])
def test_taxi_trains_with_the_mask_that_it_tells(tmp_path: Path, agent: str) -> None:
    taxi = max(name for name in gymnasium.registry if re.fullmatch(r"Taxi-v\d", name))
    run = tmp_path / "run"
    assert train_here("env=gym", f"env.id={taxi}", "env.action_mask=true", f"agent={agent}", f"run_dir={run}") == 0
    assert (run / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["env.id=CartPole-v1", "env.action_mask=true"], 2, "'CartPole-v1' does not tell 'action_mask' in the info"),
        (["env.id=Pendulum-v1", "env.action_mask=true"], 2, "Discrete or MultiDiscrete actions, .* (continuous)"),
        ([f"env.id={HERE}:Fenced-v0", "+env.kwargs.size=3"], 2, "'obs/action_mask' has shape (3,); expected one zero"),
        ([f"env.id={HERE}:Fenced-v0", "env.action_mask=true"], 2, "shows 'action_mask' in its observation already"),
        (["env.id=CartPole-v1", "env.action_mask=perhaps"], 2, "env.action_mask: expected true or false"),
        # What an environment does wrong while it runs is its fault, not that of what was asked.
        ([f"env.id={HERE}:Fenced-v0", "+env.kwargs.closes=true"], 1, "[0, 0] (expected zeros and ones, and an action"),
        ([f"env.id={HERE}:ToldWrong-v0", "env.action_mask=true"], 1, "has shape (5,); expected (2,)"),
    ],
)
def test_what_is_wrong_with_a_mask_is_told_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    assert train_here("env=gym", f"run_dir={tmp_path / 'run'}", *arguments) == status
    told = capsys.readouterr().err
    pattern = re.escape(message).replace(r"\.\*", ".*")
    assert re.search(f"Error: .*{pattern}", told), told
    assert status == 1 or "Traceback" not in told  # a fault comes with where it was found

"""What is drawn for each episode, asked for on the command line: it trains, is evaluated, and is told where wrong."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.program import rlx, rlx_train, train_here

HERE = "tests.cli.test_samplers"


class Bounded(gymnasium.Env[np.ndarray, int]):
    """Pays, at its one step, the goal that its reset was told; ends the process where it was told none."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        assert options is not None
        self._goal = float(options["goal"])
        return np.array([self._goal], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.array([self._goal], np.float32), self._goal, True, False, {}


gymnasium.register("Bounded-v0", entry_point=Bounded)


def sample_goal(row: int, generator: torch.Generator, *, low: int) -> dict[str, torch.Tensor]:
    return {"goal": torch.randint(low, low + 2, (), generator=generator)}


class Goals:
    def __init__(self, *, low: int) -> None:
        self._low = low

    def __call__(self, row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return sample_goal(row, generator, low=self._low)


@pytest.mark.parametrize(
    "described", ["{goal:{choice:[5,6]}}", f"{{_target_:{HERE}.sample_goal,low:5}}", f"{{_target_:{HERE}.Goals,low:5}}"]
)
def test_what_is_drawn_on_the_command_line_reaches_training_and_both_evaluations(
    tmp_path: Path, described: str
) -> None:
    done = rlx_train(
        *(tmp_path, "env=gym", f"env.id={HERE}:Bounded-v0", f"batcher.env_info={described}", "run_dir=run"),
        *("batcher=local", "evaluation.every=32", "evaluation.episodes=20"),
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    for name in ("episode/return", "eval/return"):
        values = [float(value) for value in columns[name] if value]
        assert values
        assert all(5 < value < 6 for value in values), name
    found = rlx(tmp_path, "eval", "run", "--episodes", "20", "--json", "--trust")
    assert found.returncode == 0, found.stderr
    assert set(json.loads(found.stdout)["returns"]) == {5.0, 6.0}


def test_the_recipe_whose_starts_are_drawn_trains(tmp_path: Path) -> None:
    assert train_here("experiment=ppo_cartpole_starts", f"run_dir={tmp_path / 'run'}") == 0
    assert "uniform" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batcher.env_info={goal:{unifrm:[0,1]}}"], "batcher.env_info.goal.unifrm: there is no such draw."),
        (["batcher.env_info=far"], "batcher.env_info: got 'far', expected {FIELD: {uniform: [0, 1]}, ...}"),
        ([f"batcher.env_info={{_target_:{HERE}.sample_gaol}}"], "Did you mean 'sample_goal'?"),
        ([f"batcher.env_info={{_target_:{HERE}.sample_goal,lo:1}}"], "Did you mean 'batcher.env_info.low'?"),
        ([f"batcher.env_info={{_target_:{HERE}.Bounded}}"], "Bounded cannot be called; expected (row, generator)"),
        (["env=CartPoleTorch", "batcher.env_info={goal:1}"], "'TorchCartPole': env_info was given, and it takes none"),
        (
            ["algo=dqn", "agent=q_network", "batcher.agent_info={epsilon:0.1}"],
            "batcher.agent_info: got one, and reset(agent_info=...) gives another from the start; expected null",
        ),
        (
            ["agent=population", "batcher.agent_info={policy:{deal:[0,1,5]}}", "batcher.envs_per_worker=3"],
            "agent_info['policy']: got 5, expected 0 to 1",
        ),
        (
            ["agent=population", "batcher.agent_info={policy:0.5}"],
            "agent_info['policy']: got torch.float32 of shape [B], expected an integer for each row",
        ),
        (
            ["batcher.agent_info={deterministic:3}"],
            "agent_info['deterministic']: got torch.int64 of shape [B], expected true or false for each row",
        ),
        (["batcher.env_info={_target_:os.system}"], "_target_: os.system takes (command), expected (row, generator)"),
    ],
)
def test_what_is_wrong_with_it_is_told_in_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(f"run_dir={tmp_path / 'run'}", *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("Error: ") == 1

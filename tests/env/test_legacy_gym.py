"""Old gym environments give the transitions of Gymnasium's, whichever form their calls have.

`nox -s legacy_gym` runs these tests with gym 0.26.2 and 0.25.2; elsewhere they are skipped, but for those without it.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.env import GymVecEnv, make, make_legacy_gym
from rlx.env.legacy_gym import LegacyGymEnv, convert_space, import_gym
from rlx.errors import ConfigError, UnsupportedSpaceError

HERE = importlib.util.find_spec("gym") is not None
needs_gym = pytest.mark.skipif(not HERE, reason="gym is not installed: nox -s legacy_gym")


def test_the_session_that_promises_gym_has_it() -> None:
    assert HERE or "RLX_NEEDS_GYM" not in os.environ


@pytest.mark.skipif(HERE, reason="gym is installed")
def test_without_gym_the_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'rlx\[gym\]'"):
        make_legacy_gym("CartPole-v1", 2)


def _steps(env: GymVecEnv, count: int) -> list[Any]:
    now = env.allocate()
    env.reset(now, seeds=list(range(env.num_envs)))
    found = [now.obs["obs"].tolist()]
    for step in range(count):
        action = torch.tensor([(step // 3 + row) % 2 for row in range(env.num_envs)])
        env.step({"action": action}, now)
        found.append([now.obs["obs"].tolist(), now.reward.tolist(), now.terminated.tolist(), now.truncated.tolist()])
        ended = torch.nonzero(now.terminated | now.truncated).flatten().tolist()
        if ended:
            env.reset(now, rows=ended)
            found.append(now.obs["obs"].tolist())
    return found


@needs_gym
@pytest.mark.parametrize("limit", [None, 7])
def test_transitions_are_those_of_gymnasiums_cartpole(limit: int | None) -> None:
    with (
        make_legacy_gym("CartPole-v1", 3, max_episode_steps=limit) as legacy,
        make("CartPole-v1", 3, max_episode_steps=limit) as env,
    ):
        assert legacy.specs.action == env.specs.action  # the bounds of what cannot be bounded differ
        assert legacy.specs.observation["obs"].shape == env.specs.observation["obs"].shape
        found = _steps(legacy, 120)
        assert found == _steps(env, 120)
    flags = [step[2:] for step in found if len(step) == 4]
    assert any(any(truncated) for _, truncated in flags) == (limit is not None)
    assert any(any(terminated) for terminated, _ in flags) == (limit is None)


@needs_gym
def test_it_draws_one_picture_of_each_step() -> None:
    with make_legacy_gym("CartPole-v1", 1, kwargs={"render_mode": "rgb_array"}) as env:
        out = env.allocate()
        env.reset(out, seeds=[0])
        for _ in range(2):
            env.step({"action": torch.tensor([1])}, out)
            picture = env.render(0)
            assert picture.dtype == np.uint8
            assert picture.shape == (400, 600, 3)


@needs_gym
def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"gym has no environment 'CartPol-v1'.*CartPole-v1"):
        make_legacy_gym("CartPol-v1", 1)


@needs_gym
def test_wrappers_and_scale_leave_the_raw_reward() -> None:
    with make_legacy_gym("CartPole-v1", 1, wrappers=[{"ClipReward": {"max_reward": 0.25}}], reward_scale=2.0) as env:
        out = env.allocate()
        env.reset(out, seeds=[0])
        env.step({"action": torch.tensor([0])}, out)
        assert (out.reward.item(), out.raw_reward_np.tolist()) == (0.5, [1.0])


@needs_gym
def test_every_space_has_its_counterpart() -> None:
    old = import_gym().spaces
    pairs = [
        (old.Box(-1.0, np.inf, (2, 3), np.float32), spaces.Box(-1.0, np.inf, (2, 3), np.float32)),
        (old.Box(0, 255, (4,), np.uint8), spaces.Box(0, 255, (4,), np.uint8)),
        (old.Discrete(5, start=2), spaces.Discrete(5, start=2)),
        (old.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3])),
        (old.MultiBinary(4), spaces.MultiBinary(4)),
        (
            old.Dict(a=old.Discrete(2), b=old.Tuple([old.Discrete(3), old.MultiBinary(1)])),
            spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(1)])),
        ),
    ]
    for given, expected in pairs:
        assert convert_space(given) == expected


@needs_gym
def test_a_policy_trains_on_it_from_the_shell(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-W", "error", "-m", "rlx", "train", "algo=ppo", "env=legacy_gym", "env.id=CartPole-v1"),
        *("algo.num_steps=32", "batcher.envs_per_worker=2", "total_steps=256", "run_dir=run"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "unmaintained" not in done.stderr


class Old:
    """An environment in the form before 0.22: `seed`, `reset` without arguments, four values a step."""

    observation_space = SimpleNamespace(n=10, start=0)
    action_space = SimpleNamespace(n=2)

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def reset(self) -> int:
        return 1

    def step(self, action: int) -> tuple[int, float, bool, dict]:
        return 2, 1.0, action > 0, {"TimeLimit.truncated": action == 2}


def test_the_oldest_form_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlx.env.legacy_gym.convert_space", lambda space: spaces.Discrete(space.n))
    old = Old()
    env = LegacyGymEnv(old, SimpleNamespace(__version__="0.21.0"))  # pyright: ignore
    assert env.reset(seed=5) == (1, {})
    assert old.seeds == [5]
    assert [env.step(action)[2:4] for action in range(3)] == [(False, False), (True, False), (False, True)]


def test_other_spaces_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedSpaceError, match="Graph"):
        convert_space(gymnasium.spaces.Graph(spaces.Box(0, 1, (2,)), None))

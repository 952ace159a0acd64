"""EnvPool: the transitions of the raw library, with its rows' own seeds, true ends and no reset steps.

EnvPool's wheels and their assets take 740 MB: `nox -s envpool` installs them; elsewhere these tests are skipped, but
for those without it.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import Autoreset, make_envpool
from rlx.errors import ConfigError, EnvironmentFault
from rlx.seeding import env_seed

HERE = importlib.util.find_spec("envpool") is not None
needs_envpool = pytest.mark.skipif(not HERE, reason="envpool is not installed: nox -s envpool")
make = partial(make_envpool, num_threads=1)


def make_small_agent(specs):
    torch.manual_seed(0)
    return ActorCritic(specs, hidden_sizes=[4], activation="tanh", log_std_init=0.0)


def test_the_session_that_promises_envpool_has_it() -> None:
    assert HERE or "RLX_NEEDS_ENVPOOL" not in os.environ


def test_without_envpool_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ConfigError, match=r"needs the package 'envpool'.*pip install 'rlx\[envpool\]'"):
        make("CartPole-v1", 2)


@needs_envpool
@pytest.mark.parametrize("limit", [None, 7])
def test_pieces_hold_the_raw_librarys_transitions_with_true_final_observations(limit: int | None) -> None:
    """Replays the stored actions on a bare pool of one row, which resets in a call of its own."""
    import envpool

    make_env = partial(make, "CartPole-v1", max_episode_steps=limit)
    with Batcher(
        make_small_agent, make_env, num_workers=1, envs_per_worker=3, num_steps=60, seed=3, workers="local"
    ) as batcher:
        batcher.publish(make_small_agent(batcher.specs))
        pieces = [batcher.collect().clone() for _ in range(2)]
    for row in range(3):
        keywords = {} if limit is None else {"max_episode_steps": limit}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = envpool.make(
                "CartPole-v1", env_type="gymnasium", num_envs=1, seed=env_seed(3, row), num_threads=1, **keywords
            )
            seen, _ = raw.reset()
        ends = {"terminated": 0, "truncated": 0}
        for piece in pieces:
            for t in range(int(piece.steps.lengths[row])):
                step = {key: piece.steps[key][row, t].numpy() for key in ("env/obs", "agent/action", "next/obs")}
                assert np.array_equal(step["env/obs"], seen[0])
                seen, reward, terminated, truncated, _ = raw.step(np.array([int(step["agent/action"])], np.int32))
                assert np.array_equal(step["next/obs"], seen[0])
                assert float(piece.steps["next/reward"][row, t]) == reward[0] == 1.0
                assert bool(piece.steps["next/terminated"][row, t]) == terminated[0]
                assert bool(piece.steps["next/truncated"][row, t]) == truncated[0]
                ends["terminated"] += int(terminated[0])
                ends["truncated"] += int(truncated[0])
                if terminated[0] or truncated[0]:
                    seen, *_ = raw.step(np.array([0], np.int32))  # the reset
        assert ends["terminated" if limit is None else "truncated"] >= 2
        assert ends["truncated" if limit is None else "terminated"] == 0


@needs_envpool
@pytest.mark.parametrize(
    "id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v4", "FrozenLake-v1", "Pong-v5", "CheetahRun-v1"]
)
def test_a_step_is_what_the_librarys_own_step_is(id: str) -> None:
    """The pool is asked below the layer that names its answers, but where an observation is several arrays."""
    import envpool

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = envpool.make(id, env_type="gymnasium", num_envs=2, seed=[3, 4], num_threads=1)
        raw.reset()
    with make(id, 2) as env:
        assert (env.env._order is None) == (id == "CheetahRun-v1")
        env.env.reset(seed=[3, 4])
        env.env.single_action_space.seed(0)
        for _ in range(120):
            actions = np.stack([env.env.single_action_space.sample() for _ in range(2)])
            mine, theirs = env.env.step(actions), raw.step(actions)
            assert mine[4] == {}
            for one, other in zip(mine[:4], theirs[:4], strict=True):
                parts = [(one[key], other[key]) for key in one] if isinstance(one, dict) else [(one, other)]
                assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in parts)
    raw.close()


@needs_envpool
def test_each_row_takes_its_own_seed_whenever_it_is_given() -> None:
    with make("CartPole-v1", 2) as env:
        out = env.allocate()

        def first(seeds: list[int | None] | None) -> list[list[float]]:
            env.reset(out, seeds=seeds)
            return out.obs["obs"].tolist()

        one, other = first([5, 2**40 + 6]), first([7, 5])
        assert one[0] == other[1]
        assert one[0] != other[0]
        unseeded = first(None)
        assert unseeded != other
        assert first([5, 2**40 + 6]) == one
        with pytest.raises(ConfigError, match="got seeds for 1 of 2 rows"):
            env.reset(out, seeds=[5, None])


@needs_envpool
def test_two_unseeded_pools_differ() -> None:
    found = []
    for _ in range(2):
        with make("CartPole-v1", 1) as env:
            out = env.allocate()
            env.reset(out)
            found.append(out.obs["obs"].tolist())
    assert found[0] != found[1]


@needs_envpool
def test_rewards_are_clipped_and_scaled_for_the_agent_alone() -> None:
    with make("Pendulum-v1", 2, clip_reward=True, reward_scale=0.5) as env:
        out = env.allocate()
        env.reset(out, seeds=[0, 1])
        paid = []
        for _ in range(60):
            env.step({"action": torch.zeros(2, 1)}, out)
            paid += zip(out.reward.tolist(), out.raw_reward_np.tolist(), strict=True)
    assert all(reward == max(-1.0, raw) * 0.5 for reward, raw in paid)
    assert min(raw for _, raw in paid) < -1


@needs_envpool
def test_atari_declares_its_stacked_frames() -> None:
    with make("Pong-v5", 1) as env:
        spec = env.specs.observation["obs"]
        assert (spec.shape, spec.dtype, spec.frame_stack_axis) == ((4, 84, 84), torch.uint8, 0)
        assert env.row_seeds
        assert env.autoreset is Autoreset.NEXT_STEP
        out = env.allocate()
        env.reset(out, seeds=[0])
        before = out.obs["obs"].clone()
        for _ in range(5):
            env.step({"action": torch.tensor([2])}, out)
            assert torch.equal(out.obs["obs"][:, :-1], before[:, 1:])
            before = out.obs["obs"].clone()


@needs_envpool
def test_bounds_that_stand_for_none_are_none() -> None:
    """EnvPool gives DeepMind Control's observations the least positive number as their lower bound."""
    with make("CheetahRun-v1", 2) as env:
        assert all(spec.low == () and spec.high == () for spec in env.specs.observation.values())
        out = env.allocate()
        env.reset(out, seeds=[0, 1])
        env.step({"action": torch.zeros(2, 6)}, out)
        assert set(out.obs) == {"obs/position", "obs/velocity"}
        assert all(tensor.isfinite().all() for tensor in out.obs.values())
        assert out.obs["obs/velocity"].min() < 0
    with make("Pendulum-v1", 1) as env:
        assert env.specs.observation["obs"].low == (-1.0, -1.0, -8.0)


@needs_envpool
@pytest.mark.parametrize(
    ("id", "changes", "said"),
    [
        ("CartPol-v1", {}, r"env.id: EnvPool has no environment 'CartPol-v1'. Did you mean 'CartPole-v1'\?"),
        ("Pong-v5", {"kwargs": {"reward_clip": True}}, "env.clip_reward"),
        ("Pong-v5", {"kwargs": {"num_threads": 2}}, "env.num_threads"),
        ("Pong-v5", {"kwargs": {"frameskip": 2}}, r"env.kwargs.frameskip: there is no such key. Did you mean 'frame_s"),
        ("Pong-v5", {"kwargs": {"stack_num": -1}}, "env.kwargs.stack_num: got -1; expected an integer >= 1"),
        ("Pong-v5", {"kwargs": {"noop_max": 0}}, "env.kwargs.noop_max: got 0; expected an integer >= 1"),
        ("TicTacToe-v1", {}, "env.id: 'TicTacToe-v1' has 2 players, .* expected one with a single player"),
    ],
)
def test_wrong_keys_are_named_with_what_is_right(id: str, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(id, 1, **changes)


@needs_envpool
def test_what_envpool_refuses_names_the_environment() -> None:
    with pytest.raises(EnvironmentFault, match=r"'Pong-v5'.*its constructor raised"):
        make("Pong-v5", 1, kwargs={"stack_num": "four"})


@needs_envpool
def test_a_policy_trains_on_it_from_the_shell(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-W", "error", "-m", "rlx", "train", "algo=ppo", "env=envpool", "env.id=CartPole-v1"),
        *("algo.num_steps=32", "batcher.envs_per_worker=2", "total_steps=200", "run_dir=run"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()

"""Atari through ALE's vector environment: the transitions of the raw library, with true ends and no reset steps."""

import sys
from functools import partial

import numpy as np
import pytest
import torch

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import Autoreset, make_atari
from rlx.env.atari import find_game
from rlx.errors import AgentError, ConfigError
from rlx.seeding import env_seed

vector_env = pytest.importorskip("ale_py.vector_env")
KEYS = {
    "game": "Pong",
    "autoreset": "next_step",
    "num_threads": 1,
    "frameskip": 4,
    "stack_num": 4,
    "noop_max": 30,
    "repeat_action_probability": 0.0,
    "clip_reward": True,
    "max_num_frames_per_episode": 108_000,
    "kwargs": {},
}
SHORT = KEYS | {"max_num_frames_per_episode": 60}


def make_small_agent(specs):
    torch.manual_seed(0)
    return ActorCritic(specs, hidden_sizes=[4], activation="tanh", log_std_init=0.0)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_pieces_hold_the_raw_librarys_transitions_with_true_final_observations(autoreset: str) -> None:
    """Replays the stored actions on the bare library, which resets in a call of its own."""
    make_env = partial(make_atari, **(SHORT | {"autoreset": autoreset}))
    with Batcher(
        make_small_agent, make_env, num_workers=1, envs_per_worker=2, num_steps=24, seed=3, workers="local"
    ) as batcher:
        batcher.publish(make_small_agent(batcher.specs))
        pieces = [batcher.collect().clone() for _ in range(2)]
        episodes = list(batcher.episodes)
    assert len(episodes) >= 4
    for row in range(2):
        raw = vector_env.AtariVectorEnv(
            "pong", 1, reward_clipping=False, max_num_frames_per_episode=60, autoreset_mode="NextStep", num_threads=1
        )
        seen, _ = raw.reset(seed=np.array([env_seed(3, row)]))
        ends = 0
        for piece in pieces:
            for t in range(int(piece.steps.lengths[row])):
                step = {key: piece.steps[key][row, t].numpy() for key in ("env/obs", "agent/action", "next/obs")}
                assert np.array_equal(step["env/obs"], seen[0])
                seen, reward, terminated, truncated, _ = raw.step(np.array([int(step["agent/action"])]))
                assert np.array_equal(step["next/obs"], seen[0])
                assert float(piece.steps["next/reward"][row, t]) == np.clip(reward[0], -1, 1)
                assert bool(piece.steps["next/terminated"][row, t]) == terminated[0]
                assert bool(piece.steps["next/truncated"][row, t]) == truncated[0]
                if terminated[0] or truncated[0]:
                    ends += 1
                    seen, *_ = raw.step(np.array([0]))  # the reset
        assert ends >= 2
        raw.close()


def test_an_action_that_there_is_not_is_refused_where_ale_would_wait_for_ever() -> None:
    with make_atari(num_envs=2, **KEYS) as env:
        out = env.allocate()
        env.reset(out, seeds=[1, 2])
        for number in (6, -7):
            with pytest.raises(AgentError, match=rf"'action' of row 1 is {number}; expected 0 to 5"):
                env.step({"action": torch.tensor([0, number])}, out)
        env.step({"action": torch.tensor([0, 5])}, out)


def test_specs_declare_the_stacked_frames_and_the_row_seeds() -> None:
    with make_atari(2, **KEYS) as env:
        spec = env.specs.observation["obs"]
        assert (spec.shape, spec.dtype, spec.frame_stack_axis) == ((4, 84, 84), torch.uint8, 0)
        assert env.specs.action["action"].nvec == (6,)
        assert env.row_seeds
        assert env.autoreset is Autoreset.NEXT_STEP


def test_returns_are_counted_before_rewards_are_clipped() -> None:
    """A bare round of Space Invaders pays 5 to 30 points a hit."""
    keys = KEYS | {"game": "space_invaders", "max_num_frames_per_episode": 2_000}
    with Batcher(
        make_small_agent, partial(make_atari, **keys), num_workers=1, envs_per_worker=2, num_steps=600, seed=1,
        workers="local",
    ) as batcher:  # fmt: skip
        batcher.publish(make_small_agent(batcher.specs))
        piece = batcher.collect()
        assert set(piece.steps["next/reward"].unique().tolist()) == {0.0, 1.0}
        assert any(total >= 5 and total % 5 == 0 for _, total, _ in batcher.episodes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"game": "Pnog"}, r"env.game: there is no Atari game 'Pnog'. Did you mean 'Pong'\?"),
        ({"game": "ALE/Breakout-v5"}, r"Did you mean 'Breakout'\?"),
        ({"kwargs": {"reward_clipping": True}}, "env.clip_reward"),
        ({"kwargs": {"frameskip": 2}}, "env.frameskip"),
        ({"kwargs": {"greyscale": True}}, r"env.kwargs.greyscale: there is no such key. Did you mean 'grayscale'"),
    ],
)
def test_wrong_keys_are_named_with_the_nearest_right_one(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_atari(1, **(KEYS | changes))


def test_without_ale_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ale_py.vector_env")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError, match=r"need the package 'ale_py'.*pip install 'rlx\[atari\]'"):
        make_atari(1, **KEYS)


def test_games_have_both_ways_of_writing() -> None:
    assert find_game("SpaceInvaders") == find_game("space_invaders") == "space_invaders"

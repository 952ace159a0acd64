"""Different environments in one batch behave as each does alone."""

import gymnasium
import numpy as np
import pytest
import torch

from rlx.env import MixedVecEnv, make, make_mixed
from rlx.errors import ConfigError, SpecError
from tests.batcher.ledger import ID

MEMBERS = [
    {"id": "CartPole-v1"},
    {"id": "CartPole-v1", "max_episode_steps": 5},
    {"id": "CartPole-v1", "reward_scale": 2.0},
]


def test_each_row_is_what_its_own_environment_gives_alone() -> None:
    torch.manual_seed(0)
    with make_mixed(5, members=MEMBERS) as env:
        assert [member.num_envs for member in env.members] == [2, 2, 1]
        alone = [gymnasium.make("CartPole-v1", max_episode_steps=5 if row in (2, 3) else None) for row in range(5)]
        out = env.allocate()
        env.reset(out, seeds=list(range(10, 15)))
        expected = [plain.reset(seed=10 + row)[0] for row, plain in enumerate(alone)]
        np.testing.assert_array_equal(out.obs["obs"].numpy(), expected)
        ends = 0
        for _ in range(60):
            action = torch.randint(0, 2, (5,))
            env.step({"action": action}, out)
            answers = [plain.step(int(a)) for plain, a in zip(alone, action, strict=True)]
            np.testing.assert_array_equal(out.obs["obs"].numpy(), [answer[0] for answer in answers])
            assert out.terminated.tolist() == [answer[2] for answer in answers]
            assert out.truncated.tolist() == [answer[3] for answer in answers]
            assert out.reward.tolist() == [answer[1] * (2.0 if row == 4 else 1.0) for row, answer in enumerate(answers)]
            assert out.raw_reward_np is not None
            assert out.raw_reward_np.tolist() == [answer[1] for answer in answers]
            over = [row for row, answer in enumerate(answers) if answer[2] or answer[3]]
            if over:
                ends += len(over)
                env.reset(out, rows=over)
                np.testing.assert_array_equal(out.obs["obs"][over].numpy(), [alone[row].reset()[0] for row in over])
        assert ends > 20


def test_some_rows_can_be_stepped_and_seeded_across_members() -> None:
    with make_mixed(4, members=MEMBERS[:2]) as env:
        out = env.allocate()
        env.reset(out, seeds=[1, 2, 3, 4])
        before = out.obs["obs"].clone()
        env.step({"action": torch.zeros(4, dtype=torch.int64)}, out, rows=[0, 3])
        moved = (out.obs["obs"] != before).any(1).tolist()
        assert moved == [True, False, False, True]
        env.reset(out, rows=[3, 0], seeds=[2, 3])
        torch.testing.assert_close(out.obs["obs"][[3, 0]], before[[1, 2]])


def test_members_that_differ_in_their_specs_are_refused_with_both() -> None:
    with pytest.raises(SpecError, match=r"must agree in their specs:\n  CartPole-v1: .*\n  Acrobot-v1: "):
        make_mixed(2, members=[{"id": "CartPole-v1"}, {"id": "Acrobot-v1"}])


def test_members_that_reset_differently_are_refused() -> None:
    members = [make("CartPole-v1", 1), make("CartPole-v1", 1, vectorization="native")]
    with pytest.raises(ConfigError, match=r"autoreset=none .* next_step .*; they must agree"):
        MixedVecEnv(members)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "env.members: got none"),
        ([{"id": ID}] * 3, "3 environments for 2 rows"),
        ([{"id": ID}, {"ide": ID}], r"env\.members\[1\]\.ide: there is no such key.* Did you mean"),
        ([{"id": ID, "reward_scale": "x"}], r"env\.members\[0\]\.reward_scale"),
    ],
)
def test_a_wrong_list_of_members_gets_one_line(members: list, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_mixed(2, members=members)

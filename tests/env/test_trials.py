"""Trials: several episodes of one task in one."""

import numpy as np
import pytest
import torch

from rlx.data import DictTensor
from rlx.env import Trials, make
from rlx.errors import ConfigError, EnvironmentFault
from tests.batcher.tasks import Bandit, Told


def test_a_trial_is_so_many_episodes_of_one_task() -> None:
    env = Trials(Told(), num_episodes=3)
    seen, _ = env.reset(seed=1, options={"goal": np.array([5.0, 6.0]), "level": 1})
    begins, over = [int(seen["begins"][0])], []
    for _ in range(6):
        seen, reward, terminated, truncated, _ = env.step(0)
        assert seen["obs"].tolist() == [5.0, 6.0, 1.0]
        assert (reward, truncated) == (1.0, False)
        begins.append(int(seen["begins"][0]))
        over.append(terminated)
    assert begins == [1, 0, 1, 0, 1, 0, 0]
    assert over == [False] * 5 + [True]


def test_it_is_a_wrapper_by_name_and_tasks_reach_it() -> None:
    with make("tests.batcher.tasks:Bandit-v0", 2, wrappers=[{"rlx.env.Trials": {"num_episodes": 4}}]) as env:
        out = env.allocate()
        env.reset(out, seeds=[0, 1], env_info=DictTensor({"arm": torch.tensor([0, 1])}))
        for step in range(4):
            env.step({"action": torch.tensor([0, 0])}, out)
            assert out.reward.tolist() == [1.0, 0.0]
            assert out.terminated.tolist() == [step == 3] * 2
            assert out.obs["obs/begins"].flatten().tolist() == [step < 3] * 2


def test_episodes_of_a_trial_may_share_the_seed_from_which_their_task_follows() -> None:
    arms: list[int] = []
    env = Trials(Bandit(), num_episodes=3, same_seed=True)
    for trial in range(12):
        env.reset(seed=7 if trial in (0, 6) else None)
        arms.append(env.unwrapped._arm)
        for _ in range(2):
            env.step(0)
            assert env.unwrapped._arm == arms[-1]
    assert arms[:6] == arms[6:]
    assert set(arms) == {0, 1}


@pytest.mark.parametrize("number", [0, -1])
def test_a_trial_has_an_episode_at_least(number: int) -> None:
    with pytest.raises(ConfigError, match="num_episodes"):
        Trials(Bandit(), number)
    with pytest.raises((ConfigError, EnvironmentFault), match="num_episodes"):
        make("tests.batcher.tasks:Bandit-v0", 1, wrappers=[{"rlx.env.Trials": {"num_episodes": number}}])

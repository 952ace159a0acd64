"""The errand: cells, slips, the parcel, and what coming home pays."""

import pytest
import torch

from rlx.data import DictTensor
from rlx.env import Errand
from rlx.errors import ConfigError


def test_the_way_there_and_back_pays_one_and_coming_home_without_a_hundredth() -> None:
    env = Errand(2, length=4, slip=0.0, empty_handed=0.01, max_episode_steps=5)
    out = env.allocate()
    env.reset(out, seeds=[0, 1])
    assert out.obs["obs/achieved_goal"].tolist() == [1, 1]
    walks = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]])  # the first one stands at the wall for a step
    cells, parcels, rewards = [], [], []
    for t in range(6):
        if t == 1:
            env.reset(out, rows=[1])
        env.step({"action": walks[:, t]}, out)
        cells.append(out.obs["obs/achieved_goal"].tolist())
        parcels.append(out.obs["obs/observation"].flatten().tolist())
        rewards.append(out.reward.tolist())
        assert torch.equal(out.terminated, out.obs["obs/achieved_goal"] == 0)
        assert out.truncated.tolist() == [t >= 4, t >= 5]
    assert cells == [[2, 0], [3, 2], [3, 3], [2, 3], [1, 3], [0, 3]]
    assert parcels == [[0, 0], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1]]
    assert [row[1] for row in rewards] == pytest.approx([0.01, 0, 0, 0, 0, 0])
    assert [row[0] for row in rewards] == [0, 0, 0, 0, 0, 1]
    env.reset(out)
    assert out.obs["obs/observation"].flatten().tolist() == [0, 0]


def test_steps_away_slip_as_often_as_they_should_and_steps_home_never() -> None:
    env = Errand(4000, length=5, slip=0.3, empty_handed=0.01, max_episode_steps=5)
    out = env.allocate()
    env.reset(out, seeds=list(range(4000)))
    env.step({"action": (torch.arange(4000) < 3000).long()}, out)
    slipped = out.obs["obs/achieved_goal"] == 0
    assert slipped[:3000].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert slipped[3000:].all()


def test_it_takes_no_env_info() -> None:
    env = Errand(1, length=4, slip=0.0, empty_handed=0.01, max_episode_steps=5)
    with pytest.raises(ConfigError, match="'Errand': env_info was given, and it takes none"):
        env.reset(env.allocate(), env_info=DictTensor({"goal": torch.zeros(1)}))

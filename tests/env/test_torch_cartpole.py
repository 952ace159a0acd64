"""The batched CartPole is Gymnasium's CartPole: step by step, over whole episodes, in every autoreset mode."""

import gymnasium
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rlx.data import DictTensor
from rlx.env import Autoreset, TorchCartPole, make
from rlx.env.random_rows import RandomRows
from rlx.errors import ConfigError, DeviceError
from tests.device.simulated import ACCELERATORS

MODES = ["next_step", "same_step", "none"]
DEVICES = ["cpu", *ACCELERATORS]


def _cartpole(num_envs: int, autoreset: str = "next_step", max_episode_steps: int = 500, device: str = "cpu"):
    return TorchCartPole(num_envs, autoreset=autoreset, max_episode_steps=max_episode_steps, device=device)


def _balance(obs: torch.Tensor, wild: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return actions that keep a pole up for long; rows that are wild act at random, and fall."""
    steady = (obs[:, 2] + 0.5 * obs[:, 3] + 0.05 * obs[:, 1] + 0.02 * obs[:, 0] > 0).long()
    drawn = torch.randint(2, (len(obs),), generator=generator)
    return torch.where(wild, drawn, steady)


class _Singles:
    """Gymnasium's environments, one a row, each begun where the batched one begins."""

    def __init__(self, num_envs: int, max_episode_steps: int) -> None:
        self.envs = [gymnasium.make("CartPole-v1", max_episode_steps=max_episode_steps) for _ in range(num_envs)]

    def begin(self, row: int, state: torch.Tensor) -> None:
        self.envs[row].reset()
        self.envs[row].unwrapped.state = state.double().cpu().numpy().copy()

    def step(self, row: int, action: int):
        return self.envs[row].step(action)[:4]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autoreset", MODES)
def test_every_step_of_whole_episodes_is_gymnasiums(autoreset: str, device: str) -> None:
    num_envs, limit = 8, 300
    env = _cartpole(num_envs, autoreset, limit, device)
    singles = _Singles(num_envs, limit)
    generator = torch.Generator().manual_seed(0)
    wild = torch.arange(num_envs) % 2 == 0
    now, out = env.allocate(), env.allocate()
    env.reset(now, seeds=list(range(num_envs)))
    for row in range(num_envs):
        singles.begin(row, env._state[:, row])
    resetting = np.zeros(num_envs, bool)
    terminations = truncations = 0
    for _ in range(700):
        action = _balance(now.obs["obs"].cpu(), wild, generator)
        env.step({"action": action.to(device)}, out)
        terminated, truncated = out.terminated.cpu().numpy(), out.truncated.cpu().numpy()
        for row in range(num_envs):
            if resetting[row]:
                assert not terminated[row]
                assert not truncated[row]
                assert out.reward[row] == 0.0
                singles.begin(row, env._state[:, row])
                continue
            obs, reward, *flags = singles.step(row, int(action[row]))
            ended = any(flags)
            answered = out.final_obs if ended and autoreset == "same_step" else out.obs
            # Sines of torch and of NumPy differ in the last of 53 bits, and a falling pole magnifies that a little.
            assert_allclose(answered["obs"][row].cpu(), obs, rtol=1e-6, atol=1e-7)
            assert [terminated[row], truncated[row]] == flags
            assert out.reward[row] == reward
            if ended and autoreset == "same_step":
                singles.begin(row, env._state[:, row])
        ended = terminated | truncated
        terminations, truncations = terminations + terminated.sum(), truncations + truncated.sum()
        resetting = ended & ~resetting if autoreset == "next_step" else np.zeros(num_envs, bool)
        if autoreset == "none" and ended.any():
            rows = np.flatnonzero(ended).tolist()
            env.reset(out, rows=rows)
            for row in rows:
                singles.begin(row, env._state[:, row])
        now, out = out, now
    assert terminations > 50
    assert truncations >= 4, "no episode was long enough to say much"


def test_its_specs_are_those_of_gymnasiums() -> None:
    assert _cartpole(2).specs == make("CartPole-v1", 2).specs


@pytest.mark.parametrize("autoreset", MODES)
def test_first_observations_are_small_and_no_two_alike(autoreset: str) -> None:
    env = _cartpole(1000, autoreset)
    out = env.allocate()
    env.reset(out, seeds=list(range(1000)))
    obs = out.obs["obs"]
    assert obs.abs().max() <= 0.05
    assert len(obs.unique(dim=0)) == 1000
    assert_allclose(obs.mean(0), np.zeros(4), atol=0.004)
    assert_allclose(obs.std(0), np.full(4, 0.1 / 12**0.5), rtol=0.1)


def _firsts(env: TorchCartPole, seeds: list[int], calls: int) -> torch.Tensor:
    out = env.allocate()
    env.reset(out, seeds=seeds)
    shown = [out.obs["obs"].clone()]
    for _ in range(calls):
        env.step({"action": torch.ones(env.num_envs, dtype=torch.int64)}, out)
        shown.append(out.obs["obs"].clone())
    return torch.stack(shown)


def test_a_row_depends_on_its_seed_alone() -> None:
    together = _firsts(_cartpole(3), [7, 8, 9], 60)
    alone = _firsts(_cartpole(1), [8], 60)
    assert together[:, 1].equal(alone[:, 0])
    assert not together[:, 0].equal(together[:, 1])
    assert _firsts(_cartpole(3), [7, 8, 9], 60).equal(together)


def test_a_reset_of_some_rows_leaves_the_others_alone() -> None:
    env = _cartpole(3, "none")
    out = env.allocate()
    env.reset(out, seeds=[1, 2, 3])
    env.step({"action": torch.ones(3, dtype=torch.int64)}, out)
    before = out.obs["obs"].clone()
    env.reset(out, rows=[2, 0], seeds=[3, None])
    assert out.obs["obs"][1].equal(before[1])
    assert not out.obs["obs"][0].equal(before[0])
    fresh = _cartpole(1, "none")
    first = fresh.allocate()
    fresh.reset(first, seeds=[3])
    assert out.obs["obs"][2].equal(first.obs["obs"][0])


def test_what_it_cannot_do_is_refused_by_name() -> None:
    env = _cartpole(2)
    out = env.allocate()
    assert env.autoreset is Autoreset.NEXT_STEP
    assert not env.row_reset
    with pytest.raises(ConfigError, match=r"'TorchCartPole' resets its rows itself \(NEXT_STEP\); got reset\(rows=\[1"):
        env.reset(out, rows=[1])
    with pytest.raises(ConfigError, match=r"steps all its rows together; got step\(rows=\[1\]\)"):
        env.step({"action": torch.zeros(2, dtype=torch.int64)}, out, rows=[1])
    with pytest.raises(ConfigError, match="env_info was given"):
        env.reset(out, env_info=DictTensor({"level": torch.zeros(2)}))
    with pytest.raises(ConfigError, match=r"env.autoreset: got 'samestep'; .* Did you mean 'same_step'\?"):
        _cartpole(2, "samestep")
    with pytest.raises(DeviceError, match=r"env\.device: got 'cuda:99', which is not here"):
        _cartpole(2, device="cuda:99")


def test_streams_are_splitmix64s() -> None:
    """Against Python's own integers, which need no tricks with signs."""

    def mixed(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    seeds = [0, 1, 2**31, 2**62 - 1]
    rows = RandomRows(4)
    rows.seed(range(4), seeds)
    drawing = torch.tensor([True, True, False, True])
    first, second = rows.uniform(drawing, 2), rows.uniform(drawing, 2)
    for row, seed in enumerate(seeds):
        expected = [(mixed((mixed(seed) + k * 0x9E3779B97F4A7C15) % 2**64) >> 11) * 2.0**-53 for k in range(1, 5)]
        assert first[:, row].tolist() == expected[:2]
        assert second[:, row].tolist() == (expected[2:] if drawing[row] else expected[:2])


def test_unseeded_environments_follow_torchs_seed() -> None:
    torch.manual_seed(5)
    first = RandomRows(2).uniform(torch.ones(2, dtype=torch.bool), 3)
    torch.manual_seed(6)
    assert not RandomRows(2).uniform(torch.ones(2, dtype=torch.bool), 3).equal(first)
    torch.manual_seed(5)
    assert RandomRows(2).uniform(torch.ones(2, dtype=torch.bool), 3).equal(first)

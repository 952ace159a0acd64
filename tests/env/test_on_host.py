"""Environments on another device behind memory of the host: the same answers as on the host itself."""

import pytest
import torch

from rlx.data import DictTensor
from rlx.env import BitFlip, TorchCartPole
from rlx.env.on_host import OnHost, on_host
from tests.device.simulated import ACCELERATORS


@pytest.mark.parametrize("place", ACCELERATORS)
@pytest.mark.parametrize("mode", ["next_step", "same_step", "none"])
def test_answers_are_those_on_the_host(mode: str, place: str) -> None:
    here, there = (TorchCartPole(num_envs=5, autoreset=mode, max_episode_steps=9, device=at) for at in ("cpu", place))
    envs = [here, on_host(there)]
    assert isinstance(envs[1], OnHost)
    assert {key: getattr(envs[1], key) for key in ("name", "num_envs", "specs", "autoreset", "own_state")} == {
        key: getattr(here, key) for key in ("name", "num_envs", "specs", "autoreset", "own_state")
    }
    buffers = [env.allocate() for env in envs]
    for env, buffer in zip(envs, buffers, strict=True):
        env.reset(buffer, seeds=range(5))
    draws = torch.Generator().manual_seed(0)
    for _ in range(40):
        action = {"action": torch.randint(2, (5,), generator=draws)}
        for env, buffer in zip(envs, buffers, strict=True):
            env.step(action, buffer)
            ended = buffer.ended_rows()
            if mode == "none" and ended:
                env.reset(buffer, ended)
        mine, others = ({**b.obs, "r": b.reward, "e": b.terminated, "c": b.truncated} for b in buffers)
        for key, value in mine.items():
            torch.testing.assert_close(others[key], value, rtol=1e-5, atol=1e-5)
        if mode == "same_step" and ended:
            finals = [buffer.final_obs["obs"][ended] for buffer in buffers if buffer.final_obs is not None]
            torch.testing.assert_close(finals[1], finals[0], rtol=1e-5, atol=1e-5)
    envs[1].set_state(here.get_state())
    torch.testing.assert_close(there.get_state()["state"].cpu(), here.get_state()["state"])


@pytest.mark.parametrize("place", ACCELERATORS)
def test_their_state_is_on_the_host_too(place: str) -> None:
    """It leaves a worker's process, for one of a machine that may have no such device."""
    there = TorchCartPole(num_envs=2, autoreset="none", max_episode_steps=9, device=place)
    found, own = on_host(there).get_state(), there.get_state()
    assert found.keys() == own.keys()
    assert {value.device.type for value in (*found["random"].values(), found["state"], found["steps"])} == {"cpu"}
    assert found["random"].keys() == own["random"].keys()
    torch.testing.assert_close(found["state"], own["state"].cpu())


def test_what_is_on_the_host_stays_as_it_is() -> None:
    env = BitFlip(num_envs=2, num_bits=3)
    assert on_host(env) is env
    wrapped, buffer = OnHost(env), env.allocate()
    wrapped.reset(buffer, rows=[1], env_info=DictTensor({"goal": torch.ones(1, 3)}))
    assert buffer.obs["obs/desired_goal"][1].tolist() == [1.0] * 3

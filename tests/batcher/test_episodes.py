"""Whole episodes: exactly those asked for, complete, none left out for its length."""

from functools import partial

import pytest
import torch

from rlx.agent import values
from rlx.batcher import EpisodeBatcher
from rlx.data import DictTensor
from rlx.env import make
from rlx.errors import EnvironmentFault, SpecError, UserError
from tests.agent.agents import actor_critic
from tests.batcher.ledger import Counter, Parity, expected_steps
from tests.batcher.test_batcher import MODES, row_of


def batcher(make_env=MODES["per_instance"], make_agent=Counter, **changes) -> EpisodeBatcher:
    options = {"num_workers": 2, "envs_per_worker": 3, "num_steps": 3, "seed": 3, "workers": "local"} | changes
    return EpisodeBatcher(make_agent, make_env, **options)


@pytest.mark.parametrize("workers", ["local", "process"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_episodes", [None, 4, 15])
def test_every_sequence_is_a_whole_episode_as_a_plain_loop_plays_it(mode: str, workers: str, num_episodes) -> None:
    make_agent = Counter if mode == "per_instance" else Parity
    with batcher(MODES[mode], make_agent, workers=workers, num_episodes=num_episodes) as b:
        count = num_episodes or b.num_envs
        for _ in range(2):
            b.episodes.clear()
            b.execute()
            found = b.get()
            assert found is not None
            episodes, running = found
            assert (episodes.batch_size, running) == (count, 0)
            assert len(b.episodes) == count
            assert episodes.num_steps == sum(episode[2] for episode in b.episodes)
            assert episodes.steps.max_length == int(episodes.steps.lengths.max())
            for row in range(count):
                steps = row_of(episodes, row)
                seed, number = (int(value) for value in steps[0]["env/obs"][:2])
                # The plain loop's steps of that episode: those between the start of it and the start of the next.
                plain = [step for step in expected_steps(seed, 400) if step["env/obs"][1] == number]
                assert len(steps) == len(plain)
                for step, wanted in zip(steps, plain, strict=True):
                    for key, value in wanted.items():
                        if key != "count":
                            assert step[key] == (pytest.approx(value) if isinstance(value, float) else value), key
                assert [step["next/terminated"] or step["next/truncated"] for step in steps[:-1]] == [False] * (
                    len(steps) - 1
                )


def test_short_episodes_are_not_overrated() -> None:
    # Half of the episodes last 2 steps and half 60: the first to finish would nearly all be short ones.
    with batcher(
        partial(make, "tests.run.short_and_long:ShortAndLong-v0"), Idle, envs_per_worker=8, num_episodes=100
    ) as b:
        lengths = b.collect().steps.lengths
    assert set(lengths.tolist()) == {2, 60}
    assert 35 <= int((lengths == 60).sum()) <= 65


class Idle(Parity):
    def act(self, outputs, agent_info, generator):
        return DictTensor({"action": torch.zeros(len(outputs["seen"]), dtype=torch.int64)})


def test_episodes_that_never_end_are_not_waited_for(monkeypatch) -> None:
    endless = partial(make, "tests.run.test_run:Unending-v0")
    monkeypatch.setattr("rlx.batcher.episodes.MOST_EPISODE_STEPS", 60)
    with (
        batcher(endless, Idle) as b,
        pytest.raises(EnvironmentFault, match=r"6 episodes have not ended after 60 .*env.max_episode_steps=N"),
    ):
        b.collect()
    monkeypatch.undo()
    with batcher(endless, Idle) as b:
        b.reset()
        monkeypatch.setattr("rlx.data.storage.available_memory", lambda: 20_000)
        with pytest.raises(SpecError) as refused:
            b.collect()
    assert str(refused.value) == (
        "a batch of 6 episodes that go on after 99 steps takes 24.8 KiB, but memory has 19.5 KiB left; "
        "env.max_episode_steps=N ends them after N"
    )


def test_get_without_waiting_gives_none_until_the_last_episode_has_ended() -> None:
    with batcher(workers="process", num_episodes=13) as b:
        with pytest.raises(UserError, match=r"get\(\) without execute"):
            b.get()
        b.execute()
        with pytest.raises(UserError, match="being collected"):
            b.execute()
        calls = 0
        while (found := b.get(blocking=False)) is None:
            calls += 1
        assert calls > 0
        assert found[0].batch_size == 13


def test_values_bootstrap_at_truncation_only_and_the_trajectories_last() -> None:
    with batcher(make_agent=actor_critic) as b:
        torch.manual_seed(0)
        agent = actor_critic(b.specs)
        b.publish(agent)
        episodes = b.collect()
        b.collect()
        value, following = values(agent, episodes)
        for row in range(episodes.batch_size):
            last = int(episodes.steps.lengths[row]) - 1
            torch.testing.assert_close(following[row, :last], value[row, 1 : last + 1])
            final = DictTensor({"obs": episodes.steps["next/obs"][row, last].unsqueeze(0)})
            expected = agent.forward(final, DictTensor.empty(1), DictTensor.empty(1))[0]["value"][0].detach()
            terminated = bool(episodes.steps["next/terminated"][row, last])
            assert following[row, last] == pytest.approx(0.0 if terminated else float(expected))


def test_each_row_of_information_reaches_its_episodes() -> None:
    info = DictTensor({"policy": torch.arange(6)})
    with batcher(num_episodes=8) as b:
        b.reset(agent_info=info)
        episodes = b.collect()
        assert episodes.info["agent_info/policy"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
        b.execute(DictTensor({"policy": torch.arange(6) + 10}))
        found = b.get()
        assert found is not None
        assert found[0].info["agent_info/policy"].tolist() == [10, 11, 12, 13, 14, 15, 10, 11]

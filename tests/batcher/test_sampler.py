"""What is drawn for each episode reaches it, is kept with its steps, and depends on nothing but the row."""

import itertools
import os
import signal
import threading
from functools import partial

import pytest
import torch

from rlx.agent import replay
from rlx.batcher import Batcher, EpisodeBatcher
from rlx.data import DictTensor, Trajectories
from rlx.env import make
from rlx.errors import SpecError, UserError
from tests.batcher.ledger import Parity
from tests.batcher.tasks import (
    ID,
    Skilled,
    SkilledWithMemory,
    sample_arm,
    sample_growing,
    sample_skill,
    sample_task,
)
from tests.batcher.test_batcher import MODES

SETTINGS = {"num_workers": 2, "envs_per_worker": 2, "num_steps": 6, "seed": 3}
told = partial(make, ID)


def pieces_of(batcher: Batcher, count: int) -> list[Trajectories]:
    return [batcher.collect().clone() for _ in range(count)]


@pytest.mark.parametrize("workers", ["local", "process"])
def test_each_episode_has_its_task_and_each_step_keeps_it(workers: str) -> None:
    with Batcher(Parity, told, **SETTINGS, workers=workers) as batcher:
        batcher.reset(env_info=sample_task)
        pieces = pieces_of(batcher, 5)
    for piece in pieces:
        steps = piece.steps
        told_of = torch.cat([steps["env_info/goal"], steps["env_info/level"].unsqueeze(2).float()], dim=2)
        assert torch.equal(told_of, steps["env/obs"])
        assert torch.equal(piece.info["env_info/goal"], steps["env_info/goal"][:, 0])
        assert torch.equal(steps["env_info/goal"].floor()[:, :, 0], torch.arange(4.0).unsqueeze(1).expand(4, 6))
    whole = torch.cat([piece.steps["env_info/goal"] for piece in pieces], dim=1)
    first = torch.cat([piece.steps["env/is_first"] for piece in pieces], dim=1)
    assert torch.equal(
        (whole[:, 1:] != whole[:, :-1]).all(2), first[:, 1:]
    )  # new ones at each beginning, and only there
    assert first.sum() > 20


def test_draws_do_not_depend_on_the_number_of_workers() -> None:
    found = []
    for num_workers in (1, 2, 4):
        settings = SETTINGS | {"num_workers": num_workers, "envs_per_worker": 4 // num_workers, "workers": "local"}
        with Batcher(Parity, told, **settings) as batcher:
            batcher.reset(env_info=sample_task)
            found.append(torch.cat([piece.steps["env_info/goal"] for piece in pieces_of(batcher, 3)], dim=1))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("make_agent", [Skilled, SkilledWithMemory])
@pytest.mark.parametrize("mode", MODES)
def test_each_episode_has_its_skill_whoever_resets_it_and_replay_sees_the_same(mode: str, make_agent) -> None:
    with Batcher(make_agent, MODES[mode], **SETTINGS, workers="local") as batcher:
        batcher.reset(agent_info=sample_skill)
        pieces = pieces_of(batcher, 5)
        agent = make_agent(batcher.specs)
    for row in range(4):
        skills, firsts = [], []
        for piece in pieces:
            count = int(piece.steps.lengths[row])
            skills += piece.steps["agent_info/skill"][row, :count].tolist()
            firsts += piece.steps["env/is_first"][row, :count].tolist()
        changed = [now != before for before, now in itertools.pairwise(skills)]
        assert changed == firsts[1:]
        assert sum(firsts) > 3
    for piece in pieces:
        mask, again = piece.steps.mask(), replay(agent, piece)
        assert torch.equal(piece.steps["agent/skill"][mask], piece.steps["agent_info/skill"][mask])
        assert torch.equal(again["skill"][mask], piece.steps["agent/skill"][mask])
        if make_agent is SkilledWithMemory:
            assert torch.equal(again["sum"][mask], piece.steps["agent/sum"][mask])
            begun = piece.steps.lengths > 0
            assert torch.equal(piece.info["agent_state/sum"][begun], piece.steps["agent/sum"][begun, 0])
            parts = list(piece.select("env", "agent", "agent_info").minibatches(12, torch.Generator()))
            assert len(parts) == 2
        else:
            parts = list(piece.split_steps().minibatches(7, torch.Generator().manual_seed(0)))
        for part in parts:
            kept = part.steps.mask()
            assert torch.equal(replay(agent, part)["skill"][kept], part.steps["agent/skill"][kept])


def test_whole_episodes_keep_what_was_drawn_for_them() -> None:
    with EpisodeBatcher(Parity, told, **SETTINGS, num_episodes=10, workers="local") as batcher:
        batcher.reset(env_info=sample_task)
        episodes = batcher.collect()
    assert torch.equal(episodes.steps.lengths, 1 + episodes.info["env_info/level"])
    mask = episodes.steps.mask()
    assert torch.equal(episodes.steps["env_info/goal"][mask], episodes.steps["env/obs"][mask][:, :2])
    assert len(episodes.info["env_info/goal"].unique()) == 20


def test_another_sampler_of_the_same_form_may_take_its_place() -> None:
    with Batcher(Parity, told, **SETTINGS, workers="local") as batcher:
        batcher.reset(env_info=sample_task)
        batcher.collect()
        batcher.reset(env_info=shifted)
        assert batcher.collect().steps["env_info/goal"].min() >= 100


def shifted(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return sample_task(row + 100, generator)


@pytest.mark.faults
def test_a_worker_that_is_started_again_draws_on() -> None:
    with Batcher(Parity, told, **SETTINGS) as batcher:
        batcher.reset(env_info=sample_task)
        goals = []
        for number in range(6):
            batcher.execute()
            os.kill(batcher._handles[number % 2].pid, signal.SIGKILL)
            found = batcher.get()
            assert found is not None
            steps = found[0].steps
            assert torch.equal(steps["env_info/goal"], steps["env/obs"][:, :, :2])
            goals.append(steps["env_info/goal"].clone())
        assert batcher.restarts >= 3
    firsts = torch.stack([goal[0, 0] for goal in goals])
    assert len(firsts.unique(dim=0)) == 6


def per_instance(make_agent) -> Batcher:
    return Batcher(make_agent, MODES["per_instance"], **SETTINGS, workers="local")


def test_a_sampler_that_cannot_travel_or_returns_no_tensors_is_refused() -> None:
    lock = threading.Lock()
    with Batcher(Parity, told, **SETTINGS) as batcher, pytest.raises(UserError, match="must be picklable"):
        batcher.reset(env_info=lambda row, generator: {"goal": torch.zeros(2), "lock": lock})
    with per_instance(Skilled) as batcher, pytest.raises(UserError, match="by name, got NoneType"):
        batcher.reset(agent_info=lambda row, generator: None)
    with per_instance(Skilled) as batcher, pytest.raises(UserError, match="by name, got 'skill' is a int"):
        batcher.reset(agent_info=lambda row, generator: {"skill": 3})
    with (
        per_instance(Parity) as batcher,
        pytest.raises(SpecError, match=r"the sampler returned 'skill' as torch\.float32"),
    ):
        batcher.reset(agent_info=sample_growing)


def test_a_sampler_comes_first_and_stays() -> None:
    with per_instance(Skilled) as batcher:
        batcher.reset(agent_info=sample_skill)
        with pytest.raises(UserError, match="drawn by a sampler"):
            batcher.execute(agent_info=DictTensor.empty(4))
        with pytest.raises(UserError, match="settled by the first reset"):
            batcher.reset()
        with pytest.raises(SpecError, match="the new sampler draws"):
            batcher.reset(agent_info=sample_arm)
    with per_instance(Parity) as batcher:
        batcher.publish(Parity(batcher.specs))
        with pytest.raises(UserError, match="settled by the first reset"):
            batcher.reset(agent_info=sample_skill)


def test_what_the_batcher_was_made_with_holds_for_every_reset_that_gives_none() -> None:
    settings = SETTINGS | {"workers": "local"}
    with Batcher(Parity, told, **settings, env_info=sample_task) as batcher:
        first = batcher.collect().steps["env_info/goal"].clone()
        batcher.reset()
        assert not torch.equal(batcher.collect().steps["env_info/goal"][:, 0], first[:, 0])
        batcher.reset(env_info=shifted)
        assert batcher.collect().steps["env_info/goal"].min() >= 100
    with EpisodeBatcher(Parity, told, **settings, env_info=sample_task) as batcher:
        episodes = batcher.collect()
    assert torch.equal(episodes.steps.lengths, 1 + episodes.info["env_info/level"])
    with (
        Batcher(Parity, told, **settings, env_info=sample_task) as batcher,
        pytest.raises(UserError, match=r"batcher\.env_info: got one, and reset\(env_info=\.\.\.\) gives another"),
    ):
        batcher.reset(env_info=shifted)

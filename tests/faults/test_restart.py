"""A worker process that dies is replaced: shapes never change, and nothing that was handed over is lost or doubled."""

import os
import signal

import pytest
import torch

from rlx.batcher import Batcher, EpisodeBatcher
from rlx.batcher.worker import Worker
from rlx.errors import WorkerError
from tests.batcher.ledger import Parity, expected_steps
from tests.batcher.test_batcher import MODES, row_of

pytestmark = pytest.mark.faults
SETTINGS = {"num_workers": 2, "envs_per_worker": 3, "num_steps": 5, "seed": 3}


def process_id(worker: Worker) -> int:
    return os.getpid()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("during", ["between pieces", "a piece"])
def test_killed_workers_are_replaced_and_every_sequence_stays_in_order(mode: str, during: str) -> None:
    with Batcher(Parity, MODES[mode], **SETTINGS) as batcher:
        rows: list[list[dict]] = [[] for _ in range(batcher.num_envs)]
        for number in range(12):
            victim = batcher.call(process_id)[number % 2] if number % 3 == 1 else None
            if victim is not None and during == "between pieces":
                os.kill(victim, signal.SIGKILL)
            batcher.execute()
            if victim is not None and during == "a piece":
                os.kill(victim, signal.SIGKILL)
            found = batcher.get()
            assert found is not None
            piece, running = found
            assert (piece.batch_size, running) == (6, 6)
            for row in range(6):
                rows[row].extend(row_of(piece, row))
        assert batcher.restarts == 4 or (during == "a piece" and batcher.restarts <= 4)
    for steps in rows:
        seeds = list(dict.fromkeys(step["env/obs"][0] for step in steps))
        for seed in seeds:  # each incarnation's steps are those of a plain loop, from its first one on
            own = [step for step in steps if step["env/obs"][0] == seed]
            first = next(
                i for i, step in enumerate(expected_steps(int(seed), 60)) if step["env/obs"] == own[0]["env/obs"]
            )
            assert first == 0
            for step, wanted in zip(own, expected_steps(int(seed), len(own)), strict=True):
                assert step["env/obs"] == wanted["env/obs"]
                assert step["next/obs"] == wanted["next/obs"]
                assert step["next/reward"] == wanted["next/reward"]


def test_whole_episodes_stay_whole_when_their_worker_is_killed() -> None:
    with EpisodeBatcher(Parity, MODES["per_instance"], **(SETTINGS | {"num_steps": 2}), num_episodes=20) as batcher:
        for number in range(4):
            batcher.execute()
            os.kill(batcher._handles[number % 2].pid, signal.SIGKILL)
            found = batcher.get()
            assert found is not None
            episodes = found[0]
            assert episodes.batch_size == 20
            assert len(batcher.episodes) == 20
            batcher.episodes.clear()
            last = episodes.steps.lengths - 1
            ended = episodes.steps["next/terminated"] | episodes.steps["next/truncated"]
            assert ended[torch.arange(20), last].all()
            assert int((ended & episodes.steps.mask()).sum()) == 20
            for row in range(20):
                assert [step["env/obs"][2] for step in row_of(episodes, row)] == list(range(int(last[row]) + 1))
        assert batcher.restarts >= 1


def test_a_dead_worker_is_an_error_at_once_where_that_is_asked_for() -> None:
    with Batcher(Parity, MODES["per_instance"], **SETTINGS, on_failure="raise") as batcher:
        victim = batcher.call(process_id)[1]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"worker 1.*died"):
            batcher.collect()

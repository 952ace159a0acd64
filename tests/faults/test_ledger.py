"""Workers that die at every moment of a piece: what was handed over is whole, and what was not is counted."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from rlx.batcher import Batcher
from rlx.batcher.worker import Worker
from rlx.env import make
from tests.faults.ledger import DEATHS, ID, POINTS, Books, Parity, arm, check_row

pytestmark = pytest.mark.faults
ENVS, STEPS = 3, 8


def process_id(worker: Worker) -> int:
    return os.getpid()


class Account:
    """All that a batcher hands over, and what was counted meanwhile."""

    def __init__(self, batcher: Batcher, books: Books) -> None:
        self.batcher, self.books = batcher, books
        self._pieces: list[list[torch.Tensor]] = []

    def take(self) -> None:
        """Take the piece that is being collected: every row of it is full."""
        found = self.batcher.get()
        assert found is not None
        piece, running = found
        size = self.batcher.num_envs
        assert (piece.batch_size, running, piece.num_steps) == (size, size, size * STEPS)
        keys = ("env/obs", "next/obs", "agent/action", "next/reward", "agent/seen")
        self._pieces.append([piece.steps[key].clone() for key in keys])

    def check(self) -> list[int]:
        """Check every row; return how many incarnations each had.

        Each step that was ever done was handed over, or dropped and counted, or cut off in the middle of a call.
        """
        columns = [torch.cat(parts, dim=1) for parts in zip(*self._pieces, strict=True)]
        observations, *_, seen = columns
        assert torch.equal(observations, seen)
        incarnations = [check_row(*(column[row] for column in columns[:4])) for row in range(self.batcher.num_envs)]
        done, handed_over = self.books.total(), len(self._pieces) * self.batcher.num_envs * STEPS
        cut_off = done - handed_over - self.batcher.dropped_steps
        assert 0 <= cut_off <= self.batcher.restarts * ENVS, (done, handed_over, self.batcher.dropped_steps)
        return incarnations


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    path = str(tmp_path / "books")
    books = Books.create(path)
    make_env = partial(make, ID, kwargs={"books": path})
    with Batcher(Parity, make_env, num_workers=2, envs_per_worker=ENVS, num_steps=STEPS, seed=5) as batcher:
        yield Account(batcher, books)


def test_sixty_deaths_at_every_moment_lose_and_double_nothing(account: Account) -> None:
    batcher, deaths = account.batcher, 0
    batcher.execute()
    account.take()
    for _turn, how, point in itertools.product(range(3), DEATHS, POINTS):
        batcher.call(arm, deaths % 2, point, how, STEPS)
        for _ in range(2):  # a process that dies once it has answered is missed at the next piece
            batcher.execute()
            account.take()
        deaths += 1
        assert batcher.restarts == deaths, (how, point)
    assert deaths >= 60
    assert sum(account.check()[::ENVS]) == deaths + batcher.num_envs // ENVS


def test_kills_from_outside_at_any_moment_lose_and_double_nothing(account: Account) -> None:
    batcher, books = account.batcher, account.books
    for number in range(30):
        victims = batcher.call(process_id)  # who died after the answer is replaced here
        before = books.total()
        batcher.execute()
        _wait_until(books, before + number % (2 * ENVS * STEPS))
        os.kill(victims[number % 2], signal.SIGKILL)
        account.take()
    assert 15 <= batcher.restarts <= 30
    account.check()


def _wait_until(books: Books, steps: int) -> None:
    """Give the processor away until so many steps are done; what the kill that follows meets is all that changes."""
    deadline = time.monotonic() + 10.0
    while books.total() < steps and time.monotonic() < deadline:
        os.sched_yield()

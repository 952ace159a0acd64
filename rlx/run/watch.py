"""Ranks that watch each other: signs of life, and who was the first to fail, in the store that all can reach.

A wait for the others ends when they come, when one of them has failed, or after a time limit. What ends it is told
once: the first rank that fails tells the user, and all others end without a word.
"""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Generator
from typing import Any

from rlx.errors import RankError

_BEAT_SECONDS = 1.0
_DEAD_SECONDS = 3.0
_PART_SECONDS = 5.0
_LONGEST_LOOK = 2.0  # seconds that one look may add to a wait: perhaps all of us were stopped


def here() -> str:
    """Return where this process is, for messages."""
    return f"process {os.getpid()} on {platform.node()}"


class Watch:
    """One rank's view of the others.

    Attributes:
        timeout: seconds that one wait may last.
        collectives: exchanges that this rank has begun.
        lost: whether the store is gone: with rank 0, or with torchrun, whichever served it.
    """

    def __init__(
        self, store: Any, beats: Any, rank: int, places: list[str], timeout: float, *, own_store: bool
    ) -> None:
        """Begin to leave signs of life.

        Args:
            store: what all ranks share.
            beats: the same by another connection, for the thread that leaves the signs.
            rank: of this process.
            places: where each rank is.
            timeout: see above.
            own_store: whether rank 0 serves the store; else torchrun does.
        """
        self.timeout = timeout
        self.lost = False
        self._own_store = own_store
        self.collectives = 0
        self._store, self._beats = store, beats
        self._rank, self._places = rank, places
        self._busy = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rlx-rank-beat", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def busy(self, doing: str) -> Generator[None]:
        """Let the others wait for longer than the limit, as long as this process lives: it does what takes its time."""
        self._busy = doing
        try:
            yield
        finally:
            self._busy = ""

    def waiting(self) -> "Wait":
        """Return a wait that begins now."""
        return Wait(self)

    def tell(self, status: int, message: str) -> bool:
        """Note that this rank fails, and return whether it is the first to: then it is the one to tell the user."""
        own = f"{self._rank}:{status}:{message}"
        try:
            return bool(self._store.compare_set("failed", "", own) == own.encode())
        except Exception:  # it is gone: nobody can be asked who is the first
            return self._rank == (1 if self._own_store else 0)

    def told(self) -> tuple[int, int, str] | None:
        """Return who failed first: rank, exit status and message; None while nobody has."""
        if self.lost:
            return None
        try:
            if not self._store.check(["failed"]):
                return None
            rank, status, message = self._store.get("failed").decode(errors="replace").split(":", 2)
        except Exception:
            self.lost = True
            return None
        return int(rank), int(status), message

    def failure(self, error: BaseException) -> RankError:
        """Return what is wrong where an exchange failed: what a rank told, or which does not answer.

        Args:
            error: what the exchange raised.
        """
        told = self._told_by_another()
        if told is not None:
            return told
        silent = [] if self.lost else [rank for rank, (moves, _, _) in self._look_around().items() if not moves]
        told = self._told_by_another()  # which it may have done meanwhile
        if told is not None:
            return told
        if self.lost:
            who = self._name([0]) if self._own_store else "torchrun, which started this process,"
            return RankError(f"{who} does not answer any more: it died, or cannot be reached")
        if silent:
            return RankError(f"{self._name(silent)} does not answer any more: it died, or cannot be reached")
        return RankError(f"the ranks lost each other: {' '.join(str(error).split())[:300]}")

    def late(self) -> RankError | None:
        """Return which ranks have not come, at the end of a wait; None where all that have not are busy."""
        told = self._told_by_another()
        if told is not None:
            return told
        found = self._look_around()
        absent = {rank: state for rank, state in found.items() if state[1] < self.collectives or not state[0]}
        silent = [rank for rank, (moves, _, _) in absent.items() if not moves]
        limit = f"{self.timeout:g} s (learner.timeout)"
        if silent:
            return RankError(f"{self._name(silent)} has shown no sign of life for {limit}: it is stopped, or gone")
        if absent and all(doing for _, _, doing in absent.values()):
            return None
        who = self._name(list(absent)) if absent else "another rank"
        return RankError(f"{who} has not come to exchange {self.collectives} for {limit}, though it runs")

    def part(self) -> None:
        """Leave where something has failed: a store that is rank 0's own stays until the others have read of it."""
        with contextlib.suppress(Exception):
            self._store.set(f"left/{self._rank}", "")
            if self._own_store and self._rank == 0:
                deadline = time.monotonic() + _PART_SECONDS
                keys = [f"left/{rank}" for rank in range(1, len(self._places))]
                while time.monotonic() < deadline and not self._store.check(keys):
                    self._ended.wait(_BEAT_SECONDS / 10)
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(2 * _BEAT_SECONDS)

    def _told_by_another(self) -> RankError | None:
        told = self.told()
        if told is None or told[0] == self._rank:
            return None
        error = RankError(f"{self._name([told[0]])} ended: {told[2]}")
        error.exit_status = told[1]
        return error

    def _name(self, ranks: list[int]) -> str:
        return " and ".join(f"rank {rank} of {len(self._places)} ({self._places[rank]})" for rank in ranks)

    def _look_around(self) -> dict[int, tuple[bool, int, str]]:
        """Return for each other rank whether it lives, the exchanges it has begun, and what keeps it busy."""
        others = [rank for rank in range(len(self._places)) if rank != self._rank]
        before = {rank: self._sign_of(rank) for rank in others}
        deadline = time.monotonic() + _DEAD_SECONDS
        after = dict(before)
        while not self.lost and time.monotonic() < deadline and any(after[rank] == before[rank] for rank in others):
            self._ended.wait(_BEAT_SECONDS / 4)
            after = {rank: self._sign_of(rank) for rank in others}
        found: dict[int, tuple[bool, int, str]] = {}
        for rank in others:
            _, collectives, doing = after[rank]
            found[rank] = after[rank] != before[rank], collectives, doing
        return found

    def _sign_of(self, rank: int) -> tuple[int, int, str]:
        try:
            count, collectives, doing = self._store.get(f"beat/{rank}").decode().split(":", 2)
        except Exception:
            self.lost = True
            return -1, -1, ""
        return int(count), int(collectives), doing

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            try:
                self._beats.set(f"beat/{self._rank}", f"{count}:{self.collectives}:{self._busy}")
            except Exception:  # the next exchange says so
                self.lost = True
                return
            if self._ended.wait(_BEAT_SECONDS):
                return


class Wait:
    """One wait for others, looked at now and then."""

    def __init__(self, watch: Watch) -> None:
        """Begin."""
        self._watch = watch
        self._waited, self._looked = 0.0, time.monotonic()

    def look(self) -> None:
        """End the wait where there is reason to.

        Raises:
            RankError: another rank has failed, or the limit is over.
        """
        now = time.monotonic()
        self._waited, self._looked = self._waited + min(now - self._looked, _LONGEST_LOOK), now
        told = self._watch.told()
        error: RankError | None = None
        if told is not None or self._watch.lost:
            error = self._watch.failure(RankError("failed"))
        elif self._waited > self._watch.timeout:
            error = self._watch.late()
            self._waited = 0.0
        if error is not None:
            raise error

"""The episodes that ended, told as columns: many at once cost hardly more than one."""

from collections.abc import Iterator, Sequence
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

Episode = tuple[int, float, int]
"""Row among all environments, return, length."""

_EPISODE = np.dtype([("row", np.int64), ("return", np.float64), ("length", np.int64)])
_NONE = np.empty(0, _EPISODE)


class EpisodeLog(Sequence[Episode]):
    """Episodes in the order in which they ended: a sequence of `(row, return, length)` that is kept as columns.

        returns = batcher.episodes.returns
        for row, episode_return, length in batcher.episodes: ...

    Columns and slices stay as they are when the log goes on.
    """

    __slots__ = "_episodes", "_size"

    def __init__(
        self, rows: NDArray[Any] | None = None, returns: NDArray[Any] | None = None, lengths: NDArray[Any] | None = None
    ) -> None:
        """Begin with episodes `[N]` given by column, or with none."""
        self._episodes, self._size = _NONE, 0
        if rows is not None:
            self._episodes, self._size = np.empty(len(rows), _EPISODE), len(rows)
            self._episodes["row"], self._episodes["return"], self._episodes["length"] = rows, returns, lengths

    @property
    def rows(self) -> NDArray[np.int64]:
        """Return whose they were, `[N]`: rows among all environments."""
        return self._episodes["row"][: self._size]

    @property
    def returns(self) -> NDArray[np.float64]:
        """Return their sums of rewards, `[N]`."""
        return self._episodes["return"][: self._size]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return their numbers of steps, `[N]`."""
        return self._episodes["length"][: self._size]

    def __len__(self) -> int:
        """Return N."""
        return self._size

    def __iter__(self) -> Iterator[Episode]:
        """Go through them as tuples of Python's numbers."""
        return iter(self._episodes[: self._size].tolist())

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice | NDArray[np.bool_]) -> "EpisodeLog": ...
    def __getitem__(self, index: Any) -> "Episode | EpisodeLog":
        """Return one of them, or those of a slice or of a mask `[N]`."""
        found = cast(Any, self._episodes[: self._size][index])
        return _log(found) if found.ndim else found.item()

    def __eq__(self, other: object) -> bool:
        """Return whether the other sequence holds the same ones."""
        return isinstance(other, Sequence) and list(self) == list(cast("Sequence[Any]", other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return them as they are written."""
        return f"EpisodeLog({list(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as bytes: a few numbers in an array take thirty times as long."""
        return _from_bytes, (self._episodes[: self._size].tobytes(),)

    def extend(self, episodes: "EpisodeLog") -> None:
        """Add those of another log behind one's own."""
        added = len(episodes)
        if not added:
            return
        size = self._size + added
        if size > len(self._episodes):
            grown = np.empty(max(size, 2 * self._size), _EPISODE)
            grown[: self._size] = self._episodes[: self._size]
            self._episodes = grown
        self._episodes[self._size : size] = episodes._episodes[:added]
        self._size = size

    def drop(self, start: int) -> "EpisodeLog":
        """Take out what was added since there were `start`, and return it."""
        dropped = self[start:]
        self._episodes, self._size = self._episodes[:start], min(start, self._size)  # what is added goes elsewhere
        return dropped

    def clear(self) -> None:
        """Forget all of them; columns and slices that somebody took stay as they are."""
        self._episodes, self._size = _NONE, 0


def _log(episodes: NDArray[Any]) -> EpisodeLog:
    log = EpisodeLog()
    log._episodes, log._size = episodes, len(episodes)  # pyright: ignore[reportPrivateUsage]
    return log


def _from_bytes(episodes: bytes) -> EpisodeLog:
    return _log(np.frombuffer(episodes, _EPISODE))

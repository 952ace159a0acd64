"""What the iterations between two rows of metrics reported, made into one row; and the newest episodes."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlx.batcher.episode_log import EpisodeLog
from rlx.errors import UserError
from rlx.run.metrics import FIRST_COLUMNS


def number_of(name: str, reported: Tensor | float) -> float:
    """Return what an algorithm reports under a name as a number.

    Raises:
        UserError: it is none, or the name is a column that tells where the run is.
    """
    if name in FIRST_COLUMNS:
        raise UserError(f"run.log: {name!r} is the run's own column; expected another name, such as 'my/{name}'")
    try:
        return float(reported.detach() if isinstance(reported, Tensor) else reported)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers is one or the other, by its device
        shape = f" of shape {list(reported.shape)}" if isinstance(reported, Tensor) else ""
        got = type(reported).__name__ + shape
        raise UserError(f"run.log: {name!r} is a {got}, expected a number or a 0-dimensional tensor") from None


class Averages:
    """Means of terms over the iterations that reported them; whole numbers count something, and keep the newest.

    The mean of equal numbers is that number, to the bit. What is NaN in every iteration stays NaN.

    Attributes:
        env_steps: valid environment steps of these iterations.
    """

    def __init__(self) -> None:
        """Begin with nothing reported."""
        self.env_steps = 0
        self._means: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Return whether an iteration was reported."""
        return self.env_steps > 0 or bool(self._means)

    def add(self, terms: Mapping[str, Tensor | float], env_steps: int) -> None:
        """Take what one iteration of `env_steps` steps reported: 0-dimensional tensors or numbers.

        Raises:
            UserError: something is no number; names it.
        """
        self.env_steps += env_steps
        for key, reported in terms.items():
            value = number_of(key, reported)
            if isinstance(reported, int) or not self._counts.get(key):
                self._means[key], self._counts[key] = value, int(not math.isnan(value))
            elif not math.isnan(value):
                mean, count = self._means[key], self._counts[key] + 1
                self._means[key] = mean + (value if math.isinf(mean) else (value - mean) / count)
                self._counts[key] = count

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means, self.env_steps, self._means = self._means, 0, {}
        self._counts.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what the row under way is made of so far."""
        return {"env_steps": self.env_steps, "means": dict(self._means), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a row that others were under way with.

        Raises:
            KeyError: the state lacks something.
        """
        for key in state["means"].keys() ^ state["counts"].keys():
            raise KeyError(key)
        self.env_steps, self._means, self._counts = state["env_steps"], dict(state["means"]), dict(state["counts"])


class RecentEpisodes:
    """The newest training episodes, and how many there were.

    Attributes:
        count: episodes so far.
    """

    def __init__(self, window: int) -> None:
        """Begin with none; `window` of them are kept."""
        self.count = 0
        self._kept: deque[tuple[float, int]] = deque(maxlen=window)

    def take(self, episodes: EpisodeLog) -> None:
        """Take episodes that ended out of the log."""
        self._kept.extend((total, length) for _, total, length in episodes[-(self._kept.maxlen or 0) :])
        self.count += len(episodes)
        episodes.clear()

    @property
    def is_full(self) -> bool:
        """Return whether the window is."""
        return len(self._kept) == self._kept.maxlen

    @property
    def mean_return(self) -> float | None:
        """Return the mean return of those kept; None where there are none."""
        return sum(episode[0] for episode in self._kept) / len(self._kept) if self._kept else None

    @property
    def mean_length(self) -> float | None:
        """Return the mean length of those kept; None where there are none."""
        return sum(episode[1] for episode in self._kept) / len(self._kept) if self._kept else None

    def state_dict(self) -> dict[str, Any]:
        """Return those kept, and the count."""
        return {"count": self.count, "kept": [list(episode) for episode in self._kept]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another one kept; of a wider window, the newest."""
        self.count = state["count"]
        self._kept.clear()
        self._kept.extend((episode[0], episode[1]) for episode in state["kept"])

"""What a run counts, apart from time: all of it is in its checkpoints."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rlx.batcher.pieces import Episode

EPISODE_WINDOW = 100
"""Training episodes that `episode/return` and `episode/length` are the mean of."""


@dataclass
class Counters:
    """How far a run is.

    Attributes:
        env_steps: environment steps so far.
        iteration: iterations so far.
        num_episodes: training episodes that have ended.
        recent: return and length of the last of them.
        last: the last value of each episode and evaluation metric, for the summary.
        ended_early: whether a rule has ended the run.
    """

    env_steps: int = 0
    iteration: int = 0
    num_episodes: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))
    last: dict[str, Any] = field(default_factory=dict[str, Any])
    ended_early: bool = False

    def count(self, episodes: Iterable[Episode]) -> None:
        """Take in the training episodes that ended."""
        found = [(episode[1], episode[2]) for episode in episodes]
        self.recent.extend(found)
        self.num_episodes += len(found)

    def mean(self, place: int) -> float | None:
        """Return the recent episodes' mean return (place 0) or length (1); None while none has ended."""
        values = [episode[place] for episode in self.recent]
        return sum(values) / len(values) if values else None

    def remember(self, row: dict[str, Any]) -> None:
        """Note a row's figures for the summary."""
        self.last.update({key: value for key, value in row.items() if key.startswith(("episode/", "eval/"))})

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "num_episodes": self.num_episodes,
            "recent": [list(episode) for episode in self.recent],
            "last": {key: value for key, value in self.last.items() if key != "eval/cpu_share"},  # which is a time
            "ended_early": self.ended_early,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another run counted."""
        self.env_steps, self.iteration = state["env_steps"], state["iteration"]
        self.num_episodes, self.ended_early = state["num_episodes"], state["ended_early"]
        self.recent = deque(((episode[0], episode[1]) for episode in state["recent"]), maxlen=EPISODE_WINDOW)
        self.last = dict(state["last"])

"""What a run counts, apart from time: all of it is in its checkpoints."""

from dataclasses import dataclass, field
from typing import Any

from rlx.batcher.batcher import Batcher
from rlx.run.averages import Averages, RecentEpisodes
from rlx.run.clock import Clock
from rlx.run.metrics import Value

EPISODE_WINDOW = 100
"""Training episodes that `episode/return` and `episode/length` are the mean of."""


@dataclass
class Counters:
    """How far a run is.

    Attributes:
        env_steps: environment steps so far.
        iteration: iterations so far.
        episodes: the newest training episodes that have ended, and how many there were.
        averages: what iterations reported since the last row of metrics.
        last: the last value of each episode and evaluation metric, for the summary.
        ended_early: whether a rule has ended the run.
        restarts: of workers so far; the batcher's state has them.
        dropped_steps: likewise.
    """

    env_steps: int = 0
    iteration: int = 0
    episodes: RecentEpisodes = field(default_factory=lambda: RecentEpisodes(EPISODE_WINDOW))
    averages: Averages = field(default_factory=Averages)
    last: dict[str, Any] = field(default_factory=dict[str, Any])
    ended_early: bool = False
    restarts: int = 0
    dropped_steps: int = 0

    def take_row(self, batcher: Batcher, clock: Clock) -> dict[str, Value]:
        """Return the row of the iterations since the last one, and begin the next."""
        row: dict[str, Value] = {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "wall_time": clock.wall_time,
            "episode/return": self.episodes.mean_return,
            "episode/length": self.episodes.mean_length,
            "episode/count": self.episodes.count,
            **clock.iteration(batcher, self.averages.env_steps),
            "batcher/restarts": self.restarts,
            "batcher/dropped_steps": self.dropped_steps,
            **self.averages.take(),
        }
        self.remember(row)
        return row

    def remember(self, row: dict[str, Any]) -> None:
        """Note a row's figures for the summary."""
        self.last.update({key: value for key, value in row.items() if key.startswith(("episode/", "eval/"))})

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "episodes": self.episodes.state_dict(),
            "averages": self.averages.state_dict(),
            "last": {key: value for key, value in self.last.items() if key != "eval/cpu_share"},  # which is a time
            "ended_early": self.ended_early,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another run counted."""
        self.env_steps, self.iteration = state["env_steps"], state["iteration"]
        self.episodes.load_state_dict(state["episodes"])
        self.averages.load_state_dict(state["averages"])
        self.last, self.ended_early = dict(state["last"]), state["ended_early"]

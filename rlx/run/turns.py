"""When a run evaluates, and when it hears of the result: at fixed iterations, however long the playing takes."""

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import nn

from rlx.batcher.batcher import Batcher
from rlx.run.metrics import Value
from rlx.run.options import EvaluatorLike

Report = Callable[[dict[str, Value], float], None]
"""Takes an evaluation's row, under the steps of its weights, and the seconds that the run waited for it."""


class EvaluationTurns:
    """Evaluations one after the other: each is waited for where the next one is due, or at the end of the run.

    Between these points nobody waits, and nothing depends on how long it takes. The weights that play are kept until
    their result is there: a checkpoint has them, so that a resumed run plays the same episodes again, and what is
    decided on the result (which weights were best) is decided at the same iteration as it would have been.

    Attributes:
        best: the best mean return so far, None while there is none.
    """

    def __init__(self, evaluator: EvaluatorLike, report: Report, keep_best: Callable[[int, Any], None]) -> None:
        """Prepare.

        Args:
            evaluator: plays.
            report: called with each evaluation's row.
            keep_best: called with the steps and the weights of an evaluation better than all before.
        """
        self._evaluator, self._report, self._keep_best = evaluator, report, keep_best
        self.best: float | None = None
        self._playing: dict[str, Value] | None = None  # steps and iteration of the weights that play
        self._weights: dict[str, Any] | None = None
        self._due: dict[str, Value] | None = None  # what is due, and not begun
        self._waited = 0.0

    @property
    def playing(self) -> dict[str, Value] | None:
        """Return `env_steps` and `iteration` of the weights that are being evaluated; None while none are."""
        return self._playing

    def plan(self, env_steps: int, iteration: int) -> None:
        """Note that an evaluation is due, with the weights of now; `go_on` begins it."""
        self._due = {"env_steps": env_steps, "iteration": iteration}

    def go_on(self, agent: nn.Module, batcher: Batcher) -> None:
        """Begin what is due, once the evaluation before has ended; otherwise wait for nothing.

        Args:
            agent: with the weights of now.
            batcher: what trains.
        """
        if self._due is None:
            self._evaluator.poll()
            return
        self.finish()
        started = time.perf_counter()
        self._weights = deepcopy(dict(agent.state_dict()))
        self._evaluator.begin(agent, batcher)
        self._playing, self._due = self._due, None
        self._waited = time.perf_counter() - started

    def finish(self) -> None:
        """Wait for the evaluation that was begun, if any, and report it."""
        if self._playing is None:
            return
        started = time.perf_counter()
        found = self._evaluator.finish()
        waited = self._waited + time.perf_counter() - started
        row: dict[str, Value] = {**self._playing, **found}
        if self.best is None or found["eval/return"] > self.best:
            steps = self._playing["env_steps"]
            assert isinstance(steps, int)
            # May wait for the disk, and be interrupted: it comes first, so that a resumed run then plays it all again.
            self._keep_best(steps, self._weights)
            self.best = found["eval/return"]
        self._playing = self._weights = None
        self._report(row, waited)

    def state_dict(self) -> dict[str, Any]:
        """Return what is due and what is under way, with its weights."""
        return {"best": self.best, "playing": self._playing, "weights": self._weights, "due": self._due}

    def resume(self, state: dict[str, Any], agent: nn.Module, batcher: Batcher) -> None:
        """Go on where another run was: what was under way there is begun anew, with the weights that it had.

        Args:
            state: of the other run.
            agent: has the weights of now; played with others for a moment.
            batcher: what trains.
        """
        self.best, self._due, weights = state["best"], state["due"], state["weights"]
        if state["playing"] is None:
            return
        player = deepcopy(agent)
        player.load_state_dict(weights)
        self._playing, self._weights = state["playing"], weights
        self._evaluator.begin(player, batcher)

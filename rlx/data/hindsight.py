"""Hindsight: goals that were reached later in the same episode in place of those that were pursued."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlx.data.rings import Array, Index, Rings
from rlx.data.trajectories import Trajectories
from rlx.errors import SpecError

Outcome = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the goals achieved and those pursued, `[N, ...]` each: the rewards `[N]` and whether this ends an episode."""


@dataclass(frozen=True)
class Hindsight:
    """Hindsight experience replay (Andrychowicz et al. 2017, arXiv:1707.01495), strategy "future", done when drawing.

    Of the transitions that are drawn a part gets another goal: what was achieved after one of the steps from this one
    to the end of its episode, or of what is known of it, each as likely as the others. Rewards are worked out anew.

    An episode's end follows its goal: where the new goal is reached, the transition is terminated if the task ends
    there; where a step was terminated for reaching its old goal and misses the new one, it is not. What was terminated
    for another reason stays so. Truncations are left as they are: they never depend on the goal.

    Attributes:
        ratio: part of the transitions that get another goal, 0 to 1, usually 0.8 (k = 4 of the paper).
        outcome: what a step pays and whether it ends the episode.
        achieved: the observation's key that says what was achieved: that behind a step counts for the step.
        goal: full name of the field that says what was pursued: `env/obs/desired_goal`, or `agent/option`.
    """

    ratio: float
    outcome: Outcome
    achieved: str = "obs/achieved_goal"
    goal: str = "env/obs/desired_goal"

    def relabel(
        self, rings: Rings, path: Index, reward: Array, terminated: Array, generator: torch.Generator
    ) -> Tensor:
        """Return the goals `[N, ...]` that the transitions have from now on.

        Args:
            rings: where the steps are; they keep track of episodes.
            path: `[N, n]`, the slots of n steps; those behind an episode's end mean nothing.
            reward: `[N, n]`, written anew where the goal is another.
            terminated: `[N, n]` bool, likewise.
            generator: source of the draws, on the CPU.
        """
        slots = path[:, 0]
        goal = rings.fields[self.goal].take(slots, 0)
        chance, place = torch.rand(2, len(slots), generator=generator, dtype=torch.float64).numpy()
        rows = (chance < self.ratio).nonzero()[0]
        if not len(rows):
            return torch.from_numpy(goal)
        steps_ahead = 1 + (place[rows] * rings.steps_left(slots[rows])).astype(np.int64)
        later = (slots[rows] + rings.num_envs * steps_ahead) % rings.num_slots
        old, new = goal[rows], rings.look(self.achieved, later)
        goal[rows] = new
        path = path[rows]
        achieved = rings.look(self.achieved, (path.reshape(-1) + rings.num_envs) % rings.num_slots)
        length = path.shape[1]
        pays, ends = self._outcome(achieved, new.repeat(length, 0))
        was_terminated = terminated[rows].reshape(-1)
        if was_terminated.any():
            ends |= was_terminated & ~self._outcome(achieved, old.repeat(length, 0))[1]
        reward[rows], terminated[rows] = pays.reshape(-1, length), ends.reshape(-1, length)
        return torch.from_numpy(goal)

    def check(self, trajectories: Trajectories) -> None:
        """Check that the steps of a piece were paid and ended as `outcome` says of the goals that they pursued.

        Raises:
            SpecError: one was not: rewards of other goals would be of another task.
        """
        steps, mask = trajectories.steps, trajectories.steps.mask()
        pays, ends = self.outcome(steps[f"next/{self.achieved}"][mask].cpu(), steps[self.goal][mask].cpu())
        paid, ended = steps["next/reward"][mask].cpu(), steps["next/terminated"][mask].cpu()
        wrong = (~torch.isclose(pays.float(), paid, rtol=1e-4, atol=1e-5)).nonzero().flatten()
        if len(wrong):
            raise SpecError(
                f"hindsight: a step paid {paid[wrong[0]]:.6g}, but by what it achieved and what it pursued it pays "
                f"{pays[wrong[0]]:.6g}. Expected rewards that follow from these two alone: no wrapper changes them, "
                "actions cost nothing"
            )
        if bool((ends & ~ended).any()):
            raise SpecError(
                "hindsight: a step did not end its episode, though by what it achieved and what it pursued it does"
            )

    def _outcome(self, achieved: Array, goal: Array) -> tuple[Array, Array]:
        pays, ends = self.outcome(torch.from_numpy(achieved), torch.from_numpy(goal))
        return pays.numpy(), ends.numpy()

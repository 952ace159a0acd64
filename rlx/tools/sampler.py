"""A sampler whose draws depend on the seed and on the trial's number alone, besides the trials that have ended."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GridSampler
from optuna.trial import FrozenTrial, TrialState

from rlx.seeding import derive

EXHAUSTED = "exhausted"
"""Attribute of a study whose sampler has nothing left to draw."""


class SeededSampler(BaseSampler):
    """One of Optuna's samplers, made anew for each trial.

    A study that was stopped goes on as it would have gone, and no two processes, nor one that is started again, draw
    the same numbers. What a sampler learns from is in the study's trials; none of Optuna's keeps it elsewhere.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Prepare.

        Args:
            make: makes the sampler from a seed in [0, 2**32).
            seed: root of all of its seeds.
        """
        self._make, self._seed = make, seed
        self._number = -1
        self._sampler = make(seed)  # what cannot be made is found out here

    def _made(self, what: str, trial: FrozenTrial) -> BaseSampler:
        # A grid is shuffled by the seed, and a trial's place in it means something in that order alone.
        ordered = isinstance(self._sampler, GridSampler)
        return self._make(self._seed if ordered else derive(self._seed, what, trial.number) % 2**32)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number = trial.number
            self._sampler = self._made("sampler", trial)
        return self._sampler

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is drawn together."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw what is drawn together."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the sampler know that a trial begins."""
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let a sampler know that a trial ends; where it has drawn all that there is, the study is noted as that."""
        # Some end a study themselves then, which Optuna allows to its own loop alone.
        study.stop = partial(study.set_user_attr, EXHAUSTED, True)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            self._made("end", trial).after_trial(study, trial, state, values)
        finally:
            del study.stop

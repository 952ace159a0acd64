"""Wrappers with which an environment pays no number, or never answers."""

import signal
from typing import Any

import gymnasium


class PaysNothingKnown(gymnasium.RewardWrapper):
    """Each reward is NaN."""

    def reward(self, reward: Any) -> float:
        return float("nan")


class NeverAnswers(gymnasium.Wrapper):
    """Its first step does not end."""

    def step(self, action: Any) -> Any:
        while True:
            signal.pause()

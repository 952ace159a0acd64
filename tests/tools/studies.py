"""Studies of `pretend_train.py`."""

import sys
from pathlib import Path
from typing import Any

from rlx.tools.study import Plan

COMMAND = [sys.executable, str(Path(__file__).parent / "pretend_train.py")]
WAYS = ["good", "better", "bad", "fails", "dies"]


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "title": "ppo on CartPole",
        "overrides": ["total_steps=40"],
        "own": [],
        "config_dir": None,
        "space": {"x": {"choices": WAYS}},
        "sampler": {"_target_": "optuna.samplers.RandomSampler"},
        "pruner": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 2},
        "seed": 0,
        "seeds": 1,
        "every": 10,
        "evaluations": 4,
        "last": 2,
        "most_failures": 5,
    }
    return Plan(**{**values, **changes})

"""Algorithms that learn nothing, and report to their run in a wrong way."""

from typing import Any

import torch

from rlx.agent import AgentMaker
from rlx.batcher import BatcherMaker
from rlx.run import Run

OTHERS: dict[str, dict[str, Any]] = {
    "no batcher": {"batcher": None},
    "no agent": {"agent": None},
    "number": {"updates": 3},
    "tensor": {"mean": torch.zeros(2)},
    "object": {"counters": {"of": object()}},
    "name": {"run": {"updates": 3}},
}


def train(run: Run, make_agent: AgentMaker, make_batcher: BatcherMaker, *, how: str) -> None:
    """Track what `how` says; train where nothing refuses it."""
    with make_batcher(num_steps=8) as batcher:
        if how == "log":
            run.log({}, env_steps=8)
        given = {"agent": make_agent(batcher.specs), "batcher": batcher, "counters": {"updates": 0}}
        run.track(**{**given, **OTHERS.get(how, {})})
        if how == "twice":
            run.track(**given)
        while run.running():
            run.log({}, env_steps=batcher.collect().num_steps)

"""What a run is told: its options, and the two kinds of things that it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rlx.batcher.batcher import Batcher
from rlx.run.compute import Precision
from rlx.run.lock import RunLock
from rlx.run.loggers import LoggerMaker
from rlx.run.resume import Resumption


class EvaluatorLike(Protocol):
    """What evaluates an agent beside its training."""

    def begin(self, agent: nn.Module, learner: Batcher) -> None:
        """Begin an evaluation with the weights of now, in environments as `learner` has them."""
        ...

    def poll(self) -> None:
        """Let the evaluation go on, without waiting for anything."""
        ...

    def finish(self) -> dict[str, float]:
        """Wait for the end of the evaluation, and return its metrics: `eval/return` and the like."""
        ...

    def close(self) -> None:
        """Let go of its workers."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """What a run is told besides what it computes.

    Attributes:
        directory: where it writes; must not exist, unless it is resumed.
        seed: root of all seeds of the run's own. Weights of a new agent are drawn by torch's generator, whose seed is
            set before, by `torch.manual_seed`; `rlx train` derives it from this one.
        total_steps: environment steps at which training ends.
        device: the learner's device.
        title: what runs, for the console and `log.txt`.
        command: what started it, as a shell would take it, for `log.txt`.
        config: the resolved configuration, kept in checkpoints.
        config_text: the same as YAML, kept in `config.yaml`.
        compile: compile losses.
        precision: of the losses' matrix products.
        loggers: what takes the rows, by name.
        console: show progress.
        every: environment steps between rows, which then hold means over what was left out; 0: each iteration has one.
        checkpoint_every: environment steps between checkpoints; 0 for no such rule.
        checkpoint_minutes: minutes between them; 0 for no such rule. There is always one at the end.
        keep_last: the newest checkpoints kept.
        keep_every: of those before, the first in each so many environment steps is kept, too; 0 for none.
        save_buffer: whether checkpoints hold replay buffers.
        evaluate_every: environment steps between evaluations; 0 for none.
        stop_at_return: end early once `episode/return` is at least this, over a full window; None for never.
        cores: how it uses the machine's, in words for `log.txt`.
        resume: what the run goes on from; None for a new one.
        lock: of the directory of a resumed run.
    """

    directory: Path
    seed: int
    total_steps: int
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    title: str = "run"
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config_text: str = ""
    compile: bool = False
    precision: Precision = "float32"
    loggers: Mapping[str, LoggerMaker] = field(default_factory=dict[str, LoggerMaker])
    console: bool = True
    every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 0.0
    keep_last: int = 3
    keep_every: int = 0
    save_buffer: bool = False
    evaluate_every: int = 0
    stop_at_return: float | None = None
    cores: str = ""
    resume: Resumption | None = None
    lock: RunLock | None = None

    def __post_init__(self) -> None:
        """Take names of directories and devices as well."""
        object.__setattr__(self, "directory", Path(self.directory))
        object.__setattr__(self, "device", torch.device(self.device))

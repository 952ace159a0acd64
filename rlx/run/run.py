"""A run: what an algorithm reports to, and all that is kept of it."""

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from rlx.batcher.batcher import Batcher
from rlx.run.checkpoint import prune_checkpoints, save_checkpoint
from rlx.run.console import ConsoleSink
from rlx.run.directory import CONFIG, METRICS, TENSORBOARD, create_run_directory, write_summary, write_text_atomic
from rlx.run.metrics import CsvSink, MetricSink, Value
from rlx.run.signals import StopRequested, StopSignals
from rlx.run.tensorboard import TensorBoardSink

EPISODE_WINDOW = 100
"""Training episodes that `episode/return` and `episode/length` are the mean of."""


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimisers, schedules, generators wrapped so."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides the future."""
        ...


class EvaluatorLike(Protocol):
    """What evaluates an agent between two iterations."""

    def evaluate(self, agent: nn.Module) -> dict[str, float]:
        """Return metrics, `eval/return` and the like."""
        ...

    def close(self) -> None:
        """Let go of its workers."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """What a run is told besides what it computes.

    Attributes:
        directory: where it writes; must not exist.
        config: the resolved configuration, kept in checkpoints.
        config_text: the same as YAML, kept in `config.yaml`.
        title: what runs, for the console.
        seed: root of all seeds.
        total_steps: environment steps at which training ends.
        device: the learner's device.
        csv: write `metrics.csv`.
        tensorboard: write TensorBoard events.
        console: show progress.
        checkpoint_every: environment steps between checkpoints; 0 for one at the end only.
        keep_last: checkpoints kept.
        evaluate_every: environment steps between evaluations; 0 for none.
        stop_at_return: end early once `episode/return` is at least this, over a full window; None for never.
    """

    directory: Path
    config: Mapping[str, Any]
    config_text: str
    title: str
    seed: int
    total_steps: int
    device: torch.device
    csv: bool = True
    tensorboard: bool = True
    console: bool = True
    checkpoint_every: int = 0
    keep_last: int = 3
    evaluate_every: int = 0
    stop_at_return: float | None = None


@dataclass
class _Clock:
    """Time of the run, and how much of it the learner waited for experience."""

    started: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)
    collected: float = 0.0


class Run:
    """One training run: counters, metrics, checkpoints and the one point where it may be stopped.

    An algorithm calls `track` once and `log` once an iteration. Use it in a `with` statement; nothing is written before
    `track`, so that what cannot start leaves nothing behind.

    Attributes:
        seed: root of all seeds.
        total_steps: environment steps at which training ends.
        device: the learner's device.
        env_steps: environment steps so far.
        iteration: calls of `log` so far.
    """

    def __init__(self, options: RunOptions, evaluator: EvaluatorLike | None = None) -> None:
        """Prepare a run; writes nothing yet."""
        self.options = options
        self.seed = options.seed
        self.total_steps = options.total_steps
        self.device = options.device
        self.env_steps = 0
        self.iteration = 0
        self._evaluator = evaluator
        self._tracked: dict[str, Stateful] = {}
        self._agent: nn.Module | None = None
        self._batcher: Batcher | None = None
        self._directory: Path | None = None
        self._sinks: list[MetricSink] = []
        self._console: ConsoleSink | None = None
        self._signals = StopSignals()
        self._clock = _Clock()
        self._recent: deque[tuple[float, int]] = deque(maxlen=EPISODE_WINDOW)
        self._num_episodes = 0
        self._last_row: dict[str, Value] = {}
        self._saved_at = -1
        self._stopped_early = False

    def track(self, *, agent: nn.Module, batcher: Batcher, **others: Stateful) -> None:
        """Name what the run is made of: what checkpoints hold, and where episodes and weights go.

        Publishes the agent's weights to the batcher. The run directory is created here.

        Args:
            agent: what learns; `rlx eval` rebuilds it from checkpoints.
            batcher: what collects.
            others: optimisers, schedules, normalisers, target networks: anything with `state_dict`.

        Raises:
            RunDirectoryError: the run directory exists.
        """
        self._agent, self._batcher = agent, batcher
        self._tracked = {"agent": agent, **others}
        batcher.publish(agent)
        options = self.options
        self._directory = create_run_directory(options.directory)
        write_text_atomic(self._directory / CONFIG, options.config_text)
        if options.csv:
            self._sinks.append(CsvSink(self._directory / METRICS))
        if options.tensorboard:
            self._sinks.append(TensorBoardSink(self._directory / TENSORBOARD))
        if options.console:
            self._console = ConsoleSink(self.total_steps, options.title)
            self._sinks.append(self._console)
        self._clock.last = time.perf_counter()
        self._clock.collected = batcher.collect_seconds

    def running(self) -> bool:
        """Return whether there is more to do: `total_steps` not reached, and no rule has ended the run early."""
        return self.env_steps < self.total_steps and not self._stopped_early

    def log(self, terms: Mapping[str, Tensor | float], *, env_steps: int) -> None:
        """End an iteration: count its steps, write a row, save and evaluate when due, and stop if asked to.

        The only point where checkpoints are written and signals are obeyed.

        Args:
            terms: what to log, 0-dimensional tensors or numbers, under names such as `loss/policy`.
            env_steps: valid environment steps of this iteration.

        Raises:
            StopRequested: a signal asked the run to stop; a checkpoint was written.
        """
        assert self._batcher is not None, "track() comes first"
        self.iteration += 1
        before, self.env_steps = self.env_steps, self.env_steps + env_steps
        row = self._counters(env_steps)
        row.update({key: float(value) for key, value in terms.items()})
        if self._due(self.options.evaluate_every, before) and self._evaluator is not None and self._agent is not None:
            row.update(self._evaluator.evaluate(self._agent))
        self._last_row = row
        for sink in self._sinks:
            sink.write(row)
        goal, reached = self.options.stop_at_return, row["episode/return"]
        if goal is not None and len(self._recent) == EPISODE_WINDOW and cast(float, reached) >= goal:
            self._stopped_early = True
        stop = self._signals.reached()
        if stop is not None or self._due(self.options.checkpoint_every, before):
            self.save()
        if stop is not None:
            raise StopRequested(stop, safe=True)

    def save(self) -> Path:
        """Write a checkpoint of everything tracked, and return its path."""
        assert self._directory is not None, "track() comes first"
        assert self._batcher is not None
        for sink in self._sinks:
            sink.flush()
        state = {name: value.state_dict() for name, value in self._tracked.items()}
        meta = {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "specs": self._batcher.specs.to_dict(),
            "episodes": self._num_episodes,
        }
        path = save_checkpoint(self._directory, state, self.options.config, meta)
        prune_checkpoints(self._directory, self.options.keep_last)
        self._saved_at = self.env_steps
        return path

    def average_gradients(self, module: nn.Module) -> None:
        """Average gradients over the ranks of a distributed learner; alone, nothing."""

    def _due(self, every: int, before: int) -> bool:
        return every > 0 and (self.env_steps // every > before // every or not self.running())

    def _counters(self, env_steps: int) -> dict[str, Value]:
        assert self._batcher is not None
        now, clock, batcher = time.perf_counter(), self._clock, self._batcher
        seconds = max(now - clock.last, 1e-9)
        collect = max(batcher.collect_seconds - clock.collected, 1e-9)
        learn = max(seconds - collect, 1e-9)
        clock.last, clock.collected = now, batcher.collect_seconds
        self._recent.extend((episode[1], episode[2]) for episode in batcher.episodes)
        self._num_episodes += len(batcher.episodes)
        batcher.episodes.clear()
        count = len(self._recent)
        return {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "wall_time": now - clock.started,
            "episode/return": sum(episode[0] for episode in self._recent) / count if count else None,
            "episode/length": sum(episode[1] for episode in self._recent) / count if count else None,
            "episode/count": self._num_episodes,
            "speed/steps_per_second": env_steps / seconds,
            "speed/collect_steps_per_second": env_steps / collect,
            "speed/learn_steps_per_second": env_steps / learn,
        }

    def __enter__(self) -> Self:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._directory is not None:
                self._end(error)
        finally:
            if self._evaluator is not None:
                self._evaluator.close()
            self._signals.__exit__(kind, error, traceback)

    def _end(self, error: BaseException | None) -> None:
        """Write the last checkpoint, the summary, and close the logs."""
        assert self._directory is not None
        assert self._batcher is not None
        # A stop while the batcher was waiting finds all as the last log() left it; inside an update it would not.
        consistent = error is None or (isinstance(error, KeyboardInterrupt) and self._batcher.waiting)
        if consistent and self.env_steps != self._saved_at:
            self.save()
        status = "done" if error is None else "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        last = {key: value for key, value in self._last_row.items() if key.startswith(("episode/", "eval/"))}
        reason = None if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
        summary = {
            "status": status,
            "reason": reason,
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "wall_time": time.perf_counter() - self._clock.started,
            "checkpoint": self._saved_at if self._saved_at >= 0 else None,
            **last,
        }
        write_summary(self._directory, summary)
        for sink in self._sinks:
            if sink is not self._console:
                sink.close()
        if self._console is not None:
            self._console.close(None if status == "failed" else _result(summary, self._directory))


def _result(summary: Mapping[str, Any], directory: Path) -> str:
    mean = summary.get("episode/return")
    shown = "no episode ended" if mean is None else f"mean return {mean:.2f} over the last training episodes"
    steps, seconds = summary["env_steps"], summary["wall_time"]
    with contextlib.suppress(ValueError):
        directory = directory.relative_to(Path.cwd())
    return f"{summary['status']}: {shown}, {steps:,} steps in {seconds:.1f} s\n{directory}"

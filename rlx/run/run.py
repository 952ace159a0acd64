"""A run: what an algorithm reports to, and all that is kept of it."""

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from torch import Tensor, nn

from rlx.batcher.batcher import Batcher
from rlx.data import Trajectories
from rlx.errors import RlxError, RunWriteError
from rlx.run.averages import Averages, RecentEpisodes
from rlx.run.batches import failed_loss
from rlx.run.checkpoint import list_checkpoints, prune_checkpoints, save_checkpoint
from rlx.run.compute import Compute
from rlx.run.console import ConsoleSink
from rlx.run.directory import (
    CONFIG,
    FAILED,
    LOG,
    METRICS,
    TENSORBOARD,
    create_run_directory,
    write_summary,
    write_text_atomic,
)
from rlx.run.files import reason_of
from rlx.run.log import RunLog, surroundings
from rlx.run.metrics import CsvSink, MetricSink, Row, Value
from rlx.run.options import EvaluatorLike, RunOptions, Stateful
from rlx.run.signals import StopRequested, StopSignals
from rlx.run.tensorboard import TensorBoardSink

EPISODE_WINDOW = 100
"""Training episodes that `episode/return` and `episode/length` are the mean of."""


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
        compute: what makes an algorithm's loss what is called: compiled, in mixed precision, or as it is.
        env_steps: environment steps so far.
        iteration: calls of `log` so far.
    """

    def __init__(self, options: RunOptions, evaluator: EvaluatorLike | None = None) -> None:
        """Prepare a run; writes nothing yet."""
        self.options = options
        self.seed = options.seed
        self.total_steps = options.total_steps
        self.device = options.device
        self.compute = Compute(options.device, compile=options.compile, precision=options.precision)
        self.env_steps = 0
        self.iteration = 0
        self._evaluator = evaluator
        self._tracked: dict[str, Stateful] = {}
        self._agent: nn.Module | None = None
        self._batcher: Batcher | None = None
        self._directory: Path | None = None
        self._sinks: list[MetricSink] = []
        self._console: ConsoleSink | None = None
        self._log = RunLog()
        self._signals = StopSignals()
        self._clock = _Clock()
        self._episodes = RecentEpisodes(EPISODE_WINDOW)
        self._averages = Averages()
        self._last_row: dict[str, Value] = {}
        self._evaluating: dict[str, Value] | None = None  # steps and iteration of the weights that are being evaluated
        self._evaluation_wait = 0.0
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
            ConfigError: the run is to be compiled or in mixed precision, and the algorithm does not see to it.
            RunDirectoryError: the run directory exists.
            RunWriteError: nothing can be written there; it has been removed again.
        """
        self.compute.check_used(self.options.title)
        self._agent, self._batcher = agent, batcher
        self._tracked = {"agent": agent, **others}
        batcher.publish(agent)
        options = self.options
        directory = create_run_directory(options.directory)
        try:
            self._open(directory)
        except OSError as error:
            for sink in self._sinks:
                sink.close()
            self._log.close()
            shutil.rmtree(directory, ignore_errors=True)
            where = error.filename or str(directory)
            raise RunWriteError(f"cannot write '{where}': {reason_of(error)}; no run was started") from error
        self._directory = directory
        if options.console:
            self._console = ConsoleSink(self.total_steps, options.title)
            self._sinks.append(self._console)
        self._clock.last = time.perf_counter()
        self._clock.collected = batcher.collect_seconds

    def _open(self, directory: Path) -> None:
        """Make the files of a run directory; the console comes later, when nothing can fail any more."""
        options = self.options
        assert self._batcher is not None
        write_text_atomic(directory / CONFIG, options.config_text)
        self._log.open(directory / LOG)
        self._log.info(f"begins: {options.title}, {self.total_steps:,} steps")
        for line in surroundings(options.command):
            self._log.info(line)
        self._log.info(f"seed: {self.seed}; {self._batcher.num_envs} environments; device: {self.device}")
        if options.csv:
            self._sinks.append(CsvSink(directory / METRICS))
        if options.tensorboard:
            self._sinks.append(TensorBoardSink(directory / TENSORBOARD))

    def running(self) -> bool:
        """Return whether there is more to do: `total_steps` not reached, and no rule has ended the run early."""
        return self.env_steps < self.total_steps and not self._stopped_early

    def log(self, terms: Mapping[str, Tensor | float], *, env_steps: int) -> None:
        """End an iteration: count its steps; write a row, save and begin to evaluate when due; and stop if asked to.

        The only point where checkpoints are written and signals are obeyed.

        Args:
            terms: what to log, 0-dimensional tensors or numbers, under names such as `loss/policy`.
            env_steps: valid environment steps of this iteration.

        Raises:
            StopRequested: a signal asked the run to stop; a checkpoint was written.
            RunWriteError: the row or the checkpoint could not be written; a run that cannot log ends.
        """
        assert self._batcher is not None, "track() comes first"
        self.iteration += 1
        before, self.env_steps = self.env_steps, self.env_steps + env_steps
        self._averages.add(terms, env_steps)
        self._episodes.take(self._batcher.episodes)
        goal = self.options.stop_at_return
        if goal is not None and self._episodes.is_full and (reached := cast(float, self._episodes.mean_return)) >= goal:
            self._stopped_early = True
            self._log.info(f"stop_at_return: the mean return of the last {EPISODE_WINDOW} episodes is {reached:.6g}")
        every = self.options.every
        if not every or self._due(every, before) or self._stopped_early or self._signals.requested is not None:
            self._write_row()
        self._evaluate(before)
        stop = self._signals.reached()
        if stop is not None or self._due(self.options.checkpoint_every, before):
            self.save()
        if stop is not None:
            raise StopRequested(stop, safe=True)

    def save(self) -> Path:
        """Write a checkpoint of everything tracked, and return its path.

        Raises:
            RunWriteError: it cannot be written; those before it are as they were.
        """
        assert self._directory is not None, "track() comes first"
        assert self._batcher is not None
        try:
            for sink in self._sinks:
                sink.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        state = {name: value.state_dict() for name, value in self._tracked.items()}
        meta = {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "specs": self._batcher.specs.to_dict(),
            "episodes": self._episodes.count,
        }
        path = save_checkpoint(self._directory, state, self.options.config, meta)
        prune_checkpoints(self._directory, self.options.keep_last)
        self._saved_at = self.env_steps
        self._log.info(f"checkpoint at {self.env_steps:,} steps: {path.relative_to(self._directory)}")
        return path

    def _evaluate(self, before: int) -> None:
        """Begin an evaluation when one is due; what the one before found is written then, or at the end of the run.

        Between these points nobody waits for it, and nothing depends on how long it takes.
        """
        evaluator, agent, batcher = self._evaluator, self._agent, self._batcher
        if evaluator is None or agent is None or batcher is None:
            return
        if not self._due(self.options.evaluate_every, before):
            evaluator.poll()
            return
        self._finish_evaluation(evaluator)
        started = time.perf_counter()
        self._evaluating = {"env_steps": self.env_steps, "iteration": self.iteration}
        evaluator.begin(agent, batcher)
        self._evaluation_wait = time.perf_counter() - started
        if not self.running():
            self._finish_evaluation(evaluator)

    def _finish_evaluation(self, evaluator: EvaluatorLike) -> None:
        """Wait for the evaluation that was begun, if any, and write its row, under the steps of its weights."""
        if self._evaluating is None:
            return
        started = time.perf_counter()
        found = evaluator.finish()
        now = time.perf_counter()
        waited = self._evaluation_wait + now - started
        row: dict[str, Value] = {**self._evaluating, "wall_time": now - self._clock.started, **found}
        row["time/eval_wait"] = waited
        self._evaluating = None
        self._clock.last += waited  # neither collecting nor learning
        self._last_row.update(found)
        self._write(row)
        told = ", ".join(f"{key} {value:.6g}" for key, value in found.items())
        self._log.info(f"evaluation at {row['env_steps']:,} steps: {told}; waited for {waited:.3f} s")

    def _write_row(self) -> None:
        """Write the row of the iterations since the last one."""
        row = self._counters(self._averages.env_steps)
        row.update(self._averages.take())
        self._last_row.update(row)
        self._write(row)

    def _write(self, row: Row) -> None:
        try:
            for sink in self._sinks:
                sink.write(row)
        except OSError as error:
            raise self._cannot_write(error) from error

    def check_loss(self, loss: Tensor, batch: Trajectories, agent: nn.Module) -> None:
        """Stop before a step on a loss that is NaN or infinite; what it came from is saved in `failed/`.

        Args:
            loss: 0-dimensional.
            batch: what it was computed on: `failed/batch.safetensors`, see `rlx.run.batches.load_batch`.
            agent: with which weights: `failed/agent.safetensors`, its `state_dict`.

        Raises:
            LossError: it is not finite.
            RunWriteError: nor could that be saved.
        """
        if bool(loss.isfinite()):
            return
        assert self._directory is not None, "track() comes first"
        raise failed_loss(loss, self._directory / FAILED, batch, agent, self.env_steps)

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
        return {
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "wall_time": now - clock.started,
            "episode/return": self._episodes.mean_return,
            "episode/length": self._episodes.mean_length,
            "episode/count": self._episodes.count,
            "speed/steps_per_second": env_steps / seconds,
            "speed/collect_steps_per_second": env_steps / collect,
            "speed/learn_steps_per_second": env_steps / learn,
            "batcher/restarts": batcher.restarts,
            "batcher/dropped_steps": batcher.dropped_steps,
        }

    def _cannot_write(self, error: OSError) -> RunWriteError:
        return RunWriteError(f"cannot write '{error.filename or self._directory}': {reason_of(error)}")

    def __enter__(self) -> Self:
        self._signals.__enter__()
        self._log.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._directory is not None:
                self._end(error, self._directory)
        finally:
            if self._evaluator is not None:
                self._evaluator.close()
            self._log.__exit__(kind, error, traceback)
            self._signals.__exit__(kind, error, traceback)

    def _end(self, error: BaseException | None, directory: Path) -> None:
        """Write the last checkpoint, the summary, and close the logs.

        Raises:
            RunWriteError: something of that, or what ended the run, could not be written; says what is left.
        """
        assert self._batcher is not None
        problem = error if isinstance(error, RunWriteError) else None
        # A stop while the batcher was waiting finds all as the last log() left it; inside an update it would not. What
        # could not be written was found out by log() itself.
        stopped = isinstance(error, KeyboardInterrupt)
        if self._evaluating is not None and stopped:
            self._log.info(f"the evaluation at {self._evaluating['env_steps']:,} steps was cut off")
        waiting = self._batcher.waiting or (self._evaluator is not None and self._evaluator.waiting)
        consistent = error is None or problem is not None or (stopped and waiting)
        if consistent and problem is None and self._averages:  # stopped between two rows
            try:
                self._write_row()
            except RunWriteError as unwritten:
                problem = unwritten
        if consistent and self.env_steps != self._saved_at:
            try:
                self.save()
            except RlxError as unsaved:
                problem = problem or unsaved
        failed = problem or (None if stopped else error)
        summary = self._summary("failed" if failed else "stopped" if stopped else "done", failed or error)
        own = [sink.close for sink in self._sinks if sink is not self._console]
        for finish in (lambda: write_summary(directory, summary), *own):
            try:
                finish()
            except OSError as unwritten:
                problem = problem or self._cannot_write(unwritten)
        if isinstance(problem, RunWriteError):
            found, problem = problem, RunWriteError(f"{problem}. {self._what_is_left(directory)}")
            problem.__cause__ = found
        # Where something else failed before, that is what the user is to hear of.
        told = problem if error is None or stopped or isinstance(error, RunWriteError) else error
        where = f"at {self.env_steps:,} steps, after {summary['wall_time']:.1f} s"
        if told is not None:
            self._log.error(f"failed {where}", told)
        else:
            self._log.info(f"{'done' if error is None else str(error) or 'interrupted'} {where}")
        if self._console is not None:
            self._console.close(_result(summary, directory) if told is None else None)
        if told is not None and told is not error:
            raise told from told.__cause__

    def _summary(self, status: str, reason: BaseException | None) -> dict[str, Any]:
        last = {key: value for key, value in self._last_row.items() if key.startswith(("episode/", "eval/"))}
        return {
            "status": status,
            "reason": None if reason is None else f"{type(reason).__name__}: {reason}".splitlines()[0],
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "wall_time": time.perf_counter() - self._clock.started,
            "checkpoint": self._saved_at if self._saved_at >= 0 else None,
            **last,
        }

    def _what_is_left(self, directory: Path) -> str:
        """Return where a run that could not write ended, and what of it can still be used."""
        signal = self._signals.requested
        ended = f"The run ended at {self.env_steps:,} steps{f', asked to by {signal.name}' if signal else ''}"
        if not directory.is_dir():
            return f"{ended}; its directory '{directory}' is gone."
        kept = list_checkpoints(directory)
        return f"{ended}; its last checkpoint is '{kept[-1]}'." if kept else f"{ended}; it has no checkpoint."


def _result(summary: Mapping[str, Any], directory: Path) -> str:
    mean = summary.get("episode/return")
    shown = "no episode ended" if mean is None else f"mean return {mean:.2f} over the last training episodes"
    steps, seconds = summary["env_steps"], summary["wall_time"]
    with contextlib.suppress(ValueError, OSError):  # it lies elsewhere, or somebody removed the working directory
        directory = directory.relative_to(Path.cwd())
    return f"{summary['status']}: {shown}, {steps:,} steps in {seconds:.1f} s\n{directory}"

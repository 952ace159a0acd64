"""A run: what an algorithm reports to, and all that is kept of it."""

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from rlx.batcher.batcher import Batcher
from rlx.data import ReplayBuffer, Trajectories
from rlx.errors import RlxError, RunWriteError
from rlx.run.batches import failed_loss
from rlx.run.checkpoint import remove_checkpoint
from rlx.run.clock import Clock
from rlx.run.compute import Compute
from rlx.run.counters import EPISODE_WINDOW, Counters
from rlx.run.directory import (
    CHECKPOINTS,
    CONFIG,
    FAILED,
    LOG,
    SUMMARY,
    create_run_directory,
    discard_run_directory,
    write_summary,
    write_text_atomic,
)
from rlx.run.ending import last_words, summary_of, what_is_left
from rlx.run.files import reason_of
from rlx.run.lock import RunLock
from rlx.run.log import RunLog, surroundings
from rlx.run.metrics import Value
from rlx.run.options import EvaluatorLike, RunOptions
from rlx.run.resume import take_up
from rlx.run.saver import BEST, Saver
from rlx.run.signals import StopRequested, StopSignals
from rlx.run.sinks import Sinks
from rlx.run.tracked import Tracked, global_generators, set_global_generators, state_of
from rlx.run.turns import EvaluationTurns

_log = logging.getLogger(__name__)


class Run:
    """One training run: counters, metrics, checkpoints and the one point where it may be stopped.

    An algorithm calls `track` once and `log` once an iteration. Use it in a `with` statement; nothing is written before
    `track`, so that what cannot start leaves nothing behind.

    Attributes:
        seed: root of all seeds.
        total_steps: environment steps at which training ends.
        device: the learner's device.
        compute: what makes an algorithm's loss what is called: compiled, in mixed precision, or as it is.
    """

    def __init__(self, options: RunOptions, evaluator: EvaluatorLike | None = None) -> None:
        """Prepare a run; writes nothing yet."""
        self.options = options
        self.seed = options.seed
        self.total_steps = options.total_steps
        self.device = options.device
        self.compute = Compute(options.device, compile=options.compile, precision=options.precision)
        self._counters = Counters()
        self._evaluator = evaluator
        self._turns = None if evaluator is None else EvaluationTurns(evaluator, self._evaluated, self._keep_best)
        self._tracked: dict[str, Tracked] = {}
        self._agent: nn.Module | None = None
        self._batcher: Batcher | None = None
        self._directory: Path | None = None
        self._lock = options.lock
        self._saver: Saver | None = None
        self._sinks = Sinks()
        self._log = RunLog()
        self._signals = StopSignals()
        self._signals.at_once = True  # until there is a directory to save anything in
        self._clock = Clock()

    @property
    def env_steps(self) -> int:
        """Return the environment steps so far."""
        return self._counters.env_steps

    @property
    def iteration(self) -> int:
        """Return the calls of `log` so far."""
        return self._counters.iteration

    def track(self, *, agent: nn.Module, batcher: Batcher, **others: Tracked) -> None:
        """Name what the run is made of: what checkpoints hold, and where episodes and weights go.

        A resumed run takes up its state here. Publishes the agent's weights to the batcher. The run directory is
        created here.

        Args:
            agent: what learns; `rlx eval` rebuilds it from checkpoints.
            batcher: what collects.
            others: all else that decides what follows: optimisers, schedules, target networks, replay buffers (anything
                with `state_dict` and `load_state_dict`), generators, and dictionaries of an algorithm's own counters.

        Raises:
            ConfigError: the run is to be compiled or in mixed precision, and the algorithm does not see to it.
            RunDirectoryError: the run directory exists.
            RunWriteError: nothing can be written there; it has been removed again.
            ConfigError: a logger does not begin; likewise.
            CheckpointError: what the run is to be resumed from does not fit; names the field, and both shapes.
        """
        self.compute.check_used(self.options.title)
        self._agent, self._batcher = agent, batcher
        options = self.options
        found = options.resume
        everything: dict[str, Tracked] = {"agent": agent, **others}
        kept = options.save_buffer
        self._tracked = {name: it for name, it in everything.items() if kept or not isinstance(it, ReplayBuffer)}
        if found is None:
            batcher.publish(agent)
        problems = [] if found is None else take_up(found, everything, batcher, self._own_state())
        self._signals.at_once = False
        directory = create_run_directory(options.directory) if found is None else found.directory
        try:
            if self._lock is None:
                self._lock = RunLock(directory).acquire()
            self._open(directory)
        except (OSError, RlxError) as error:
            self._sinks.close()
            self._log.close()
            if found is None:
                discard_run_directory(directory)
            if isinstance(error, RlxError):
                raise
            told = f"cannot write '{error.filename or directory}': {reason_of(error)}; no run was started"
            raise RunWriteError(told) from error
        self._directory = directory
        self._saver = Saver(directory, keep_last=options.keep_last, keep_every=options.keep_every)
        if found is not None:
            self._resume(problems)
        self._sinks.show(options, self.env_steps)
        self._clock = Clock(batcher, self.device, before=0.0 if found is None else found.checkpoint.meta["wall_time"])
        if found is not None:
            self._go_on_evaluating()
            if not set_global_generators(found.checkpoint.state["run"]["generators"]):
                _log.warning("resume: the generators of the GPUs could not be taken up")

    def _open(self, directory: Path) -> None:
        """Make the files of a run directory, or go on with them; the console comes later, when nothing can fail."""
        options, found = self.options, self.options.resume
        assert self._batcher is not None
        write_text_atomic(directory / CONFIG, options.config_text)
        self._log.open(directory / LOG)
        if found is None:
            self._log.info(f"begins: {options.title}, {self.total_steps:,} steps")
        else:
            self._log.info(f"resumes from {found.path.name}: {options.title}, {self.total_steps:,} steps")
        for line in surroundings(options.command):
            self._log.info(line)
        about = f"seed: {self.seed}; {self._batcher.num_envs} environments; device: {self.device}"
        for line in filter(None, (about, options.cores)):
            self._log.info(line)
        self._sinks.open(directory, options)

    def _resume(self, problems: list[str]) -> None:
        """Take up what the run itself is, once its files are open, and say what could not be taken up."""
        found, batcher, agent, saver = self.options.resume, self._batcher, self._agent, self._saver
        assert found is not None
        assert batcher is not None
        assert agent is not None
        assert saver is not None
        state = found.checkpoint.state["run"]
        self._counters.load_state_dict(state["counters"])
        if "stop_at_return" in found.changes:
            self._counters.ended_early = False
        saver.saved_at = self.env_steps
        if self._turns is not None and state["evaluation"] is not None:
            self._turns.resume(state["evaluation"], agent, batcher)
        for path in found.damaged:
            remove_checkpoint(path)
        with contextlib.suppress(FileNotFoundError):
            (found.directory / SUMMARY).unlink()
        for problem in problems:
            _log.warning("resume: exact=false: %s", problem)
        exact = "exact=false" if problems else "all goes on as if it had never stopped (exact=true)"
        self._log.info(f"resumed at {self.env_steps:,} steps: {exact}")

    def running(self) -> bool:
        """Return whether there is more to do: `total_steps` not reached, and no rule has ended the run early."""
        return self.env_steps < self.total_steps and not self._counters.ended_early

    def log(self, terms: Mapping[str, Tensor | float], *, env_steps: int) -> None:
        """End an iteration: count its steps; write a row, save and begin to evaluate when due; and stop if asked to.

        The only point where checkpoints are written and signals are obeyed.

        Args:
            terms: what to log, 0-dimensional tensors or numbers, under names such as `loss/policy`.
            env_steps: valid environment steps of this iteration.

        Raises:
            StopRequested: a signal asked the run to stop; a checkpoint is written as the run is left.
            RunWriteError: the row, or two checkpoints in turn, could not be written; a run that cannot log ends.
        """
        assert self._batcher is not None, "track() comes first"
        counters = self._counters
        counters.iteration += 1
        before, counters.env_steps = counters.env_steps, counters.env_steps + env_steps
        counters.averages.add(terms, env_steps)
        counters.episodes.take(self._batcher.episodes)
        goal, reached = self.options.stop_at_return, counters.episodes.mean_return
        if goal is not None and counters.episodes.is_full and reached is not None and reached >= goal:
            counters.ended_early = True
            self._log.info(f"stop_at_return: the mean return of the last {EPISODE_WINDOW} episodes is {reached:.6g}")
        if not self.options.every or self._due(self.options.every, before):
            self._write_row()
        if self._turns is not None and self._due(self.options.evaluate_every, before):
            self._turns.plan(self.env_steps, self.iteration)
        stop = self._signals.reached()
        if stop is None:
            try:
                self._go_on_evaluating()
            except StopRequested:  # it took too long: what is due stays so, for a resumed run
                self._signals.hold()
                self.save()
                raise
            stop = self._signals.reached()
        if stop is not None or not self.running() or self._due(self.options.checkpoint_every, before) or self._late():
            self.save()
        if stop is not None:
            raise StopRequested(stop, safe=True)

    def save(self, *, between_pieces: bool = True) -> None:
        """Begin to write a checkpoint of everything tracked; the run waits while it is copied only.

        Args:
            between_pieces: whether the batcher is; else its state is not there to be saved.

        Raises:
            RunWriteError: neither this checkpoint nor the last one could be written; those before are as they were.
        """
        assert self._saver is not None, "track() comes first"
        assert self._batcher is not None
        self._clock.saved = time.perf_counter()
        state: dict[str, Any] = {name: state_of(value) for name, value in self._tracked.items()}
        state["batcher"] = self._batcher.state_dict() if between_pieces else None
        state["run"] = self._own_state()
        logs, files = self._sinks.positions()
        meta = self._meta(self.env_steps, self.iteration) | {"logs": logs}
        name = self._saver.save(state, self.options.config, meta, logs=files)
        self._log.info(f"checkpoint at {self.env_steps:,} steps: {CHECKPOINTS}/{name}")

    def _own_state(self) -> dict[str, Any]:
        """Return what the run itself is."""
        return {
            "counters": self._counters.state_dict(),
            "evaluation": None if self._turns is None else self._turns.state_dict(),
            "generators": global_generators(),
        }

    def _meta(self, env_steps: int, iteration: int | None) -> dict[str, Any]:
        """Return what is noted about a checkpoint."""
        assert self._batcher is not None
        return {
            "env_steps": env_steps,
            "iteration": iteration,
            "specs": self._batcher.specs.to_dict(),
            "episodes": self._counters.episodes.count,
            "wall_time": self._clock.wall_time,
            "title": self.options.title,
        }

    def _keep_best(self, env_steps: int, weights: dict[str, Any]) -> None:
        """Save weights that were better than all before: `checkpoints/best`."""
        assert self._saver is not None
        self._saver.save({"agent": weights}, self.options.config, self._meta(env_steps, None), name=BEST)

    def _go_on_evaluating(self) -> None:
        """Begin an evaluation when one is due, and wait for the last one of the run."""
        if self._turns is None or self._agent is None or self._batcher is None:
            return
        self._turns.go_on(self._agent, self._batcher)
        if not self.running():
            self._turns.finish()

    def _evaluated(self, found: dict[str, Value], waited: float) -> None:
        """Write an evaluation's row."""
        self._clock.leave_out(waited)
        row = {**found, "wall_time": self._clock.wall_time, "time/eval_wait": waited}
        self._counters.remember(row)
        self._sinks.write(row)
        told = ", ".join(f"{key} {value:.6g}" for key, value in found.items() if key.startswith("eval/"))
        self._log.info(f"evaluation at {row['env_steps']:,} steps: {told}; waited for {waited:.3f} s")

    def _write_row(self) -> None:
        """Write the row of the iterations since the last one."""
        assert self._batcher is not None
        self._sinks.write(self._counters.take_row(self._batcher, self._clock))

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

    def _late(self) -> bool:
        """Return whether the last checkpoint lies far back in time; nothing of a run's results depends on when."""
        minutes = self.options.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self._clock.saved >= 60 * minutes

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
            if self._lock is not None:
                self._lock.release()
            self._log.__exit__(kind, error, traceback)
            self._signals.__exit__(kind, error, traceback)

    def _end(self, error: BaseException | None, directory: Path) -> None:
        """Write the last checkpoint where log() has not, the summary, and close the logs.

        Raises:
            RunWriteError: something of that, or what ended the run, could not be written; says what is left.
        """
        assert self._batcher is not None
        assert self._saver is not None
        self._signals.hold()
        stopped = isinstance(error, KeyboardInterrupt)
        problem = error if isinstance(error, RunWriteError) else None
        if stopped and self._turns is not None and self._turns.playing is not None:
            steps = self._turns.playing["env_steps"]
            self._log.info(f"the evaluation at {steps:,} steps was cut off; a resumed run plays it again")
        # A stop while the batcher was waiting finds all as the last log() left it; inside an update it would not. What
        # could not be written was found out by log() itself.
        consistent = error is None or problem is not None or (stopped and self._batcher.waiting)
        try:
            self._saver.wait(last=True)
            if consistent and self.env_steps != self._saver.saved_at:
                self.save(between_pieces=False)
                self._saver.wait(last=True)
            if problem is None and stopped and self._counters.averages:
                self._write_row()  # of what came since the last row; a resumed run cuts it off, and goes on with it
        except RlxError as unsaved:
            problem = problem or unsaved
        failed = problem or (None if stopped else error)
        status = "failed" if failed else "stopped" if stopped else "done"
        wall_time = self._clock.wall_time
        saved_at = self._saver.saved_at
        summary = summary_of(status, failed or error, self._counters, wall_time=wall_time, checkpoint=saved_at)
        unwritten = self._sinks.close()
        try:
            write_summary(directory, summary)
        except OSError as wrong:
            unwritten.insert(0, wrong)
        if unwritten and problem is None:
            problem = RunWriteError(f"cannot write '{unwritten[0].filename or directory}': {reason_of(unwritten[0])}")
        if isinstance(problem, RunWriteError):
            asked = self._signals.requested
            left = what_is_left(directory, self.env_steps, None if asked is None else asked.name)
            found, problem = problem, RunWriteError(f"{problem}. {left}")
            problem.__cause__ = found
        # Where something else failed before, that is what the user is to hear of.
        told = problem if error is None or stopped or isinstance(error, RunWriteError) else error
        where = f"at {self.env_steps:,} steps, after {wall_time:.1f} s"
        if told is not None:
            self._log.error(f"failed {where}", told)
        else:
            self._log.info(f"{'done' if error is None else str(error) or 'interrupted'} {where}")
        self._sinks.say_last(last_words(summary, directory) if told is None else None)
        if told is not None and told is not error:
            raise told from told.__cause__

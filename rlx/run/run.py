"""A run: what an algorithm reports to, and all that is kept of it."""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from rlx.batcher.batcher import Batcher
from rlx.data import ReplayBuffer, Trajectories
from rlx.errors import RlxError, RunWriteError, UserError
from rlx.run.agreement import Iteration, agree, agree_on_stop
from rlx.run.batches import failed_loss
from rlx.run.clock import Clock
from rlx.run.compute import Compute
from rlx.run.counters import EPISODE_WINDOW, Counters
from rlx.run.directory import FAILED
from rlx.run.ending import summary_of
from rlx.run.metrics import Value
from rlx.run.options import EvaluatorLike, RunOptions
from rlx.run.rank_states import gather_states
from rlx.run.ranks import Ranks
from rlx.run.records import Records
from rlx.run.resume import take_up
from rlx.run.signals import StopRequested, StopSignals
from rlx.run.tracked import (
    Tracked,
    check_tracked,
    global_generators,
    seed_global_generators,
    set_global_generators,
    state_of,
)
from rlx.run.turns import EvaluationTurns
from rlx.seeding import derive

_log = logging.getLogger(__name__)


class Run:
    """One training run: counters, metrics, checkpoints and the one point where it may be stopped.

    An algorithm calls `track` once and `log` once an iteration. Use it in a `with` statement; nothing is written before
    `track`, so that what cannot start leaves nothing behind.

    Attributes:
        seed: root of all seeds that this process draws from.
        total_steps: environment steps at which training ends.
        device: the learner's device.
        compute: what makes an algorithm's loss what is called: compiled, in mixed precision, or as it is.
        ranks: this process among those that learn together; for most runs, alone.
    """

    def __init__(self, options: RunOptions, evaluator: EvaluatorLike | None = None, ranks: Ranks | None = None) -> None:
        """Prepare a run; writes nothing yet.

        Args:
            options: what it is told.
            evaluator: what evaluates; of several ranks, rank 0 has it.
            ranks: those that learn together; None for a run alone.
        """
        self.options = options
        self.ranks = Ranks() if ranks is None else ranks
        self.seed = derive(options.seed, "rank", self.ranks.rank) if self.ranks.rank else options.seed
        self.total_steps = options.total_steps
        self.device = options.device
        self.compute = Compute(options.device, compile=options.compile, precision=options.precision)
        self._counters = Counters()
        self._evaluator = evaluator
        self._opened = ExitStack()
        self._kept_evaluation: dict[str, Any] | None = None  # of a run that is resumed without: which was the best
        self._turns = None if evaluator is None else EvaluationTurns(evaluator, self._evaluated, self._keep_best)
        self._tracked: dict[str, Tracked] = {}
        self._agent: nn.Module | None = None
        self._batcher: Batcher | None = None
        self._records = Records(options, writes=self.ranks.rank == 0)
        self._samples = 0  # of this rank's updates since the last `log`
        self._signals = StopSignals()
        self._signals.at_once = True  # until there is a directory to save anything in
        self._clock = Clock()

    @property
    def env_steps(self) -> int:
        """Return the environment steps so far, of all ranks."""
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
                with `state_dict` and `load_state_dict`), generators, further batchers (once they have weights), and
                tensors and dictionaries of an algorithm's own numbers, which it changes in place.

        Raises:
            UserError: a checkpoint cannot hold something, or it is called again.
            ConfigError: the algorithm does not see to what compile or precision ask for; or a logger does not begin.
            RunDirectoryError: the run directory exists.
            RunWriteError: nothing can be written there; it has been removed again.
            CheckpointError: what the run is to be resumed from does not fit; names the field, and both shapes.
        """
        if self._batcher is not None:
            raise UserError("run.track() came before; expected one call that names everything")
        check_tracked(agent, batcher, others)
        self.compute.check_used(self.options.title)
        self._agent, self._batcher = agent, batcher
        options, found = self.options, self.options.resume
        everything: dict[str, Tracked] = {"agent": agent, **others}
        kept = options.save_buffer
        self._tracked = {name: it for name, it in everything.items() if kept or not isinstance(it, ReplayBuffer)}
        if found is None:
            for value in everything.values():
                if isinstance(value, nn.Module):
                    self.ranks.broadcast(value)
            batcher.publish(agent)
        problems = [] if found is None else take_up(found, everything, batcher, self._own_state())
        self._signals.at_once = False
        several = f" on each of {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        about = f"seed: {options.seed}; {batcher.num_envs} environments{several}; device: {self.device}"
        self._records.open(about)
        if found is not None:
            self._resume(problems)
        self._records.show(self.env_steps)
        self._clock = Clock(batcher, self.device, before=0.0 if found is None else found.checkpoint.meta["wall_time"])
        if found is not None:
            self._go_on_evaluating()
            if not set_global_generators(found.checkpoint.state["run"]["generators"]):
                _log.warning("resume: the generators of the GPUs could not be taken up")
            if found.evaluates and options.evaluate_every and not self.running():
                self.save()  # which was all that was left to do, and has been done
        elif self.ranks.rank:
            seed_global_generators(derive(self.seed, "learner"))  # until here as on rank 0, which made the same agent

    def _resume(self, problems: list[str]) -> None:
        """Take up what the run itself is, once its files are open, and say what could not be taken up."""
        found, batcher, agent = self.options.resume, self._batcher, self._agent
        assert found is not None
        assert batcher is not None
        assert agent is not None
        state = found.checkpoint.state["run"]
        self._counters.load_state_dict(state["counters"])
        if "stop_at_return" in found.changes:
            self._counters.ended_early = False
        if self._turns is not None and state["evaluation"] is not None:
            self._turns.resume(state["evaluation"], agent, batcher)
        elif state["evaluation"] is not None:
            self._kept_evaluation = {**state["evaluation"], "playing": None, "weights": None, "due": None}
        lines = [text.splitlines() for text in self.ranks.exchange_text("\n".join(problems))]
        told = [f"rank {rank}: {line}" if rank else line for rank, own in enumerate(lines) for line in own]
        if self.ranks.rank == 0:
            for problem in told:
                _log.warning("resume: exact=false: %s", problem)
        exact = "exact=false" if told else "all goes on as if it had never stopped (exact=true)"
        self._records.info(f"resumed at {self.env_steps:,} steps: {exact}")

    def running(self) -> bool:
        """Return whether there is more to do: `total_steps` not reached, and no rule has ended the run early."""
        return self.env_steps < self.total_steps and not self._counters.ended_early

    def log(self, terms: Mapping[str, Tensor | float], *, env_steps: int) -> None:
        """End an iteration: count its steps; write a row, save and begin to evaluate when due; and stop if asked to.

        The only point where checkpoints are written and signals are obeyed.

        Args:
            terms: what to log, 0-dimensional tensors or numbers, under names such as `loss/policy`. Of several ranks,
                means over the samples of all; whole numbers are counts, which are added up.
            env_steps: valid environment steps of this iteration, on this rank.

        Raises:
            StopRequested: a signal asked the run to stop; a checkpoint is written as the run is left.
            RunWriteError: the row, or two checkpoints in turn, could not be written; a run that cannot log ends.
            RankError: another rank has failed, or gone another way.
        """
        if self._batcher is None:
            raise UserError("run.log() before run.track(), which names what the run is made of")
        counters, ranks, signals = self._counters, self.ranks, self._signals
        now = agree(ranks, self._iteration(terms, env_steps, self._batcher))
        counters.iteration += 1
        before, counters.env_steps = counters.env_steps, counters.env_steps + now.env_steps
        counters.restarts, counters.dropped_steps = now.restarts, now.dropped_steps
        counters.averages.add(now.terms, now.env_steps)
        counters.episodes.take(now.episodes)
        goal, reached = self.options.stop_at_return, counters.episodes.mean_return
        if goal is not None and counters.episodes.is_full and reached is not None and reached >= goal:
            counters.ended_early = True
            told = f"the mean return of the last {EPISODE_WINDOW} episodes is {reached:.6g}"
            self._records.info(f"stop_at_return: {told}")
        every = self.options.every
        if not every or self._due(every, before):
            self._write_row()
        evaluates = self._due(self.options.evaluate_every, before)
        if self._turns is not None and evaluates:
            self._turns.plan(self.env_steps, self.iteration)
        stop = signals.obey(now.stop) if ranks.size > 1 else signals.reached()
        if stop is None:
            try:
                self._go_on_evaluating()
            except StopRequested:  # it took too long: what is due stays so, for a resumed run
                signals.hold()
                if not evaluates or ranks.size == 1:
                    if ranks.size == 1:
                        self.save()
                    raise
            except Exception:
                # The training is as it should be: a run that is resumed without evaluations loses nothing.
                if ranks.size == 1:
                    with suppress(RunWriteError):
                        self.save()
                raise
            if ranks.size == 1:
                stop = signals.reached()
            elif evaluates:  # only then rank 0 may have been held up
                stop = signals.obey(agree_on_stop(ranks, signals.requested))
        if stop is not None or not self.running() or self._due(self.options.checkpoint_every, before) or now.late:
            self.save()
        if stop is not None:
            raise StopRequested(stop, safe=True)

    def _iteration(self, terms: Mapping[str, Tensor | float], env_steps: int, batcher: Batcher) -> Iteration:
        """Return what this rank's iteration came to, and begin the next."""
        samples, self._samples = self._samples, 0
        episodes, stop, late = batcher.episodes.drop(0), self._signals.requested, self._late()
        return Iteration(terms, env_steps, samples, episodes, stop, late, batcher.restarts, batcher.dropped_steps)

    def save(self, *, between_pieces: bool = True) -> None:
        """Begin to write a checkpoint of everything tracked; the run waits while it is copied only.

        Args:
            between_pieces: whether the batchers are; else their state is not there to be saved.

        Raises:
            RunWriteError: neither this checkpoint nor the last one could be written; those before are as they were.
            RankError: the ranks have drifted apart; nothing is written then.
        """
        assert self._batcher is not None, "track() comes first"
        self._clock.saved = time.perf_counter()
        everything: dict[str, Tracked] = {**self._tracked, "batcher": self._batcher}
        state: dict[str, Any] = {name: state_of(it, between_pieces=between_pieces) for name, it in everything.items()}
        state["run"] = self._own_state()
        same = [name for name, value in self._tracked.items() if isinstance(value, nn.Module)]
        whole = gather_states(self.ranks, state, same)
        if whole is not None:
            self._records.save(whole, self._meta(self.env_steps, self.iteration))

    def _own_state(self) -> dict[str, Any]:
        """Return what the run itself is."""
        return {
            "counters": self._counters.state_dict(),
            "evaluation": self._kept_evaluation if self._turns is None else self._turns.state_dict(),
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
        """Save weights that were better than all before."""
        self._records.save_best(weights, self._meta(env_steps, None))

    def _go_on_evaluating(self) -> None:
        """Begin an evaluation when one is due, and wait for the last one of the run."""
        if self._turns is None or self._agent is None or self._batcher is None:
            return
        with self.ranks.busy("evaluates"):
            self._turns.go_on(self._agent, self._batcher)
            if not self.running():
                self._turns.finish()

    def _evaluated(self, found: dict[str, Value], waited: float) -> None:
        """Write an evaluation's row."""
        self._clock.leave_out(waited)
        row = {**found, "wall_time": self._clock.wall_time, "time/eval_wait": waited}
        self._counters.remember(row)
        self._records.write(row)
        told = ", ".join(f"{key} {value:.6g}" for key, value in found.items() if key.startswith("eval/"))
        self._records.info(f"evaluation at {row['env_steps']:,} steps: {told}; waited for {waited:.3f} s")

    def _write_row(self) -> None:
        """Write the row of the iterations since the last one."""
        assert self._batcher is not None
        self._records.write(self._counters.take_row(self._batcher, self._clock))

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
        if math.isfinite(loss.item()):
            return
        directory = self._records.directory
        assert directory is not None, "track() comes first"
        folder = f"{FAILED}-rank-{self.ranks.rank}" if self.ranks.rank else FAILED
        raise failed_loss(loss, directory / folder, batch, agent, self.env_steps)

    def average_gradients(self, module: nn.Module, samples: int) -> None:
        """Make the gradients the mean over the samples of all ranks of a distributed learner; alone, nothing.

        Comes after `backward()` and before anything looks at the gradients; as often on every rank.

        Args:
            module: all that the optimiser moves.
            samples: of which the loss was the mean on this rank.
        """
        self._samples += samples
        self.ranks.average_gradients(module, samples)

    def _due(self, every: int, before: int) -> bool:
        return every > 0 and (self.env_steps // every > before // every or not self.running())

    def _late(self) -> bool:
        """Return whether the last checkpoint lies far back in time; nothing of a run's results depends on when."""
        minutes = self.options.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self._clock.saved >= 60 * minutes

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self._signals)
            opened.enter_context(self._records)
            if self._evaluator is not None:
                opened.callback(self._evaluator.close)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._records.directory is not None:
                with self.ranks.busy("writes the end of the run"):
                    self._end(error)
        finally:
            self._turns = None  # which call this run: a circle of references, that would keep the batcher's memory
            self._opened.__exit__(kind, error, traceback)  # all of it, in reverse order, even where one part raises

    def _end(self, error: BaseException | None) -> None:
        """Write the last checkpoint where log() has not, the summary, and close the logs.

        Raises:
            RunWriteError: something of that, or what ended the run, could not be written; says what is left.
        """
        assert self._batcher is not None
        self._signals.hold()
        records = self._records
        stopped = isinstance(error, KeyboardInterrupt)
        problem: RlxError | None = error if isinstance(error, RunWriteError) else None
        if stopped and self._turns is not None and self._turns.playing is not None:
            steps = self._turns.playing["env_steps"]
            records.info(f"the evaluation at {steps:,} steps was cut off; a resumed run plays it again")
        # A stop while the batcher was waiting finds all as the last log() left it; inside an update it would not. What
        # could not be written was found out by log() itself. Of several ranks the others are elsewhere by now.
        consistent = error is None or problem is not None or (stopped and self._batcher.waiting)
        try:
            records.wait()
            if consistent and self.ranks.size == 1 and self.env_steps != records.saved_at:
                self.save(between_pieces=False)
                records.wait()
            if problem is None and stopped and self._counters.averages:
                self._write_row()  # of what came since the last row; a resumed run cuts it off, and goes on with it
        except RlxError as unsaved:
            problem = problem or unsaved
        failed = problem or (None if stopped else error)
        status = "failed" if failed else "stopped" if stopped else "done"
        summary = summary_of(
            status, failed or error, self._counters, wall_time=self._clock.wall_time, checkpoint=records.saved_at
        )
        asked = self._signals.requested
        records.close(summary, error, problem, None if asked is None else asked.name)
        if error is None or (isinstance(error, StopRequested) and error.safe):
            self.ranks.wait_for_end()

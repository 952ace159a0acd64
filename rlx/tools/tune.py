"""`rlx tune`: trials one after the other, or several side by side, until a study has as many as asked for."""

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from rlx.errors import RlxError, RunWriteError, UserError
from rlx.run.files import reason_of
from rlx.run.signals import STOP_SIGNALS, StopRequested, is_heard
from rlx.tools.search_space import as_override, show
from rlx.tools.study import Study
from rlx.tools.trial import Outcome, RunProcess, run_trial

OUTPUT = ".output"
"""In a study's directory, what runs printed that failed or still run."""

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}


def run_trials(study: Study, *, trials: int, jobs: int, command: Sequence[str], tell: Callable[[str], None]) -> None:
    """Run trials until the study has enough of them, those of other processes included.

    A signal that stops a run ends what runs: each run saves, and its trial is repeated when the study goes on.

    Args:
        study: entered.
        trials: of the study in all.
        jobs: trials at once.
        command: what `rlx train` is here, to be followed by what it is given.
        tell: takes a line for each trial that ends; called from several threads, one at a time.

    Raises:
        StopRequested: a signal ended it.
        RlxError: too many trials failed one after the other, or the study cannot be written.
    """
    loop = _Loop(study, trials, command, tell)
    with _signals(loop.stop) as asked, ThreadPoolExecutor(jobs) as threads:
        working = [threads.submit(loop.work) for _ in range(jobs)]
        wait(working, return_when=FIRST_EXCEPTION)
        loop.stop.set()  # where one thread failed, the others end too; where all have ended, nobody hears it
    if asked:
        raise StopRequested(asked[0], safe=True)
    for thread in working:
        thread.result()
    if study.exhausted:
        tell("the sampler has drawn all that there is to draw")


class _Loop:
    """What the threads share."""

    def __init__(self, study: Study, trials: int, command: Sequence[str], tell: Callable[[str], None]) -> None:
        self.stop = threading.Event()
        self._study, self._trials, self._command, self._tell = study, trials, command, tell
        self._failures = 0
        self._telling = threading.Lock()

    def work(self) -> None:
        """Run one trial after the other."""
        while not self.stop.is_set():
            try:
                trial = self._study.begin(self._trials)
                if trial is None:
                    return
                outcome = self._run(trial)
            except ImportError as error:  # Optuna's samplers and pruners import what they need when they need it
                raise UserError(
                    f"tune.sampler or tune.pruner needs {error.name}, which is not installed: pip install {error.name}"
                ) from error
            except (OSError, StorageInternalError) as error:
                raise RunWriteError(
                    f"the study in '{self._study.directory}' cannot go on: {reason_of(error)}"
                ) from error
            with self._telling:
                self._tell(self._line(trial, outcome))
            self._count(outcome)

    def _run(self, trial: Trial) -> Outcome:
        """Run a trial and note how it ended."""
        plan = self._study.plan
        drawn = self._study.overrides(trial)
        start: list[Callable[[], RunProcess]] = []
        for run, seed in zip(self._study.runs(trial.number), range(plan.seed, plan.seed + plan.seeds), strict=True):
            words = [*plan.own, *plan.overrides, *drawn, f"seed={seed}", as_override("run_dir", str(run))]
            words += [] if plan.config_dir is None else [f"--config-dir={plan.config_dir}"]
            output = self._study.directory / OUTPUT / f"{'-'.join(run.relative_to(self._study.directory).parts)}.txt"
            start.append(partial(RunProcess, [*self._command, *words], run, output))
        try:
            outcome = run_trial(
                start,
                every=plan.every,
                evaluations=plan.evaluations,
                last=plan.last,
                report=partial(self._study.report, trial),
                stop=self.stop,
            )
            self._study.end(trial, _STATES.get(outcome.status, TrialState.FAIL), outcome.value, outcome.reason)
        except UpdateFinishedTrialError:
            return Outcome("failed", reason="another process took this one for gone, and ended the trial")
        except BaseException:
            with suppress(Exception):  # what went wrong first is what counts
                self._study.end(trial, TrialState.FAIL)
            raise
        return outcome

    def _line(self, trial: Trial, outcome: Outcome) -> str:
        drawn = " ".join(f"{key.removeprefix('algo.')}={show(value)}" for key, value in trial.params.items())
        told = {"complete": f"{outcome.value or 0.0:.2f}", "failed": f"failed: {outcome.reason}"}
        return f"trial {trial.number}: {told.get(outcome.status, outcome.status)} ({drawn})"

    def _count(self, outcome: Outcome) -> None:
        """Count failures.

        Raises:
            RlxError: there have been too many without anything else between them.
        """
        if outcome.status == "interrupted":
            return
        with self._telling:
            self._failures = self._failures + 1 if outcome.status == "failed" else 0
            failures = self._failures
        if failures >= self._study.plan.most_failures:
            raise RlxError(
                f"{failures} trials failed one after the other, the last one: {outcome.reason}; what they printed is "
                f"in '{self._study.directory / OUTPUT}'"
            )


@contextmanager
def _signals(stop: threading.Event) -> Generator[list[signal.Signals]]:
    """Set `stop` when a signal comes, within the block, and give a list that then holds it."""
    asked: list[signal.Signals] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(signal.Signals(number))
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, note) for number in filter(is_heard, STOP_SIGNALS)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

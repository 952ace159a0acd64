"""A study: its directory, its trials in Optuna's storage, and who may begin the next one.

STUDY/study.yaml      what is tuned, and how each trial is run
STUDY/journal.log     Optuna's journal, unless another storage was named
STUDY/trial-00007/    a run directory, or one for each of several seeds: trial-00007/seed-0
STUDY/conf/           the best trial as a recipe
STUDY/.processes/     who works on it now

Any number of processes may work on it at once, on one machine or on several that share the directory.
"""

import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import optuna
import yaml
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import IntegrityError  # Optuna's own dependency

from rlx.errors import ConfigError, RunDirectoryError, RunWriteError
from rlx.run.build import maker
from rlx.run.files import expanded, reason_of, write_text_atomic
from rlx.tools.journal import Journal, locked
from rlx.tools.presence import Presence
from rlx.tools.runs import STUDY
from rlx.tools.sampler import EXHAUSTED, SeededSampler
from rlx.tools.search_space import Parameter, read_space

JOURNAL = "journal.log"
PROCESSES = ".processes"
PROCESS, REASON, RETRY_OF = "process", "reason", "retry_of"
"""What is noted of a trial: which process runs it, why it failed, which interrupted one it repeats."""
_TRIES = 20
"""To make a dozen tables beside others; each one that another makes first costs one, at most."""


@dataclass(frozen=True)
class Plan:
    """What a study is: all that every process working on it has to agree on.

    Attributes:
        title: such as `ppo on CartPole`.
        overrides: what was typed; each trial is given it.
        own: what `rlx tune` gives each trial besides, before what was typed.
        config_dir: the user's own configuration directory, or None.
        space: what is tuned, as YAML has it.
        sampler: `_target_` and keywords.
        pruner: likewise, or None.
        seed: of the first run of each trial, and of the sampler.
        seeds: runs of each trial, with one seed after the other.
        every: environment steps between two evaluations.
        evaluations: of each run.
        last: of them, whose mean is what a trial is worth.
        most_failures: one after the other, until a process begins no more.
        defaults: what the first trial is given instead of drawn values; empty where the space does not hold it.
        storage: URL of a database, or None for a journal in the study's directory.
        name: the study's in its storage.
    """

    title: str
    overrides: list[str]
    own: list[str]
    config_dir: str | None
    space: dict[str, Any]
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None
    seed: int
    seeds: int
    every: int
    evaluations: int
    last: int
    most_failures: int
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    storage: str | None = None
    name: str = ""

    @property
    def parameters(self) -> list[Parameter]:
        """Return what is tuned."""
        return read_space(self.space)


_MAY_DIFFER = ("own", "defaults", "name", "storage")
"""What a joining process takes from the study, whatever its own machine would have made of it."""


_CALLED = {"seed": "seeds", "every": "evaluations", "config_dir": "--config-dir", "space": "keys to tune"}


class Study:
    """A study that this process works on, from entering to leaving; threads may share it."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        """Prepare; see `open_study`."""
        self.directory = directory
        self.plan = plan
        self._parameters = plan.parameters
        self._threads = threading.RLock()
        self._presence = Presence(directory / PROCESSES)
        self._study: optuna.Study | None = None
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened, writing(self.directory):
            opened.enter_context(self._presence)
            storage = opened.enter_context(_storage(self.directory, self.plan))
            self._study = _load(self.directory, self.plan, storage)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    @property
    def optuna(self) -> optuna.Study:
        """Return Optuna's own object."""
        assert self._study is not None, "it is to be entered first"
        return self._study

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, by number."""
        return self.optuna.get_trials(deepcopy=False)

    @property
    def exhausted(self) -> bool:
        """Return whether the sampler has nothing left to draw, as one that goes through a grid."""
        return EXHAUSTED in self.optuna.user_attrs

    def begin(self, wanted: int) -> Trial | None:
        """Begin a trial, unless there are enough, or no others to be drawn.

        Trials whose process is gone are ended as failed first, and repeated; they do not count.

        Args:
            wanted: trials in all, those that run now included.
        """
        with self._threads, locked(_turn(self.directory)):
            self._end_abandoned()
            if self.exhausted or sum(map(counts, self.trials())) >= wanted:
                return None
            trial = self.optuna.ask({one.key: one.distribution for one in self._parameters})
            trial.set_user_attr(PROCESS, self._presence.name)
            return trial

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Note what a trial has reached, and return whether it is to be ended early."""
        with self._threads:
            trial.report(value, step)
            return trial.should_prune()

    def end(self, trial: Trial, state: TrialState, value: float | None = None, reason: str | None = None) -> None:
        """End a trial.

        Args:
            trial: of this process.
            state: complete, pruned or failed.
            value: what it is worth, where it is complete.
            reason: why it failed; None where it was interrupted, and is to be repeated.

        Raises:
            UpdateFinishedTrialError: another process has ended it.
        """
        with self._threads:
            if reason is not None:
                trial.set_user_attr(REASON, reason)
            if self.optuna.tell(trial, value, state, skip_if_finished=True).state is not state:
                raise UpdateFinishedTrialError
            if state is TrialState.FAIL and reason is None:
                self._repeat(self.trials()[trial.number])

    def overrides(self, trial: Trial | FrozenTrial) -> list[str]:
        """Return what `rlx train` is given for what was drawn for a trial."""
        return [one.override(trial.params[one.key]) for one in self._parameters]

    def runs(self, number: int) -> list[Path]:
        """Return the run directories of a trial, one a seed."""
        folder = self.directory / f"trial-{number:05d}"
        seeds = range(self.plan.seed, self.plan.seed + self.plan.seeds)
        return [folder] if self.plan.seeds == 1 else [folder / f"seed-{seed}" for seed in seeds]

    def _end_abandoned(self) -> None:
        for trial in self.trials():
            process = trial.user_attrs.get(PROCESS)
            # One without a process was killed on the way to its name: nobody is there now, the lock is ours.
            if trial.state is TrialState.RUNNING and not (process and self._presence.lives(process)):
                self.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self._repeat(trial)

    def _repeat(self, trial: FrozenTrial) -> None:
        """Have what an interrupted trial tried tried again, once: it may be what brought the process down."""
        if RETRY_OF not in trial.user_attrs and trial.params:
            self.optuna.enqueue_trial(trial.params, {RETRY_OF: trial.number})


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial is one of those asked for: it runs, or ended in a way of its own."""
    return trial.state not in (TrialState.WAITING, TrialState.FAIL) or (
        trial.state is TrialState.FAIL and REASON in trial.user_attrs
    )


def is_study(directory: Path) -> bool:
    """Return whether a study was made here."""
    return (directory / STUDY).is_file()


def open_study(directory: Path, plan: Plan) -> Study:
    """Make a study, or join the one that is there.

    Raises:
        RunDirectoryError: the directory is something else, or cannot be made.
        RunWriteError: it cannot be written.
        ConfigError: the study there is another one, or its storage cannot be opened.
    """
    directory = expanded(directory).absolute()
    ours = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not ours and not is_study(directory) and not (directory / PROCESSES).is_dir():  # which is made first
        raise RunDirectoryError(f"study_dir: '{directory}' exists already, and is no study; give another path")
    if plan.storage is not None and not is_study(directory):
        with _storage(directory, plan):  # before anything is written
            pass
    try:
        (directory / PROCESSES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"study_dir: cannot create '{directory}': {error.strerror}") from error
    with writing(directory), locked(_turn(directory)):
        if is_study(directory):
            there = read_plan(directory)
            _check_same(directory, there, plan)
            return Study(directory, there)
        plan = replace(plan, name=f"{plan.title} {secrets.token_hex(3)}")
        with _storage(directory, plan) as storage:
            optuna_study = optuna.create_study(
                storage=storage, study_name=plan.name, direction="maximize", load_if_exists=True
            )
            if plan.defaults:
                optuna_study.enqueue_trial(plan.defaults)
        head = "# What this study is; `rlx tune` reads it to go on, and to check that others who join mean the same.\n"
        text = yaml.safe_dump(asdict(plan), sort_keys=False, allow_unicode=True, width=100)
        write_text_atomic(directory / STUDY, head + text)  # last: what was killed before is no study yet
    return Study(directory, plan)


def read_plan(directory: Path) -> Plan:
    """Return what a study is.

    Raises:
        RunDirectoryError: there is none, or it cannot be read.
    """
    path = expanded(directory) / STUDY
    try:
        loaded: Any = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise RunDirectoryError(f"'{directory}' is no study of rlx tune: it has no {STUDY}") from None
    except (OSError, yaml.YAMLError) as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from error
    values = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}
    names = [one.name for one in fields(Plan)]
    if set(values) != set(names):
        odd = sorted(set(values) ^ set(names))
        raise RunDirectoryError(f"'{path}' is no study of this rlx: {odd[0]} is missing or unknown")
    return Plan(**values)


@contextmanager
def writing(directory: Path) -> Generator[None]:
    """Say in one message that a study's directory, or its storage, cannot be written.

    Raises:
        RunWriteError: it cannot.
    """
    try:
        yield
    except (OSError, StorageInternalError) as error:
        raise RunWriteError(f"the study in '{directory}' cannot be written: {reason_of(error)}") from error


def _turn(directory: Path) -> Path:
    """Return the file whose lock lets a process begin trials of a study."""
    path = directory / PROCESSES / "turn"
    path.touch()
    return path


def _check_same(directory: Path, there: Plan, plan: Plan) -> None:
    ours, theirs = asdict(plan), asdict(there)
    if plan.storage is not None and plan.storage != there.storage:
        raise ConfigError(f"--storage: the study in '{directory}' is kept in {there.storage or JOURNAL}")
    for key in (key for key in ours if key not in _MAY_DIFFER):
        if ours[key] != theirs[key]:
            old, new = _first_difference(theirs[key], ours[key])
            raise ConfigError(
                f"study_dir: the study in '{directory}' was begun with other {_CALLED.get(key, key)}: {old}, not {new};"
                " type what it was begun with, or give another study_dir=PATH"
            )


def _first_difference(old: Any, new: Any) -> tuple[str, str]:
    """Return what differs of two values, as short as it goes."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        ours, theirs = cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", new)
        key = next(key for key in [*ours, *theirs] if ours.get(key) != theirs.get(key))
        return f"{key}: {ours.get(key)}", f"{key}: {theirs.get(key)}"
    if isinstance(old, Sequence) and isinstance(new, Sequence) and not isinstance(old, str):
        ours, theirs = cast("Sequence[Any]", old), cast("Sequence[Any]", new)
        return " ".join(map(str, ours)) or "nothing", " ".join(map(str, theirs)) or "nothing"
    return str(cast("object", old)), str(cast("object", new))


def _load(directory: Path, plan: Plan, storage: BaseStorage) -> optuna.Study:
    def sampler(seed: int) -> optuna.samplers.BaseSampler:
        return maker("tune.sampler", plan.sampler, given=("seed",))(seed=seed)

    pruner = optuna.pruners.NopPruner() if plan.pruner is None else maker("tune.pruner", plan.pruner, given=())()
    try:
        return optuna.load_study(
            study_name=plan.name,
            storage=storage,
            sampler=SeededSampler(sampler, plan.seed),
            pruner=pruner,
        )
    except KeyError:
        where = plan.storage or str(directory / JOURNAL)
        raise RunDirectoryError(f"the study in '{directory}' is not in its storage any more: {where}") from None


@contextmanager
def _storage(directory: Path, plan: Plan) -> Generator[BaseStorage]:
    """Open the storage of a study; a database is closed at the end.

    Raises:
        ConfigError: it cannot be opened.
    """
    if plan.storage is None:
        yield JournalStorage(Journal(directory / JOURNAL))
        return
    database = _connect(plan.storage)
    try:
        yield database
    finally:
        database.remove_session()
        database.engine.dispose()


def _connect(url: str) -> RDBStorage:
    """Connect to a database, and make Optuna's tables where there are none.

    Optuna looks which are missing, then makes them: of processes that begin in the same moment, one makes what another
    one is about to, which then has to look again.

    Raises:
        ConfigError: it cannot be opened.
    """
    waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    tries = _TRIES
    while True:
        tries -= 1
        try:
            return RDBStorage(url, engine_kwargs=waiting)
        except Exception as error:  # of whatever stands behind the URL
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if not tries or not (isinstance(error, IntegrityError) or "already exists" in reason):
                raise ConfigError(f"--storage: '{url}' cannot be opened: {reason}") from error

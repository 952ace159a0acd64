"""All that a run writes: its directory, log, rows, checkpoints and summary; of several ranks, rank 0 does so."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlx.errors import RunWriteError
from rlx.run.checkpoint import remove_checkpoint
from rlx.run.directory import (
    CHECKPOINTS,
    CONFIG,
    LOG,
    SUMMARY,
    create_run_directory,
    discard_run_directory,
    write_summary,
    write_text_atomic,
)
from rlx.run.ending import last_words, what_is_left
from rlx.run.files import reason_of
from rlx.run.lock import RunLock
from rlx.run.log import RunLog, surroundings
from rlx.run.metrics import Row
from rlx.run.options import RunOptions
from rlx.run.saver import BEST, Saver
from rlx.run.sinks import Sinks


class Records:
    """What a run leaves behind. Nothing is written before `open`; with `writes` false, nothing at all.

    Attributes:
        directory: of the run, once it is open.
        writes: whether this process is the one that writes.
    """

    def __init__(self, options: RunOptions, *, writes: bool) -> None:
        """Prepare."""
        self.directory: Path | None = None
        self.writes = writes
        self._options = options
        self._lock = options.lock
        self._sinks = Sinks()
        self._log = RunLog()
        self._saver: Saver | None = None

    @property
    def saved_at(self) -> int | None:
        """Return the environment steps of the newest checkpoint that is written; None while there is none."""
        return None if self._saver is None else self._saver.saved_at

    def open(self, about: str) -> None:
        """Make the run's directory, or take that of a resumed run, and begin or go on with its files.

        Args:
            about: seeds, environments and device, for the log.

        Raises:
            RunDirectoryError: the directory exists.
            RunWriteError: nothing can be written there; it has been removed again.
            ConfigError: a logger does not begin; likewise.
        """
        options, found = self._options, self._options.resume
        if not self.writes:
            self.directory = options.directory
            return
        directory = create_run_directory(options.directory) if found is None else found.directory
        try:
            if self._lock is None:
                self._lock = RunLock(directory).acquire()
            self._begin(directory, about)
        except BaseException as error:  # a signal, too
            self._sinks.close("failed")
            self._log.close()
            if found is None:
                discard_run_directory(directory)
            if not isinstance(error, OSError):
                raise
            where = error.filename or str(directory)
            raise RunWriteError(f"cannot write '{where}': {reason_of(error)}; no run was started") from error
        self.directory = directory
        saved_at = None if found is None else int(found.checkpoint.meta["env_steps"])
        self._saver = Saver(directory, keep_last=options.keep_last, keep_every=options.keep_every, saved_at=saved_at)
        if found is not None:
            for path in found.damaged:
                remove_checkpoint(path)
            with contextlib.suppress(FileNotFoundError):
                (directory / SUMMARY).unlink()

    def _begin(self, directory: Path, about: str) -> None:
        """Open the files; the console comes later, when nothing can fail."""
        options, found = self._options, self._options.resume
        if found is None:
            write_text_atomic(directory / CONFIG, options.config_text)
        self._log.open(directory / LOG)
        how = "begins" if found is None else f"resumes from {found.path.name}"
        self._log.info(f"{how}: {options.title}, {options.total_steps:,} steps")
        for line in surroundings(options.command):
            self._log.info(line)
        for line in filter(None, (about, options.cores)):
            self._log.info(line)
        self._sinks.open(directory, options)
        if found is not None:  # only now nothing refuses it any more
            write_text_atomic(directory / CONFIG, options.config_text)

    def show(self, env_steps: int) -> None:
        """Open the console, if wanted; the last, when nothing can fail any more."""
        if self.writes:
            self._sinks.show(self._options, env_steps)

    def info(self, text: str) -> None:
        """Write a line of the log."""
        if self.writes:
            self._log.info(text)

    def write(self, row: Row) -> None:
        """Write a row.

        Raises:
            RunWriteError: it could not be written.
        """
        if self.writes:
            self._sinks.write(row)

    def save(self, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; see `Saver.save`.

        Raises:
            RunWriteError: neither this checkpoint nor the last one could be written.
        """
        assert self._saver is not None, "open() comes first"
        logs, files = self._sinks.positions()
        name = self._saver.save(state, self._options.config, {**meta, "logs": logs}, logs=files)
        self._log.info(f"checkpoint at {meta['env_steps']:,} steps: {CHECKPOINTS}/{name}")

    def save_best(self, weights: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Save weights that were better than all before: `checkpoints/best`."""
        assert self._saver is not None, "open() comes first"
        self._saver.save({"agent": weights}, self._options.config, meta, name=BEST)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            RunWriteError: it could not be.
        """
        if self._saver is not None:
            self._saver.wait(last=True)

    def close(
        self,
        summary: Mapping[str, Any],
        error: BaseException | None,
        problem: BaseException | None,
        asked: str | None,
    ) -> None:
        """Write the summary and what ended the run, and close the logs.

        Args:
            summary: see `rlx.run.ending.summary_of`.
            error: what ended the run, if anything did.
            problem: what could not be written at its end.
            asked: the signal that asked it to stop.

        Raises:
            RunWriteError: something of that, or what ended the run, could not be written; says what is left.
        """
        directory, steps = self.directory, int(summary["env_steps"])
        assert directory is not None
        if not self.writes:
            return
        unwritten: list[OSError] = []
        try:
            write_summary(directory, summary)
        except OSError as wrong:
            unwritten.append(wrong)
        unwritten += self._sinks.close("failed" if unwritten else summary["status"])
        if unwritten and problem is None:
            problem = RunWriteError(f"cannot write '{unwritten[0].filename or directory}': {reason_of(unwritten[0])}")
        if isinstance(problem, RunWriteError):
            found, problem = problem, RunWriteError(f"{problem}. {what_is_left(directory, steps, asked)}")
            problem.__cause__ = found
        # Where something else failed before, that is what the user is to hear of.
        stopped = isinstance(error, KeyboardInterrupt)
        told = problem if error is None or stopped or isinstance(error, RunWriteError) else error
        where = f"at {steps:,} steps, after {summary['wall_time']:.1f} s"
        if told is not None:
            self._log.error(f"failed {where}", told)
        else:
            self._log.info(f"{'done' if error is None else str(error) or 'interrupted'} {where}")
        self._sinks.say_last(last_words(summary, directory) if told is None else None)
        if told is not None and told is not error:
            raise told from told.__cause__

    def __enter__(self) -> Self:
        if self.writes:
            self._log.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._saver is not None:  # behind a second Ctrl-C a checkpoint may still be in the making
                self._saver.rest()
        finally:
            if self._lock is not None:
                self._lock.release()
            if self.writes:
                self._log.__exit__(kind, error, traceback)

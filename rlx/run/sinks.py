"""All that takes a run's rows, opened, continued and closed together."""

import logging
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError, RlxError, RunWriteError
from rlx.run.console import ConsoleSink
from rlx.run.files import reason_of
from rlx.run.loggers import RunInfo
from rlx.run.metrics import MetricSink, Row
from rlx.run.options import RunOptions

_log = logging.getLogger(__name__)


class Sinks:
    """A run's loggers and its console.

    Those that write into the run directory (they have a `path`) have to take every row: where one cannot, the run ends.
    Others may fail: that is told of, and the run goes on without them.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._sinks: dict[str, MetricSink] = {}
        self._console: ConsoleSink | None = None
        self._left: dict[str, Any] = {}  # how far loggers had come that a resumed run does without

    def open(self, directory: Path, options: RunOptions) -> None:
        """Make the loggers of a run; those of a resumed one go on from what its checkpoint knew of.

        Raises:
            OSError: a file cannot be written.
            RunDirectoryError: a file has lost rows that the checkpoint knew of.
            ConfigError: a logger does not begin.
        """
        found = options.resume
        meta: dict[str, Any] = {"env_steps": 0} if found is None else found.checkpoint.meta
        known: dict[str, Any] = meta.get("logs", {})
        self._left = {name: position for name, position in known.items() if name not in options.loggers}
        for name, make in options.loggers.items():
            info = RunInfo(directory, options.title, options.config, int(meta["env_steps"]), known.get(name))
            try:
                self._sinks[name] = make(info)
            except RlxError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # a file; what a network raises has none
                raise ConfigError(f"logger.{name}: it did not begin: {type(error).__name__}: {error}") from error

    def show(self, options: RunOptions, env_steps: int) -> None:
        """Open the console, if wanted; the last, when nothing can fail any more."""
        if options.console:
            self._console = ConsoleSink(options.total_steps, options.title, start_steps=env_steps)

    def write(self, row: Row) -> None:
        """Give all of them a row.

        Raises:
            RunWriteError: one that writes into the run directory could not take it.
        """
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(row)
            except Exception as error:
                self._failed(name, sink, error)
        if self._console is not None:
            self._console.write(row)

    def positions(self) -> tuple[dict[str, Any], list[Path]]:
        """Return how far each has come, for a checkpoint, and the files that the disk then has to have.

        Loggers that the run has done without since it was resumed are among them: they may come back.
        """
        known = dict(self._left)
        files: list[Path] = []
        for name, sink in list(self._sinks.items()):
            try:
                path = getattr(sink, "path", None)
                if path is not None:
                    files.append(path)
                else:
                    sink.flush()
                if hasattr(sink, "position"):
                    known[name] = sink.position()  # pyright: ignore[reportAttributeAccessIssue]
            except Exception as error:
                self._failed(name, sink, error)
        return known, files

    def close(self, status: str) -> list[OSError]:
        """Close the loggers; return what went wrong with files.

        Args:
            status: how the run ended, for those that ask: `done`, `stopped` (by a signal) or `failed`.
        """
        wrong: list[OSError] = []
        for name, sink in self._sinks.items():
            try:
                if hasattr(sink, "status"):
                    sink.status = status  # pyright: ignore[reportAttributeAccessIssue]
                sink.close()
            except Exception as error:
                if isinstance(error, OSError) and hasattr(sink, "path"):
                    wrong.append(error)
                else:
                    _log.warning("logger.%s could not be closed: %r", name, error)
        return wrong

    def say_last(self, text: str | None) -> None:
        """Close the console with a last word."""
        if self._console is not None:
            self._console.close(text)

    def _failed(self, name: str, sink: MetricSink, error: Exception) -> None:
        """End the run over a file that cannot be written; leave out any other logger that fails."""
        if hasattr(sink, "path"):
            if isinstance(error, OSError):
                raise RunWriteError(f"cannot write '{error.filename}': {reason_of(error)}") from error
            raise error
        del self._sinks[name]
        _log.warning("logger.%s failed, and takes no more rows: %r", name, error)

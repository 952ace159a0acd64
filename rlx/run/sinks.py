"""All that takes a run's rows, opened, continued and closed together."""

from pathlib import Path
from typing import Any

from rlx.errors import RunWriteError
from rlx.run.console import ConsoleSink
from rlx.run.directory import METRICS, TENSORBOARD
from rlx.run.files import reason_of
from rlx.run.metrics import CsvSink, MetricSink, Row
from rlx.run.options import RunOptions
from rlx.run.tensorboard import TensorBoardSink, cut_events


class Sinks:
    """`metrics.csv`, TensorBoard's events and the console, as far as the run wants them."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._csv: CsvSink | None = None
        self._events: TensorBoardSink | None = None
        self._console: ConsoleSink | None = None

    def open(self, directory: Path, options: RunOptions) -> None:
        """Make the files of a run directory, or cut those of a resumed run to what its checkpoint knew of.

        Raises:
            OSError: one cannot be written.
            RunDirectoryError: a file has lost rows that the checkpoint knew of.
        """
        found = options.resume
        meta: dict[str, Any] = {} if found is None else found.checkpoint.meta
        known: dict[str, Any] = meta.get("logs", {})
        if options.csv:
            self._csv = CsvSink(directory / METRICS, keep_rows=known.get("csv"))
        if options.tensorboard:
            if "tensorboard" in known:
                cut_events(directory / TENSORBOARD, known["tensorboard"])
            purge = None if found is None else int(meta["env_steps"]) + 1
            self._events = TensorBoardSink(directory / TENSORBOARD, purge_step=purge)

    def show(self, options: RunOptions, env_steps: int) -> None:
        """Open the console, if wanted; the last, when nothing can fail any more."""
        if options.console:
            self._console = ConsoleSink(options.total_steps, options.title, start_steps=env_steps)

    def write(self, row: Row) -> None:
        """Give all of them a row.

        Raises:
            RunWriteError: one could not take it.
        """
        try:
            for sink in self._all():
                sink.write(row)
        except OSError as error:
            raise RunWriteError(f"cannot write '{error.filename}': {reason_of(error)}") from error

    def positions(self) -> tuple[dict[str, Any], list[Path]]:
        """Return how far each file has come, for a checkpoint, and the files that the disk then has to have."""
        known: dict[str, Any] = {}
        files: list[Path] = []
        if self._csv is not None:
            known["csv"] = self._csv.num_rows
            files.append(self._csv.path)
        if self._events is not None:
            known["tensorboard"] = self._events.sizes()
            files.append(self._events.path)
        return known, files

    def close(self) -> list[OSError]:
        """Close the files; return what went wrong."""
        wrong: list[OSError] = []
        for sink in (self._csv, self._events):
            try:
                if sink is not None:
                    sink.close()
            except OSError as error:
                wrong.append(error)
        return wrong

    def say_last(self, text: str | None) -> None:
        """Close the console with a last word."""
        if self._console is not None:
            self._console.close(text)

    def _all(self) -> list[MetricSink]:
        return [sink for sink in (self._csv, self._events, self._console) if sink is not None]

"""The live view of a run on a terminal, drawn with rich."""

import contextlib
import sys
import time
from typing import TextIO

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlx.run.console import Progress, format_duration, sections
from rlx.run.metrics import Row

_REFRESHES_A_SECOND = 2


class LiveView:
    """Progress bar, time left, speed and the latest metrics, renewed in place twice a second."""

    def __init__(self, progress: Progress, title: str, stream: TextIO) -> None:
        """Start to draw on `stream`, a terminal."""
        self._progress = progress
        self._title = title
        self._row: Row = {}
        self._began = time.monotonic()
        self._console = Console(file=stream, force_terminal=True)
        # What the user's code prints appears above the view; standard output only where it is this terminal, too.
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=_REFRESHES_A_SECOND,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start(refresh=True)

    def update(self, row: Row) -> None:
        """Show this row from the next refresh on."""
        self._row = row

    def message(self, text: str) -> None:
        """Print a line above the view."""
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Draw the last state, which stays, and give the terminal back."""
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._live.stop()

    def _render(self) -> RenderableType:
        """Return the view."""
        progress = self._progress
        done = progress.fraction
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1, min_width=10)
        for _ in range(2):
            head.add_column(no_wrap=True, justify="right")
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=1.0, completed=done),
            Text(f"{done:.0%}", style="bold"),
            Text(self._time()),
        )
        speed = progress.steps_per_second
        counters = f"{progress.env_steps:,} / {progress.total_steps:,} steps"
        if speed is not None:
            counters += f"   {speed:,.0f} steps/s"
        parts: list[RenderableType] = [head, Text(counters, style="dim")]
        tables = [self._section(name, metrics) for name, metrics in sections(self._row).items()]
        if tables:
            parts.append(Padding(Columns(tables, padding=(0, 4)), (0, 0, 0, 0)))
        return Group(*parts)

    def _time(self) -> str:
        """Return the time gone by and the time left."""
        gone = format_duration(time.monotonic() - self._began)
        left = self._progress.seconds_left
        if left is None or self._progress.fraction >= 1.0:
            return gone
        return f"{gone}, {format_duration(left)} left"

    def _section(self, name: str, metrics: list[tuple[str, str]]) -> Table:
        """Return one section's metrics."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        if name:
            table.add_row(Text(name, style="bold cyan"), "")
        for metric, value in metrics:
            table.add_row(Text(metric), Text(value))
        return table

"""The live view of a run on a terminal.

rich moves the cursor and keeps other output apart; the lines are laid out here, because tables within columns took
17 ms a refresh, which a run that learns on the same core would feel.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlx.run.console import Progress, format_duration, sections
from rlx.run.metrics import Row, as_number

_REFRESHES_A_SECOND = 2
_GAP = "  "
_SECTION_GAP = "      "
_LONGEST_BAR = 60

Section = tuple[str, Sequence[tuple[str, str]]]


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
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone already
            self._live.start(refresh=True)

    def update(self, row: Row) -> None:
        """Show this row from the next refresh on."""
        self._row = row
        self._began = time.monotonic() - (as_number(row.get("wall_time")) or 0.0)

    def message(self, text: str) -> None:
        """Print a line above the view."""
        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Draw the last state, which stays, and give the terminal back."""
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._live.stop()

    def _render(self) -> Text:
        """Return the view."""
        width = max(self._console.width, 20)
        progress = self._progress
        text = Text(no_wrap=True, overflow="ellipsis")
        self._add_progress(text, width)
        text.append(f"\n{progress.env_steps:,} / {progress.total_steps:,} steps", "dim")
        if progress.steps_per_second is not None:
            text.append(f"{_GAP}{progress.steps_per_second:,.0f} steps/s", "dim")
        for band in bands(list(sections(self._row).items()), width):
            add_band(text, band)
        return text

    def _add_progress(self, text: Text, width: int) -> None:
        """Add title, bar, percentage and times: one line."""
        done = self._progress.fraction
        times = format_duration(time.monotonic() - self._began)
        left = self._progress.seconds_left
        if left is not None and done < 1.0:
            times += f", {format_duration(left)} left"
        figures = f"{_GAP}{done:4.0%}{_GAP}{times}"
        room = min(width - len(self._title) - len(figures) - len(_GAP), _LONGEST_BAR)
        text.append(self._title, "bold")
        if room >= 5:
            stroke = "━" if self._console.encoding.startswith("utf") else "="
            full = int(room * done)
            text.append(_GAP)
            text.append(stroke * full, "green" if done >= 1.0 else "cyan")
            text.append((stroke if stroke == "━" else "-") * (room - full), "bright_black")
        text.append(figures)


def bands(found: Sequence[Section], width: int) -> Iterator[list[Section]]:
    """Give the sections that fit beside each other in `width` columns, band by band."""
    band: list[Section] = []
    used = 0
    for section in found:
        needed = sum(_widths(section)) + len(_GAP)
        if band and used + len(_SECTION_GAP) + needed > width:
            yield band
            band, used = [], 0
        used += needed + (len(_SECTION_GAP) if band else 0)
        band.append(section)
    if band:
        yield band


def add_band(text: Text, band: Sequence[Section]) -> None:
    """Add sections side by side: their names, then a line for each metric."""
    widths = [_widths(section) for section in band]
    for line in range(-1, max(len(metrics) for _, metrics in band)):
        text.append("\n")
        for index, ((name, metrics), (left, right)) in enumerate(zip(band, widths, strict=True)):
            if index:
                text.append(_SECTION_GAP)
            if line < 0:
                text.append(name.ljust(left + len(_GAP) + right), "bold")
            elif line < len(metrics):
                metric, value = metrics[line]
                text.append(metric.ljust(left), "cyan")
                text.append(_GAP + value.rjust(right))
            else:
                text.append(" " * (left + len(_GAP) + right))


def _widths(section: Section) -> tuple[int, int]:
    """Return the widths of a section's names and values."""
    name, metrics = section
    right = max(len(value) for _, value in metrics)
    return max(*(len(metric) for metric, _ in metrics), len(name) - len(_GAP) - right, 0), right

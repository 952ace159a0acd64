"""What a run shows while it runs: a live view on a terminal, plain lines everywhere else.

Progress goes to standard error, so that standard output holds results only.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, TextIO

from rlx.run.metrics import FIRST_COLUMNS, Row, Value, as_number

if TYPE_CHECKING:
    from rlx.run.live import LiveView

HEADLINE = ("episode/return", "eval/return", "loss/total")
"""The metrics of a plain line, where a row has them."""

_SPEED_WINDOW_S = 10.0
_SLOWEST_LINES_S = 60.0
_QUIET_S, _QUIET_LINES_S, _RENEWAL_S = 2.0, 10.0, 0.2  # of an evaluation: before the first word, and between them


class Progress:
    """How far a run is, how fast it goes, and how long it still takes; fed with its rows."""

    def __init__(self, total_steps: int, start_steps: int = 0) -> None:
        """Begin at `start_steps` (what a resumed run has behind it) of `total_steps`."""
        self.total_steps = max(total_steps, 1)
        self.env_steps = start_steps
        self._recent: deque[tuple[float, int]] = deque()  # rows only: the first comes late, for workers had to start

    def update(self, row: Row) -> None:
        """Take the counters of a row."""
        steps = int(as_number(row.get("env_steps")) or 0)
        if steps < self.env_steps:
            return  # an evaluation's row, told under the steps of its weights
        self.env_steps = steps
        wall_time = as_number(row.get("wall_time")) or 0.0
        self._recent.append((wall_time, self.env_steps))
        while len(self._recent) > 2 and self._recent[1][0] <= wall_time - _SPEED_WINDOW_S:
            self._recent.popleft()

    @property
    def fraction(self) -> float:
        """Return the part that is done, in [0, 1]."""
        return min(self.env_steps / self.total_steps, 1.0)

    @property
    def steps_per_second(self) -> float | None:
        """Return the speed over the last ten seconds, or None before the second row."""
        if len(self._recent) < 2:
            return None
        (first_time, first_steps), (last_time, last_steps) = self._recent[0], self._recent[-1]
        seconds, steps = last_time - first_time, last_steps - first_steps
        return steps / seconds if seconds > 0 and steps >= 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at this speed, or None where that is not known."""
        speed = self.steps_per_second
        return max(self.total_steps - self.env_steps, 0) / speed if speed else None


class ConsoleSink:
    """Shows a run's rows to whoever watches.

    On a terminal: progress, time left, speed and all metrics in a view that renews itself. Elsewhere: one line a row,
    but at most one a second in the first minute, and later one per sixtieth of the time gone by, down to one a minute;
    the first and the last row always. Where the reader has gone (a closed pipe), the run goes on in silence.
    """

    def __init__(
        self,
        total_steps: int,
        title: str = "",
        *,
        start_steps: int = 0,
        headline: Sequence[str] = HEADLINE,
        stream: TextIO | None = None,
        live: bool | None = None,
        interval_s: float = 1.0,
    ) -> None:
        """Begin to show a run.

        Args:
            total_steps: environment steps at which the run ends.
            title: what runs, such as `ppo on CartPole`.
            start_steps: environment steps behind a run that is taken up again.
            headline: keys of the metrics that a plain line shows.
            stream: where progress goes; standard error by default.
            live: the live view or plain lines; by default, whether `stream` is a terminal that can show it.
            interval_s: least time between plain lines, in seconds.
        """
        self._stream = stream if stream is not None else sys.stderr
        self._progress = Progress(total_steps, start_steps)
        self._headline = tuple(headline)
        self._interval_s = interval_s
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._latest: Row = {}
        self._waiting = False
        wanted = _is_terminal(self._stream) if live is None else live
        self._live = _start_live(self._progress, title, self._stream) if wanted else None

    def write(self, row: Row) -> None:
        """Show one row, now or, where rows come too fast, when its turn comes."""
        self._progress.update(row)
        # What is measured now and then (an evaluation) stays in view until it is measured again. A new dictionary each
        # time, for the live view draws in a thread.
        self._latest = {**self._latest, **{key: value for key, value in row.items() if value is not None}}
        if self._live is not None:
            self._live.update(self._latest)
            return
        now = time.monotonic()
        slower = min((now - self._began) / 60.0, _SLOWEST_LINES_S)
        if now - self._last_line < max(self._interval_s, slower if self._interval_s else 0.0):
            self._waiting = True
            return
        self._last_line = now
        self._describe()

    def message(self, text: str) -> None:
        """Show a line of text between the rows: a warning, or where the run's files are."""
        if self._live is not None:
            self._live.message(text)
        else:
            self._line(text)

    def flush(self) -> None:
        """Do nothing: what is shown is shown at once."""

    def close(self, result: str | None = None) -> None:
        """Show the last row, leave the terminal as it was, and end with a line on standard output.

        Args:
            result: the line, if any. Closing twice is harmless.
        """
        if self._live is not None:
            self._live.close()
        elif self._waiting:
            self._describe()
        if result is not None:
            _write(sys.stdout, result + "\n")

    def _describe(self) -> None:
        """Write the plain line of the latest row; ASCII, for it may go to any file."""
        self._waiting = False
        progress = self._progress
        parts = [f"{progress.fraction:4.0%}", f"{progress.env_steps:,} / {progress.total_steps:,} steps"]
        if progress.steps_per_second is not None:
            parts.append(f"{progress.steps_per_second:,.0f} steps/s")
        if progress.seconds_left is not None and progress.fraction < 1.0:
            parts.append(f"{format_duration(progress.seconds_left)} left")
        for key in self._headline:
            if key in self._latest:
                parts.append(f"{key} {format_value(self._latest[key])}")
        self._line(" | ".join(parts))

    def _line(self, text: str) -> None:
        """Write one line to the stream."""
        _write(self._stream, text + "\n")


class EvaluationLine:
    """Says how far an evaluation is, on standard error, where it takes longer than some seconds.

    On a terminal a line that renews itself and goes at the end; elsewhere a line now and then, later one a minute.
    """

    def __init__(self, episodes: int, *, stream: TextIO | None = None) -> None:
        """Begin to wait for `episodes` episodes; `stream` is standard error by default."""
        self._episodes = episodes
        self._stream = stream if stream is not None else sys.stderr
        self._renews = _is_terminal(self._stream)
        self._began = time.monotonic()
        self._next = self._began + (_QUIET_S if self._renews else _QUIET_LINES_S)
        self._shown = False

    def __call__(self, ended: int, steps: int) -> None:
        """Show how many episodes have ended, and how many steps were played, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        spent = now - self._began
        self._next = now + (_RENEWAL_S if self._renews else min(max(spent, _QUIET_LINES_S), _SLOWEST_LINES_S))
        text = f"{ended} of {self._episodes} episodes | {steps:,} steps | {format_duration(spent)}"
        _write(self._stream, f"\r\x1b[K{text}" if self._renews else text + "\n")
        self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._renews and self._shown:
            _write(self._stream, "\r\x1b[K")


def format_value(value: Value) -> str:
    """Return a metric's value as people read it: four significant digits, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    number = float(value)
    if not abs(number) < 1e15:  # huge, infinite or not a number
        return f"{number:.4g}"
    if isinstance(value, int) or abs(number) >= 1e4:
        return f"{number:,.0f}"
    return f"{number:,.1f}" if abs(number) >= 100 else f"{number:.4g}"


def format_duration(seconds: float) -> str:
    """Return a time span: `0:07`, `12:30`, `3:05:00`, `2d 03:05:00`."""
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, seconds_left = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{seconds_left:02}"
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def sections(row: Row) -> dict[str, list[tuple[str, str]]]:
    """Return a row's metrics as (name, value) by the part of their key before `/`, counters and blanks left out.

    What people look at first comes first: episodes, then evaluations; what has no section comes last.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for key, value in row.items():
        if key not in FIRST_COLUMNS and value is not None:
            section, _, name = key.rpartition("/")
            found.setdefault(section, []).append((name, format_value(value)))
    rank = {"episode": 0, "eval": 1, "": 3}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0], 2)))


def _start_live(progress: Progress, title: str, stream: TextIO) -> "LiveView":
    """Start the live view; rich takes 0.1 s to import, and only a terminal needs it."""
    from rlx.run.live import LiveView

    return LiveView(progress, title, stream)


def _is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # closed
        return False


def _write(stream: TextIO, text: str) -> None:
    """Write to a stream that may have lost its reader."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        pass  # a closed pipe or terminal: nobody is there to be told

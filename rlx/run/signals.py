"""Signals that ask a run to stop: noted at once, obeyed at the next safe point, enforced when none comes in time."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if name in signal.Signals.__members__
)
"""Ctrl-C; a scheduler's end or preemption; a scheduler's early warning, and submitit's; a terminal that is closed."""


class StopRequested(KeyboardInterrupt):
    """A signal asked the run to stop; raised at a safe point, or anywhere once its time limit is over.

    It passes through `except Exception`, as Ctrl-C does.

    Attributes:
        signal: the signal that asked.
        safe: whether it was raised at a safe point, so that a checkpoint may be written.
        exit_status: what the command line exits with: 130 for Ctrl-C, else 143.
    """

    def __init__(self, number: signal.Signals, *, safe: bool) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number
        self.safe = safe
        self.exit_status = exit_status(number)


def exit_status(number: signal.Signals) -> int:
    """Return the exit status of a run that a signal ended: 130 for Ctrl-C, 143 for every other."""
    return 130 if number == signal.SIGINT else 143


def is_heard(number: signal.Signals) -> bool:
    """Return whether a signal stops a run: all do, but for that of a closed terminal where `nohup` has it ignored."""
    return number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN


class StopSignals:
    """Turns each of `STOP_SIGNALS` into a request that the run's loop obeys at its next safe point.

        with StopSignals() as stop:
            while ...:
                iterate()
                if stop.reached():  # a safe point: from here on no limit runs
                    save(); break

    A second Ctrl-C raises KeyboardInterrupt at once. Where no safe point comes within the limit, `StopRequested` is
    raised in the main thread, wherever it is. On leaving, handlers and timer are as they were. Outside the main thread,
    where Python can set no handler, this does nothing.

    Attributes:
        requested: the signal that asked to stop; None while none has.
        at_once: whether a signal raises `StopRequested` where it is: set while there is nothing to save.
    """

    def __init__(self, limit_s: float = 1.5, terminate_limit_s: float = 8.0) -> None:
        """Prepare; handlers are set on entering.

        Args:
            limit_s: seconds from Ctrl-C to `StopRequested` when no safe point is reached; a run shall end within 2.
            terminate_limit_s: the same for the others; a scheduler kills after 10 or more.
        """
        self.requested: signal.Signals | None = None
        self.at_once = False
        self._at_safe_point = False
        self._limit_s = limit_s
        self._terminate_limit_s = terminate_limit_s
        self._previous: dict[signal.Signals, Any] = {}

    def reached(self) -> signal.Signals | None:
        """Note that a safe point is reached, and return the signal that asked to stop, or None.

        Where one asked, its limit no longer runs: the caller now saves and leaves.
        """
        if self.requested is not None:
            self._at_safe_point = True  # also stops an alarm that rang already and is about to be handled
            if self._previous:
                signal.setitimer(signal.ITIMER_REAL, 0)
        return self.requested

    def obey(self, agreed: signal.Signals | None) -> signal.Signals | None:
        """Do the same with the signal that several ranks have agreed on, whichever of them it came to.

        One that came just now, to this rank alone, waits for the next safe point.
        """
        if agreed is None:
            return None
        self.requested = agreed
        return self.reached()

    def hold(self) -> None:
        """Note that the run ends now, asked to or not: from here on no limit interrupts it."""
        self._at_safe_point = True
        self.reached()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_limit)
            for number in filter(is_heard, STOP_SIGNALS):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            # None: set by C code before Python started; it cannot be given back, and the default is the nearest.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Note the first request and start its clock; a second Ctrl-C does not wait."""
        asked = signal.Signals(number)
        if self.requested is None:
            self.requested = asked
            if self.at_once:
                raise StopRequested(asked, safe=False)
            limit_s = self._limit_s if asked == signal.SIGINT else self._terminate_limit_s
            signal.setitimer(signal.ITIMER_REAL, limit_s)
        elif asked == signal.SIGINT:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    def _on_limit(self, _number: int, _frame: FrameType | None) -> None:
        """Stop waiting for a safe point."""
        if self.requested is not None and not self._at_safe_point:
            raise StopRequested(self.requested, safe=False)

"""Signals before there is a run that obeys them in its own way; no torch in here."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from rlx.run.signals import STOP_SIGNALS, is_heard

_STOPPING = [number for number in STOP_SIGNALS if number != signal.SIGINT]


class Stopped(KeyboardInterrupt):
    """A signal came before there was a run.

    Attributes:
        signal: which one.
        exit_status: what the command line exits with.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number
        self.exit_status = 130 if number == signal.SIGINT else 143


class _Stop:
    """The handler: raises, and keeps what it raised."""

    def __init__(self) -> None:
        self.came: list[Stopped] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.came.append(Stopped(signal.Signals(number)))
        raise self.came[-1]


@contextmanager
def stoppable() -> Generator[None]:
    """Let SIGTERM and its like end the command from its first line on; a run, once there, obeys in its own way.

    Raises:
        Stopped: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop, here = _Stop(), [*filter(is_heard, _STOPPING)]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is somebody's own, or ignored
        here.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in here}
    try:
        with errors_of_signals():
            yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # else the run has seen to its own end
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def errors_of_signals() -> Generator[None]:
    """Take an error that follows a signal for the signal's, where `stoppable` is in force; else do nothing.

    What a signal's handler raises may be lost: torch, where it calls Python, takes any error for one of its own, and a
    checkpoint that was being read would seem damaged.

    Raises:
        Stopped: a signal came before the error.
    """
    stop = signal.getsignal(_STOPPING[0])
    try:
        yield
    except Exception as error:
        if not isinstance(stop, _Stop) or not stop.came:
            raise
        raise stop.came[0] from error


def obey_lost_signal() -> None:
    """Raise again what a signal's handler raised before, where `stoppable` is in force; whoever it passed dropped it.

    torch does that to whatever comes while it imports NumPy.

    Raises:
        Stopped: a signal came.
    """
    stop = signal.getsignal(_STOPPING[0])
    if isinstance(stop, _Stop) and stop.came:
        raise stop.came[0]

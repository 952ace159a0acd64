"""Signals that ask a run to stop."""

import select
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from rlx.run.signals import STOP_SIGNALS, StopRequested, StopSignals

HANDLED = (*STOP_SIGNALS, signal.SIGALRM)


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_becomes_a_request_that_waits_for_the_safe_point(number, status):
    with StopSignals(limit_s=60, terminate_limit_s=60) as stop:
        assert stop.requested is None
        assert stop.reached() is None
        signal.raise_signal(signal.Signals[number])
        assert stop.requested is signal.Signals[number]
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
        assert stop.reached() is signal.Signals[number]
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    stopped = StopRequested(signal.Signals[number], safe=True)
    assert stopped.exit_status == status
    assert str(stopped) == f"stopped by {number}"


def test_the_first_signal_counts_and_later_ones_do_not_move_its_limit():
    with StopSignals(limit_s=60, terminate_limit_s=30) as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested is signal.SIGUSR1


def test_a_second_ctrl_c_does_not_wait():
    with StopSignals(limit_s=60) as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(caught.value, StopRequested)
        assert stop.requested is signal.SIGINT
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_safe_point_that_never_comes_is_not_waited_for():
    with StopSignals(limit_s=0.02) as stop:
        with pytest.raises(StopRequested) as caught:  # noqa: PT012
            signal.raise_signal(signal.SIGINT)
            select.select([], [], [], 60)  # a wait in C, as for a worker's answer
        assert not caught.value.safe
        assert caught.value.signal is signal.SIGINT
        assert stop.requested is signal.SIGINT


def test_no_limit_interrupts_what_is_done_after_the_safe_point():
    with StopSignals(limit_s=60) as stop:
        signal.raise_signal(signal.SIGINT)
        stop.reached()
        signal.raise_signal(signal.SIGALRM)  # the alarm that rang in the same moment


def test_a_stop_passes_through_handlers_of_ordinary_errors():
    assert issubclass(StopRequested, KeyboardInterrupt)
    assert not issubclass(StopRequested, Exception)


@pytest.fixture
def python_handles_ctrl_c():
    """Give SIGINT Python's own handler: a shell's background job starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_handlers_and_timer_are_given_back():
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(ZeroDivisionError), StopSignals(limit_s=60):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_touched():
    before = [signal.getsignal(number) for number in HANDLED]
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append([signal.getsignal(number) for number in HANDLED])
            seen.append(stop.reached())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


CHILD = """
import signal, sys, time
from rlx.run.signals import StopRequested, StopSignals

try:
    with StopSignals(limit_s=float(sys.argv[2]), terminate_limit_s=float(sys.argv[2])) as stop:
        print("ready", flush=True)
        while True:
            if sys.argv[1] == "loop":
                sum(range(1000))
                if stop.reached():
                    print("saved", flush=True)
                    sys.exit(StopRequested(stop.requested, safe=True).exit_status)
            else:
                while stop.requested is None:
                    time.sleep(0.001)
                if sys.argv[1] == "stuck":
                    print("noted", flush=True)
                while True:
                    signal.pause()
except StopRequested as stopped:
    print("unsafe", flush=True)
    sys.exit(stopped.exit_status)
except KeyboardInterrupt:
    print("at once", flush=True)
    sys.exit(130)
"""


def start(*arguments):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def finish(child):
    output, _ = child.communicate(timeout=30)
    return output, child.returncode


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_process_that_is_asked_to_stop_saves_and_leaves(number, status):
    child = start("loop", "60")
    child.send_signal(signal.Signals[number])
    assert finish(child) == ("saved\n", status)


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_process_without_safe_points_leaves_at_its_limit(number, status):
    child = start("quiet", "0.05")
    child.send_signal(signal.Signals[number])
    assert finish(child) == ("unsafe\n", status)


def test_ctrl_c_twice_ends_a_process_at_once():
    child = start("stuck", "600")
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "noted\n"
    child.send_signal(signal.SIGINT)
    assert finish(child) == ("at once\n", 130)

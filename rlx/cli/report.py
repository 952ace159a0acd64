"""How a command ends: results on standard output, one message on standard error, and the exit status."""

import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from rlx.errors import RlxError, RunWriteError, UserError

_RANK_0_SECONDS = 10.0  # to come as far as another rank


@contextmanager
def reported_errors() -> Generator[None]:
    """Turn errors that rlx explains into one message and an exit status; anything else keeps its traceback.

    Where the error was caused by the user's own code, that code's traceback comes before the message.

    Raises:
        SystemExit: with the error's status; after Ctrl-C 130, as shells have it.
    """
    try:
        yield
    except RlxError as error:
        sys.stdout.flush()
        # What is wrong with a command line is found out by every process that torchrun starts with it.
        if error.of_one_rank or not isinstance(error, UserError) or os.environ.get("RANK", "0") == "0":
            _say(describe(error))
        else:
            _leave_it_to_rank_0()
        raise SystemExit(error.exit_status) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            message = f"'{error.filename}': {error.strerror}"  # whichever argument it was
        elif error.errno == errno.ENOENT and _nowhere():
            message = "the working directory is gone; go to one that is there"
        else:
            raise
        _say(f"Error: {message}")
        raise SystemExit(UserError.exit_status) from None
    except KeyboardInterrupt as interrupt:  # a run that a signal ended brings its own status
        _say(f"Interrupted{f': {interrupt}' if str(interrupt) else ''}.")
        raise SystemExit(getattr(interrupt, "exit_status", 130)) from None


@contextmanager
def end_at_once() -> Generator[None]:
    """End the process of a rank that failed without the interpreter's own end, once all has been said.

    A failing rank leaves its process group as it is: an exchange may be pending that never ends. Gloo's threads let go
    of the tensors of the last exchanges in their own time, for which they need the interpreter; if that is at its end
    by then, it aborts the process (status -6, "terminate called without an active exception").
    """
    try:
        yield
    except BaseException as error:
        distributed: Any = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            raise
        status = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        elif not isinstance(status, int | None):
            sys.stderr.write(f"{status}\n")  # as the interpreter does
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _say(text: str) -> None:
    """Write to standard error, where anybody listens: a terminal may be closed, and the status is the same."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _nowhere() -> bool:
    """Return whether somebody has removed the working directory."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _leave_it_to_rank_0() -> None:
    """Give rank 0 the time to say it: whoever started the ranks ends all of them as soon as one has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_RANK_0_SECONDS)


def describe(error: RlxError) -> str:
    """Return what the user reads of `error`: the traceback of what their code raised, if it did, and the message."""
    cause = error.__cause__
    by_user = cause is not None and error.exit_status == 1 and not isinstance(error, RunWriteError)
    return f"{''.join(traceback.format_exception(cause)) if by_user else ''}Error: {error}"


@contextmanager
def only_json_on_stdout(active: bool) -> Generator[Callable[[str], None]]:
    """Keep standard output for the result.

    Args:
        active: True to send whatever else is written to standard output, by this process, by libraries or by workers,
            to standard error until the end.

    Yields:
        A function that prints one line of the result.
    """
    if not active:
        yield _write
        return
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed
        yield _write
        return
    lines: list[str] = []
    try:
        os.dup2(2, 1)
        try:
            yield lines.append
        finally:
            sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        for line in lines:
            _write(line)


@contextmanager
def shown() -> Generator[None]:
    """Take what a library prints for what a command was to show: its reader may have seen enough, its disk be full.

    Raises:
        SystemExit: the reader has seen enough; nothing is said then.
        RlxError: it could not be written.
    """
    logging.raiseExceptions = False  # of what is shown by way of logging
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _close_output()
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise _unwritten(error) from None


def _write(line: str) -> None:
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # the reader has seen enough: Typer ends the command without a word
    except OSError as error:
        raise _unwritten(error) from None


def _unwritten(error: OSError) -> RlxError:
    _close_output()
    return RlxError(f"cannot write to standard output: {error.strerror}")


def _close_output() -> None:
    """Let what is left of standard output go nowhere; else it fails once more on leaving."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

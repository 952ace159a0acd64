"""What went wrong in a worker elsewhere: how it travels to the batcher, and what is raised there."""

import traceback
from dataclasses import dataclass

from rlx import errors
from rlx.errors import EnvironmentFault, RlxError, UserError, WorkerError, message_of


@dataclass(frozen=True)
class Failure:
    """An exception on its way from a worker: plain text, so that any exception can travel.

    Attributes:
        kind: name of the exception's class.
        message: its text.
        trace: its traceback, printed, causes included.
        mendable: whether a new process may do better: an exception that the environment raised. What the user's agent,
            makers or spaces do wrong is wrong again in a new process.
    """

    kind: str
    message: str
    trace: str
    mendable: bool

    @classmethod
    def of(cls, error: BaseException, *, made: bool, restarted: bool) -> "Failure":
        """Return what is to be told about `error`, which may not even be printable.

        Args:
            error: what was raised.
            made: whether the worker's environments had been made.
            restarted: whether they had been made once, in a former incarnation: what breaks them now may pass, such as
                a port in use or a server that is down.
        """
        mendable = _is_the_environments(error) if made else restarted and not isinstance(error, UserError)
        message = message_of(error)
        try:
            trace = "".join(traceback.format_exception(error))
        except Exception:
            trace = "(its traceback cannot be printed)"
        return cls(type(error).__name__, _shortened(message, 4_000), _shortened(trace, 40_000), mendable)


def _shortened(text: str, most: int) -> str:
    """Return `text`, or its beginning and end where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters ...]\n{text[-most // 2 :]}"


def _is_the_environments(error: BaseException) -> bool:
    """Return whether an environment raised; a fault without a cause is an answer that breaks the contract instead."""
    return isinstance(error, EnvironmentFault) and error.__cause__ is not None


class RemoteTraceback(Exception):  # noqa: N818  (a traceback is what it is)
    """The traceback of what a worker raised, as text: the cause of the error that the batcher raises."""


def as_error(failure: Failure, where: str) -> RlxError:
    """Return what the batcher raises for a failure; `where` names the worker."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, RlxError):
        error = kind(f"{where}: {failure.message}" if kind is EnvironmentFault else failure.message)
    else:
        error = WorkerError(f"{where} raised {failure.kind}: {failure.message}")
    error.__cause__ = RemoteTraceback(f"\n{failure.trace}")
    return error

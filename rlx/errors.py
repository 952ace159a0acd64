"""Every error that rlx raises on purpose, and how it leaves the command line.

RlxError                      something rlx can explain in one message
├── UserError                 what was asked cannot be done as asked           (exit status 2)
│   ├── ConfigError           a key, a group member, a type or a range
│   ├── SpecError             data that does not fit its declared shape or dtype
│   │   └── UnsupportedSpaceError  a space rlx has no layout for
│   ├── AgentError            an agent that breaks the Agent contract
│   ├── DeviceError           a device that is not here
│   ├── MissingPackageError   a package that only this needs is not installed
│   ├── ClusterError          a cluster that cannot be reached, or has no room
│   ├── RunDirectoryError     a run directory that exists, is missing or is foreign
│   └── CheckpointError       a checkpoint that is missing, damaged or of something else
├── EnvironmentFault          the user's environment raised or broke its contract (exit status 1)
├── WorkerError               a worker process failed or died                  (exit status 1)
├── RankError                 another rank of a distributed learner failed, died or did not come  (exit status 1)
├── LossError                 a loss is not finite; the run stops before the step  (exit status 1)
├── RunWriteError             a file of a run cannot be written: a full disk   (exit status 1)
└── DataRevokedError          Trajectories used after their slot was handed back (exit status 1)
"""

import difflib
from collections.abc import Iterable
from typing import Self


class RlxError(Exception):
    """Base of all errors that rlx raises on purpose; its text is meant for the user as it stands.

    Attributes:
        exit_status: what the command line exits with when this error ends a command.
        of_one_rank: of several processes that train together, this one is to tell of it; otherwise the first one does,
            of what all of them find wrong.
    """

    exit_status: int = 1
    of_one_rank: bool = False


class UserError(RlxError):
    """What was asked cannot be done as asked: nothing was started, nothing was written."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration key, group member, type or range is wrong."""


class SpecError(UserError, ValueError):
    """Data does not fit the shape, dtype or structure that was declared for it."""


class UnsupportedSpaceError(SpecError):
    """A space that rlx has no tensor layout for."""


class AgentError(UserError):
    """An agent broke the Agent contract, for example by returning wrong shapes."""


class DeviceError(UserError):
    """The device that was asked for is not here."""


class MissingPackageError(UserError):
    """A package that only this needs is not installed."""

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> Self:
        """Return the error that says what needs which package, and the extra of rlx that brings it."""
        return cls(f"{what} needs {package}, which is not installed: pip install 'rlx[{extra}]'")


class ClusterError(UserError):
    """A cluster of machines cannot be reached, does not fit, or has no room."""


class RunDirectoryError(UserError):
    """A run directory exists already, is missing, or is not a run of rlx."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another algorithm, environment or shape."""


class EnvironmentFault(RlxError):
    """The user's environment raised, or returned what its own spaces do not allow."""


class WorkerError(RlxError):
    """A worker process failed or died."""


class RankError(RlxError):
    """Another rank of a distributed learner failed, died or did not come."""


class LossError(RlxError):
    """A loss is NaN or infinite."""


class RunWriteError(RlxError):
    """A file of a run cannot be written: the disk is full, or the run directory is gone."""


class DataRevokedError(RlxError):
    """Trajectories were used after their memory was handed back to the workers."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the name most like `name`, or None where nothing is near.

    Args:
        name: what was typed.
        names: what there is.
        cutoff: how like, from 0 to 1 (the same); more than usual where the names are of other places.
    """
    candidates = list(names)
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
    if found:
        return found[0]
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, or an empty string where nothing is near; made to end a message."""
    match = nearest(name, names)
    return f" Did you mean '{match}'?" if match is not None else ""


def message_of(error: BaseException) -> str:
    """Return the message of any exception, also of one that cannot print it."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be printed)"


def first_cause(error: BaseException) -> str:
    """Return what went wrong at first, of all that was raised on its account, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

"""Messages between the batcher and a worker process, where either side may be gone, stopped or stuck at any byte.

Messages are plain pickles. multiprocessing's own would send each tensor as a file descriptor, fetched later through a
thread of the sender's: a receiver that dies in between would leave descriptors behind. Functions and classes that no
module has (lambdas, what was defined in a function or typed into a notebook) travel as their code, by cloudpickle.
"""

import os
import pickle
import socket
import struct
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from rlx.batcher.start import main_is_importable
from rlx.errors import WorkerError


class ClosedError(Exception):
    """The other side is gone."""


class StalledError(Exception):
    """The other side stopped in the middle of a message."""


_dumps = partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)


def pack(content: Any, dumps: Callable[[Any], Any] = _dumps) -> bytes:
    """Return `content` as bytes that `pickle.loads` reads in another process.

    Args:
        content: what is to travel.
        dumps: pickles it, where a module has all of its functions and classes.

    Raises:
        Exception: it holds what cannot travel, such as a lock or an open file.
    """
    try:
        data = bytes(dumps(content))
        if b"__main__" not in data or main_is_importable():
            return data
    except Exception:  # lambdas raise three kinds of them
        pass
    import cloudpickle

    return cloudpickle.dumps(content)


def no_way_to(place: str, error: Exception) -> WorkerError:
    """Return what is raised where what makes agents and environments cannot travel to `place`."""
    return WorkerError(
        f"make_env and make_agent must be picklable to reach {place} ({error}): they may hold no locks, open files and "
        "the like, and make those when they are called; or use local workers"
    )


def send(connection: Connection, message: Any) -> None:
    """Send a message.

    Raises:
        ClosedError: the other side is gone.
        StalledError: it does not read what it was sent, and there is a limit of time (`limit_time`).
        Exception: whatever pickle makes of a message that cannot travel; nothing has been sent then.
    """
    data = pack(message)
    try:
        connection.send_bytes(data)
    except BlockingIOError:
        raise StalledError from None
    except OSError:
        raise ClosedError from None


def receive(connection: Connection) -> Any:
    """Return the next message, waiting for it.

    Raises:
        ClosedError: the other side is gone, perhaps in the middle of the message.
        StalledError: nothing came for longer than the limit of time.
        Exception: whatever pickle makes of a message that it cannot read.
    """
    try:
        data = connection.recv_bytes()
    except BlockingIOError:
        raise StalledError from None
    except (EOFError, OSError):
        raise ClosedError from None
    return pickle.loads(data)


def limit_time(connection: Connection, seconds: float) -> None:
    """Let no `send` or `receive` on this side wait longer than `seconds` for the other side's next bytes."""
    whole = int(seconds)
    limit = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class Parcel:
    """Something on its way to a new process, which opens it itself and can tell what went wrong.

    multiprocessing would open it before any code of ours runs, and die with a traceback on standard error.
    """

    def __init__(self, content: Any) -> None:
        """Wrap what is to travel."""
        self._content = content
        self._data: bytes | None = None

    def open(self) -> Any:
        """Return the content.

        Raises:
            Exception: it cannot be unpickled here, such as a function of a module that is not importable.
        """
        return self._content if self._data is None else pickle.loads(self._data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _sealed, (pack(self._content, ForkingPickler.dumps),)


def _sealed(data: bytes) -> Parcel:
    parcel = Parcel(None)
    parcel._data = data  # pyright: ignore[reportPrivateUsage]
    return parcel

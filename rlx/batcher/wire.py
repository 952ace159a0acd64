"""Messages between the batcher and a worker process, where either side may be gone, stopped or stuck at any byte.

Messages are plain pickles. multiprocessing's own would send each tensor as a file descriptor, fetched later through a
thread of the sender's: a receiver that dies in between would leave descriptors behind.
"""

import os
import pickle
import socket
import struct
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any


class ClosedError(Exception):
    """The other side is gone."""


class StalledError(Exception):
    """The other side stopped in the middle of a message."""


def send(connection: Connection, message: Any) -> None:
    """Send a message.

    Raises:
        ClosedError: the other side is gone.
        StalledError: it does not read what it was sent, and there is a limit of time (`limit_time`).
        Exception: whatever pickle makes of a message that cannot travel; nothing has been sent then.
    """
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
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
        return _sealed, (bytes(ForkingPickler.dumps(self._content)),)


def _sealed(data: bytes) -> Parcel:
    parcel = Parcel(None)
    parcel._data = data  # pyright: ignore[reportPrivateUsage]
    return parcel

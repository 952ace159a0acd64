"""This process's connection to Ray: found or started, checked, and ended with the last batcher that uses it.

Ray allows one connection a process. It is made and ended in a thread of its own, for two reasons: Ray replaces the
handler of SIGTERM where it is started in the main thread; and on Linux, Ray's own processes end with the thread that
started them.
"""

import importlib
import logging
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rlx.errors import ClusterError, ConfigError, MissingPackageError, message_of

CONNECT_SECONDS = 60.0
"""How long a cluster may take to answer, or a local one to start."""
ROOM_SECONDS = 30.0
"""How long free cores are waited for: nodes may be on their way, or another run about to end."""
_KNOCK_SECONDS = 5.0

# A call to no method, as gRPC puts it on the line: HTTP/2's preface, no settings, and one frame of headers.
_CALL = b"\x83\x86\x84\x41\x03ray\x5f\x10application/grpc\x40\x02te\x08trailers"
_KNOCK = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + bytes([0, 0, len(_CALL), 1, 5, 0, 0, 0, 1]) + _CALL
)
_HEADERS = 1
_STATUS_OK = 0x88  # gRPC says so even where there is no such method; a web server says that there is no such page

# Ray reads these when it is imported. What the user has set stays.
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without a GPU is not told so; Ray warns of the change
}

_SETTINGS = {
    "worker_niceness": 0,  # 15 as it comes: the workers would give way to whatever else the machine does
    "prestart_worker_first_driver": False,
}


def require_ray() -> ModuleType:
    """Return `ray`, imported so that it leaves this process's exception hook alone.

    Raises:
        MissingPackageError: it is not installed.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    hook = sys.excepthook
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingPackageError.of("batcher=ray", "ray", "ray") from None
    finally:
        sys.excepthook = hook


class _Keeper:
    """A thread that does what it is told, one thing after the other, and lives until it is told to end."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="rlx-ray").start()

    def do(self, task: Callable[[], Any], seconds: float) -> BaseException | None:
        """Do a task; return what it raised.

        Raises:
            TimeoutError: it took longer than `seconds`; it may still go on.
        """
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks.put((task, answer))
        try:
            return answer.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    def end(self) -> None:
        self._tasks.put(None)

    def _work(self) -> None:
        while (work := self._tasks.get()) is not None:
            task, answer = work
            try:
                task()
            except BaseException as error:
                answer.put(error)
            else:
                answer.put(None)


class Connection:
    """What this process has of Ray.

    Attributes:
        is_local: whether this is a Ray of our own, started here, with no limit on actors.
    """

    _lock = threading.Lock()
    _current: "Connection | None" = None

    def __init__(self, address: str | None) -> None:
        """Connect; use `open`."""
        self.is_local = address is None
        self._address = address
        self._users = 0
        self._keeper: _Keeper | None = None
        ray: Any = require_ray()
        if ray.is_initialized():  # by the program that uses rlx: it is not ours to end
            self.is_local = False
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        resolved = None if address is None else _resolve(address)
        options: dict[str, Any] = {"address": resolved, "log_to_driver": False, "configure_logging": False}
        if address is None:
            options |= {"address": "local", "num_cpus": 1, "include_dashboard": False, "_system_config": _SETTINGS}
        keeper = self._keeper = _Keeper()
        where = "a local Ray" if address is None else f"batcher.address={address}"
        try:
            problem = keeper.do(lambda: ray.init(logging_level=logging.ERROR, **options), CONNECT_SECONDS)
        except TimeoutError:
            keeper.end()
            raise ClusterError(f"{where}: no connection within {CONNECT_SECONDS:.0f} s") from None
        if problem is not None:
            keeper.do(ray.shutdown, CONNECT_SECONDS)
            keeper.end()
            raise _as_error(problem, where)
        _keep_quiet()
        _take_back_sigterm()

    @classmethod
    def open(cls, address: str | None) -> "Connection":
        """Return this process's connection, made now where there is none; each `open` needs a `close`.

        Args:
            address: None for a local Ray of our own, `auto` for the one that runs on this machine, or `host:port`.

        Raises:
            ClusterError: the cluster cannot be reached, or is of another version of Ray or Python.
            ConfigError: the address is none, or another one is in use.
        """
        with cls._lock:
            if cls._current is None:
                cls._current = Connection(address)
            elif cls._current._keeper is not None and cls._current._address != address:
                raise ConfigError(
                    f"batcher.address: got {address!r}, but this process uses Ray at {cls._current._address!r} already"
                )
            cls._current._users += 1
            return cls._current

    def close(self) -> None:
        """Let go of it; the last one ends it."""
        with Connection._lock:
            self._users -= 1
            if self._users:
                return
            Connection._current = None
            if self._keeper is None:
                return
            ray: Any = require_ray()
            try:
                self._keeper.do(ray.shutdown, CONNECT_SECONDS)
            except TimeoutError:
                pass
            finally:
                self._keeper.end()

    def wait_for_room(self, num_workers: int, cpus: float) -> None:
        """Wait until so many workers find free cores.

        Raises:
            ClusterError: there are not that many within `ROOM_SECONDS`.
        """
        if self.is_local or not cpus:
            return
        deadline = time.monotonic() + ROOM_SECONDS
        pause = threading.Event()
        while not _has_room(num_workers, cpus):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"no room for {num_workers} workers of {cpus:g} CPUs each (batcher.num_workers, "
                    f"batcher.cpus_per_worker) within {ROOM_SECONDS:.0f} s: {self.room()}"
                )
            pause.wait(0.2)

    def room(self) -> str:
        """Return how many cores there are, and how many are free, for messages."""
        nodes = _nodes()
        free = _free_cpus()
        return f"the cluster has {sum(nodes):g} CPUs on {len(nodes)} nodes, {free:g} of them free"


def _nodes() -> list[float]:
    """Return the CPUs of each node that is alive."""
    ray: Any = require_ray()
    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def _free_cpus() -> float:
    ray: Any = require_ray()
    return ray.available_resources().get("CPU", 0.0)


def _has_room(num_workers: int, cpus: float) -> bool:
    fit = sum(math.floor(node / cpus) for node in _nodes())
    return fit >= num_workers and _free_cpus() >= num_workers * cpus


def _resolve(address: str) -> str:
    """Return the address as Ray wants it, once something answers there that may be Ray.

    Ray itself would try for two minutes, and write about each try to the terminal.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if address in ("", "auto"):
            return "auto"
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in address:
        raise ConfigError(f"batcher.address: got {address!r}, expected null, auto or host:port")
    ray: Any = require_ray()
    host = host.strip("[]")
    if host in ("localhost", "127.0.0.1", "::1"):
        host = ray.util.get_node_ip_address()
    try:
        with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "1" and not _speaks_grpc(connection):
                raise ClusterError(f"batcher.address={address}: something answers there, and it is not Ray")
    except OSError as error:
        raise ClusterError(
            f"batcher.address={address}: nothing answers there ({message_of(error)}). Is the cluster's head running "
            "(ray start --head), and does its port let this machine in?"
        ) from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _speaks_grpc(connection: socket.socket) -> bool:
    """Return whether the other side speaks what Ray's control service is spoken in."""
    with connection.makefile("rb") as answers:
        try:
            connection.sendall(_KNOCK)
            while len(frame := answers.read(9)) == 9:
                payload = answers.read(int.from_bytes(frame[:3], "big"))
                if frame[3] == _HEADERS:
                    return _STATUS_OK in payload[:4]
        except OSError:
            pass
    return False


def _as_error(problem: BaseException, where: str) -> ClusterError:
    text = message_of(problem)
    if "ersion mismatch" in text:
        told = " ".join(line.strip() for line in text.splitlines() if line.strip())
        return ClusterError(f"{where}: {told} All nodes need the same Ray and the same Python")
    if "Could not find any running Ray instance" in text:
        return ClusterError(f"{where}: no Ray runs on this machine; start one (ray start --head), or give host:port")
    lines = text.strip().splitlines() or [""]
    return ClusterError(f"{where}: Ray cannot be used here: {type(problem).__name__}: {lines[0]}")


def _take_back_sigterm() -> None:
    """Have SIGTERM reach Python again: Ray's C++ part has put a handler of its own there, which prints a stack."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _keep_quiet() -> None:
    """Have Ray tell of its nodes' ends in a log only: it prints them to standard output, whatever it is asked."""
    worker: Any = importlib.import_module("ray._private.worker")

    def note(data: Any, ignore_prefix: bool = False) -> None:
        del ignore_prefix
        logging.getLogger(__name__).debug("%s", "\n".join(data.get("lines", ())))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = note

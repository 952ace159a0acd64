"""The workers of one batcher: how each kind of them is started, reached and ended together."""

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import Lock, get_ident
from typing import Literal, get_args

from rlx.batcher.handles import CLOSE_SECONDS, Handle, LocalHandle
from rlx.batcher.process import ProcessHandle
from rlx.batcher.restart import OnFailure
from rlx.batcher.worker_options import WorkerOptions
from rlx.errors import UserError, did_you_mean

WorkerKind = Literal["local", "process", "ray"]


class Crew:
    """Some workers of one kind.

    Attributes:
        handles: one each, in order.
    """

    def __init__(
        self,
        kind: WorkerKind,
        *,
        num_workers: int,
        on_failure: OnFailure,
        step_timeout: float | None,
        address: str | None,
        cpus_per_worker: float | None,
    ) -> None:
        """Make ready for workers, which `add` starts; for Ray, connect to it.

        Args:
            kind: see `Batcher`, like the others.
            num_workers: how many there will be.
            on_failure: see there.
            step_timeout: see there.
            address: see there.
            cpus_per_worker: see there.

        Raises:
            UserError: there is no such kind, an address and no Ray, or a cluster that does not serve.
        """
        if kind not in get_args(WorkerKind):
            expected = ", ".join(get_args(WorkerKind))
            raise UserError(
                f"workers: got {kind!r}, expected one of {expected}.{did_you_mean(kind, get_args(WorkerKind))}"
            )
        self.handles: list[Handle] = []
        self._closing, self._turn = ExitStack(), Lock()
        self._closed_by: int | None = None  # which thread
        self._on_failure: OnFailure = on_failure
        self._step_timeout = step_timeout
        self._kind = kind
        if kind == "ray":
            from rlx.batcher.ray_cluster import require_ray

            require_ray()
            from rlx.batcher.ray_handle import RayCrew

            self._ray = RayCrew(address, num_workers=num_workers, cpus_per_worker=cpus_per_worker)
            self._closing.callback(self._ray.close)
        elif address is not None:
            raise UserError(f"batcher.address: got {address!r} with workers={kind}; expected null, or workers=ray")

    def add(self, options: WorkerOptions) -> None:
        """Start one more worker, which will send its specs."""
        if self._kind == "local":
            self.handles.append(LocalHandle(options))
            return
        start = self._ray.start if self._kind == "ray" else ProcessHandle
        self.handles.append(start(options, on_failure=self._on_failure, step_timeout=self._step_timeout))

    @contextmanager
    def served(self) -> Generator[None]:
        """Let one thread at a time wait for the workers.

        Raises:
            UserError: another one does, or has ended them meanwhile.
        """
        if not self._turn.acquire(blocking=False):
            raise UserError("another thread is waiting for this batcher's workers: one at a time may use it")
        try:
            yield
        except Exception as error:
            if self._closed_by in (None, get_ident()):
                raise
            self.close()  # what was started at that moment
            raise UserError("the batcher was closed by another thread while this one waited for its workers") from error
        finally:
            self._turn.release()

    def close(self) -> None:
        """End all of them, even where the `close` of an environment raises."""
        self._closed_by = get_ident() if self._closed_by is None else self._closed_by
        deadline = time.monotonic() + CLOSE_SECONDS
        with self._closing as closing:  # in reverse order
            for handle in self.handles:
                closing.callback(handle.join, deadline)
            for handle in self.handles:
                closing.callback(handle.close)

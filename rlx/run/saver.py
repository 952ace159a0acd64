"""Checkpoints written beside the training: the run waits while its state is copied, a thread does the rest."""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlx.errors import RunWriteError
from rlx.run.checkpoint import prune_checkpoints, take_snapshot, write_snapshot
from rlx.run.files import reason_of, sync_file

_log = logging.getLogger(__name__)

BEST = "best"
"""Name of the checkpoint with the weights that were best in an evaluation, beside the others."""


_UNTIL = ", and ends if the next checkpoint cannot be written either"


class Saver:
    """Writes one checkpoint at a time; the next one waits for it.

    A checkpoint that could not be written is told of, and the run goes on: the disk may have room again soon. When the
    next one cannot be written either, that is an error.

    Attributes:
        saved_at: environment steps of the newest checkpoint that is written; None while there is none.
    """

    def __init__(self, directory: Path, *, keep_last: int, keep_every: int, saved_at: int | None = None) -> None:
        """Prepare.

        Args:
            directory: the run directory.
            keep_last: the newest checkpoints that stay.
            keep_every: of those before, the first in each so many environment steps stays, too; 0 for none.
            saved_at: see above; of a resumed run.
        """
        self._directory, self._keep_last, self._keep_every = directory, keep_last, keep_every
        self.saved_at = saved_at
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failed_before = False
        self._counts = True  # whether the last one was a checkpoint to go on from

    def save(
        self,
        state: Mapping[str, Any],
        config: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        logs: Sequence[Path] = (),
        name: str | None = None,
    ) -> str:
        """Copy the state and begin to write it.

        Args:
            state: see `rlx.run.state`.
            config: the run's configuration.
            meta: notes; `env_steps` among them.
            logs: files that the disk has to have before the checkpoint that counts on them.
            name: another one than `step-N`; such a checkpoint replaces the last of its name, and is never removed.

        Returns:
            Its name.

        Raises:
            RunWriteError: neither this checkpoint nor the one before could be written.
        """
        self.wait()
        self._counts = name is None
        snapshot = take_snapshot(state, config, meta)

        def write() -> None:
            try:
                for path in logs:
                    sync_file(path)
                write_snapshot(self._directory, snapshot, name)
                if name is None:
                    prune_checkpoints(self._directory, self._keep_last, self._keep_every)
                    self.saved_at = snapshot.env_steps
            except RunWriteError as error:
                self._failure = error
            except OSError as error:
                self._failure = RunWriteError(f"cannot write '{error.filename}': {reason_of(error)}")
            except BaseException as error:  # not the disk's doing: to try again would not help
                self._failure = error

        self._thread = threading.Thread(target=write, name="rlx-checkpoint")
        self._thread.start()
        return name or snapshot.name

    def wait(self, *, last: bool = False) -> None:
        """Wait until the last one is written.

        Args:
            last: whether a failure is an error at once, because there will be no other try.

        Raises:
            RunWriteError: see `save`.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        counts = self._counts  # the weights that were best take less room than a checkpoint does, and are no substitute
        again = last or self._failed_before
        if failure is not None and (not isinstance(failure, RunWriteError) or (counts and again)):
            raise failure
        if failure is not None:
            _log.warning("%s; the run goes on%s", failure, _UNTIL if counts else "")
        if counts:
            self._failed_before = failure is not None

    def rest(self) -> None:
        """Wait until nothing is being written any more, whatever came of it."""
        if self._thread is not None:
            self._thread.join()

"""The same rows for TensorBoard.

TensorBoard's own writers import its whole stub of TensorFlow (0.2 to 0.4 s), and torch's writer imports those. An event
file is simple enough to frame here: only the message classes come from TensorBoard (0.02 s).
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rlx.run.files import RecordFile
from rlx.run.metrics import FIRST_COLUMNS, Row

_file_numbers = itertools.count()


class TensorBoardSink:
    """Writes each number of a row as a scalar event at step `env_steps`; text and blanks are left out.

    Each event is in the file before `write` returns. Tags are the row's keys, so that keys with the same part before
    `/` share a section.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        known: Mapping[str, int] | None = None,
        purge_step: int | None = None,
        hparams: Mapping[str, bool | float | str] | None = None,
    ) -> None:
        """Create an event file in a directory.

        Args:
            path: the directory; created where it is missing.
            known: what `position` had returned when the checkpoint was written that a run goes on from: what older
                files took since then goes.
            purge_step: events of older files in it from this step on no longer count: a run was taken up again there.
            hparams: hyper-parameters for the HParams tab; None for none.
        """
        # Imported here: most importers of this module (worker processes, evaluation) never write an event.
        from tensorboard.compat.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # generated classes, of which type checkers see nothing
        summaries: Any = summary_pb2
        self._event: Any = events.Event
        self._summary: Any = summaries.Summary
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        if known is not None:
            _cut_events(directory, known)
        self._last_step = -1 if purge_step is None else purge_step - 1
        moment = time.time()
        # TensorBoard reads files in the order of their names: the numbers of one second's files are of one length.
        second = _second_after_others(directory, int(moment))
        stem = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
        name = f"{stem}.{next(_file_numbers):06d}"
        self._file = RecordFile(directory / name)
        self._append(self._event(wall_time=moment, file_version="brain.Event:2"))
        if purge_step is not None:
            start = events.SessionLog(status=events.SessionLog.START)
            self._append(self._event(wall_time=moment, step=purge_step, session_log=start))
        if hparams is not None:
            self._append(self._event(wall_time=moment, summary=self._summary(value=[_session(hparams, moment)])))

    def write(self, row: Row) -> None:
        """Append one event that holds the row's numbers.

        Raises:
            OSError: the file could not be written (a full disk); it is as it was before.
        """
        step = int(row.get("env_steps") or 0)
        # What is found out late belongs to steps that lie in the past. TensorBoard takes a tag that goes back in steps
        # for a run begun anew, and forgets what it had of it.
        left_out = {"env_steps"} if step > self._last_step else set(FIRST_COLUMNS)
        self._last_step = max(step, self._last_step)
        scalars = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in row.items()
            if name not in left_out and value is not None and not isinstance(value, str)
        ]
        self._append(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    @property
    def path(self) -> Path:
        """Return the file that is being written."""
        return self._file.path

    def position(self) -> dict[str, int]:
        """Return the sizes of all event files in the directory, by name."""
        found = sorted(self.path.parent.glob("events.*"))
        return {path.name: self._file.size if path == self.path else path.stat().st_size for path in found}

    def flush(self) -> None:
        """Wait until the disk has every event."""
        self._file.sync()

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def _append(self, event: Any) -> None:
        """Append one event as a TFRecord: length, its checksum, the data, its checksum."""
        data: bytes = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.append(length + _checksum(length) + data + _checksum(data))


def _session(hparams: Mapping[str, bool | float | str], moment: float) -> Any:
    """Return the value by which the HParams tab knows a run: its plugin's data, and an empty tensor."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    plugin, summaries, tensors, types = (cast(Any, it) for it in (plugin_data_pb2, summary_pb2, tensor_pb2, types_pb2))
    start = plugin.SessionStartInfo(start_time_secs=moment)
    for name, value in hparams.items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(start.hparams[name], f"{kind}_value", value)
    told = plugin.HParamsPluginData(session_start_info=start).SerializeToString()
    empty = tensors.TensorProto(dtype=types.DT_FLOAT)
    empty.tensor_shape.dim.add(size=0)
    metadata = summaries.SummaryMetadata(
        plugin_data=summaries.SummaryMetadata.PluginData(plugin_name="hparams", content=told)
    )
    return summaries.Summary.Value(tag="_hparams_/session_start_info", metadata=metadata, tensor=empty)


def _second_after_others(directory: Path, now: int) -> int:
    """Return the second that a new file is named by: now, or one after all others, where the clock was put back."""
    parts = [path.name.split(".") for path in directory.glob("events.out.tfevents.*")]
    newest = max((int(part[3]) for part in parts if part[3].isdecimal()), default=0)
    return now if newest <= now else newest + 1


def _cut_events(directory: Path, sizes: Mapping[str, int]) -> None:
    """Undo what event files took since `TensorBoardSink.position` was asked: those that were not there go."""
    for path in directory.glob("events.*"):
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])


def _crc32c_table() -> tuple[int, ...]:
    """Return the 256 steps of CRC-32C (Castagnoli, reflected polynomial 0x82F63B78)."""
    table: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc32c_table()


def _checksum(data: bytes) -> bytes:
    """Return the checksum of the TFRecord format: CRC-32C, rotated and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)

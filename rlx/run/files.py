"""Files that are either whole or not there: atomic replacement, durable folders, logs that lose no finished record."""

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rlx.errors import RlxError, UserError

_REFUSED = "it cannot be written to"


def expanded(path: Path | str) -> Path:
    """Return a path that a user gave, with `~` expanded; `~nobody` of no user of this machine stays as it is."""
    return Path(os.path.expanduser(path))


def yaml_files(directory: Path) -> list[Path]:
    """Return the YAML files below a configuration directory, in order.

    What only has such a name is none, as Hydra has it: Emacs locks a file by a link to nothing.
    """
    return [path for path in sorted(directory.rglob("*.yaml")) if path.is_file()]


def check_output(path: Path, option: str) -> Path:
    """Return where a command writes the file that it was asked for, `~` expanded, before anything is done for it.

    Args:
        path: of the file.
        option: what it was given as: `--output`.

    Raises:
        UserError: no file can be written there; says why.
    """
    path = expanded(path)
    try:
        reason = _why_not(path)
    except (OSError, RuntimeError) as error:  # the second: links in a circle
        reason = reason_of(error)
    if reason is None:
        return path
    raise UserError(f"{option}: cannot write '{path}': {reason}")


def _why_not(path: Path) -> str | None:
    """Return why a file cannot be written, or None where one can be; a new name is tried out.

    Raises:
        OSError: the system says it.
    """
    folder = path.parent
    if path.is_dir():
        return "it is a folder; expected a file"
    if not folder.is_dir():
        return f"there is no folder '{folder}'"
    if path.exists():
        return None if os.access(path, os.W_OK) and (_in_place(path) or os.access(folder, os.W_OK)) else _REFUSED
    if not os.access(folder, os.W_OK):
        return f"the folder {str(folder)!r} cannot be written to"
    target = path.resolve()  # of a link to nothing
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # what rights do not tell, as of `/proc`
    target.unlink()
    return None


@contextlib.contextmanager
def writing_output(path: Path) -> Generator[IO[bytes]]:
    """Give the file that a command writes at a place from `check_output`: whole, or the old one stays (`replacing`).

    A link stays one, and what is no regular file, such as `/dev/stdout` or a named pipe, is written to as it is.

    Raises:
        RlxError: the file system refused it.
    """
    try:
        with open(path, "wb") if _in_place(path) else replacing(path.resolve()) as file:
            yield file
    except OSError as error:
        raise RlxError(f"cannot write '{path}': {reason_of(error)}") from None


def _in_place(path: Path) -> bool:
    return path.exists() and not path.is_file()


def fsync_directory(path: Path) -> None:
    """Make the names inside a directory durable: a rename is on disk only after its directory is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a directory; there the rename is as durable as it gets
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[IO[bytes]]:
    """Give a file to write, which takes the place of `path` when the block ends, and vanishes when it raises.

    A reader, and a process killed at any moment, find the old content or the new one, never a mixture.

    Args:
        path: the file to create or to replace.

    Yields:
        A binary file in the same directory.

    Raises:
        OSError: the file system refused it; `filename` is `path`, which is as it was before.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # not the temporary file's name, which tells nobody much
        raise
    fsync_directory(path.parent)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write a text file (UTF-8) atomically and durably: see `replacing`."""
    with replacing(Path(path)) as file:
        file.write(text.encode())


def write_durable(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it; for files inside a directory that is itself renamed later."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until the disk has a file that something else wrote."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_ready(value: Any) -> Any:
    """Return data that strict JSON can hold, made from results and configurations.

    NumPy and torch scalars become Python numbers, paths and other objects text, tuples lists, and the numbers that
    JSON lacks (NaN and the infinities) None.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, Sequence | set | frozenset):
        return [json_ready(item) for item in cast(Sequence[Any], value)]
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return json_ready(value.tolist())
    return str(value)


def write_json_atomic(path: Path | str, data: Mapping[str, Any]) -> None:
    """Write a mapping as strict, indented JSON, atomically: see `json_ready` and `replacing`."""
    write_text_atomic(path, json.dumps(json_ready(data), indent=2, allow_nan=False) + "\n")


def reason_of(error: BaseException) -> str:
    """Return what an error says, short: the system's words where it is the system's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class RecordFile:
    """A file that grows by whole records: one system call a record, and a record that failed leaves no trace.

    A process that dies loses at most the record it was writing. When the disk is full, the part that did go through is
    cut off again before the error is raised, so that the next record starts where the last whole one ended.
    """

    def __init__(self, path: Path | str) -> None:
        """Open `path` for appending, and create it where it is missing."""
        self.path = Path(path)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.size = os.fstat(self._descriptor).st_size

    @property
    def closed(self) -> bool:
        """Return whether `close` was called."""
        return self._descriptor < 0

    def append(self, record: bytes) -> None:
        """Append one record.

        Raises:
            OSError: the file system refused it; the file is as it was before, and `filename` names it.
        """
        written = 0
        try:
            while written < len(record):
                written += os.write(self._descriptor, record[written:] if written else record)
        except BaseException as error:
            self.truncate(self.size)
            if isinstance(error, OSError):
                error.filename = str(self.path)  # which a descriptor's own errors do not say
            raise
        self.size += written

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes."""
        os.ftruncate(self._descriptor, size)
        self.size = size

    def sync(self) -> None:
        """Wait until the disk has every record."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if not self.closed:
            os.close(self._descriptor)
            self._descriptor = -1

"""Where a run's rows go: the sink protocol, and the CSV file that every run writes."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlx.errors import RunDirectoryError
from rlx.run.files import RecordFile, replacing

Value = float | int | str | bool | None
Row = Mapping[str, Value]

FIRST_COLUMNS = ("env_steps", "iteration", "wall_time")
"""What every row has: environment steps so far, the iteration's number, seconds since the run began."""

TIMED = ("wall_time", "speed/", "time/", "system/", "eval/cpu_share")
"""How the names of columns begin that tell of the machine; all others are the same in each run with the same seed."""


class MetricSink(Protocol):
    """Something that takes a run's rows; users may bring their own.

    Rows come in order, one a logged iteration, each with `env_steps`, `iteration`, `wall_time` (seconds) and whatever
    was measured. A later row may have keys that no earlier one had, and may lack some.

    Three more names are optional. `position()` returns where a resumed run has to go on (a number, text, or lists and
    dictionaries of these); it is kept in checkpoints, and given back as `RunInfo.position`. `path` is a file in the run
    directory that holds the rows: the thread that writes a checkpoint then sees to it that the disk has it, in place of
    `flush`, and a run that cannot write it ends. Any other logger that fails is left out from there on, with a warning.
    An attribute `status` is set before `close`, to how the run ended: `done`, `stopped` (by a signal) or `failed`.
    """

    def write(self, row: Row) -> None:
        """Take one row."""
        ...

    def flush(self) -> None:
        """Make durable what was taken; called before a checkpoint."""
        ...

    def close(self) -> None:
        """Finish; called once, also when the run failed."""
        ...


class CsvSink:
    """`metrics.csv`: one header, one line a row, each line in the file before `write` returns.

    A row with a new column rewrites the file atomically: old rows keep their cells and get a blank one. Opening an
    existing file continues it, and first cuts off a last line that was never finished. Numbers are written so that
    reading them back gives the same bits; line breaks in text become spaces, so that a line is always a row.
    """

    def __init__(self, path: Path | str, *, keep_rows: int | None = None) -> None:
        """Open or create the file.

        Args:
            path: the file.
            keep_rows: of a file that exists, keep only the first so many rows: those that a checkpoint knew of.

        Raises:
            RunDirectoryError: the file exists and is not a metrics file, or has fewer than `keep_rows` rows.
        """
        if keep_rows and not Path(path).exists():
            raise RunDirectoryError(f"'{path}' has 0 rows, expected at least {keep_rows}: it is gone")
        self._file = RecordFile(path)
        try:
            self.columns: tuple[str, ...] = ()
            self.num_rows = 0
            if self._file.size:
                self._continue(keep_rows)
            elif keep_rows:
                raise RunDirectoryError(
                    f"'{path}' has 0 rows, expected at least {keep_rows}: it is not this run's file"
                )
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._file.path

    def position(self) -> int:
        """Return the rows so far."""
        return self.num_rows

    def write(self, row: Row) -> None:
        """Append one row; blank where it lacks a column.

        Raises:
            OSError: the file could not be written (a full disk); it is as it was before.
        """
        if not self.columns:
            columns = (*FIRST_COLUMNS, *(name for name in row if name not in FIRST_COLUMNS))
            self._file.append(_header(columns) + _line([_cell(row.get(name)) for name in columns]))
            self.columns = columns
        else:
            new = tuple(name for name in row if name not in self.columns)
            if new:
                self._add_columns(new)
            self._file.append(_line([_cell(row.get(name)) for name in self.columns]))
        self.num_rows += 1

    def flush(self) -> None:
        """Wait until the disk has every row."""
        self._file.sync()

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def _continue(self, keep_rows: int | None) -> None:
        """Take up an existing file: its columns, its whole rows, and nothing behind them."""
        path = self._file.path
        lines = _whole_lines(path)
        if lines:
            self.columns = _columns(path, lines[0])
            rows = lines[1:]
            if keep_rows is not None:
                if len(rows) < keep_rows:
                    raise RunDirectoryError(
                        f"'{path}' has {len(rows)} rows, expected at least {keep_rows}: rows were removed from it"
                    )
                rows = rows[:keep_rows]
            self.num_rows = len(rows)
            lines = lines[:1] + rows
        self._file.truncate(sum(len(line) for line in lines))

    def _add_columns(self, new: Sequence[str]) -> None:
        """Rewrite the file with more columns, blank in the rows so far."""
        path = self._file.path
        columns = (*self.columns, *new)
        blanks = b"," * len(new) + b"\n"
        with open(path, "rb") as old, replacing(path) as wider:
            old.readline()
            wider.write(_header(columns))
            for line in old:
                wider.write(line[:-1] + blanks)
        self._file.close()
        self._file = RecordFile(path)
        self.columns = columns


def read_metrics(path: Path | str) -> list[dict[str, Value]]:
    """Read a metrics file back, also one that a run is writing or was killed over.

    Args:
        path: a `metrics.csv`.

    Returns:
        One dictionary a row: numbers as int or float, blanks as None, everything else as text. A last line that is
        not finished is left out.

    Raises:
        RunDirectoryError: the file is missing or not a metrics file.
    """
    path = Path(path)
    try:
        lines = _whole_lines(path)
    except OSError as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error.strerror}") from error
    if not lines:
        return []
    columns = _columns(path, lines[0])
    blank: dict[str, Value] = dict.fromkeys(columns)
    cells = csv.reader(line.decode(errors="replace") for line in lines[1:])
    return [blank | dict(zip(columns, map(_value, row), strict=False)) for row in cells]


def read_columns(path: Path | str, names: Sequence[str]) -> dict[str, list[float]]:
    """Read a few columns of a metrics file as numbers: what pictures and tables need, at a million rows a second.

    Args:
        path: a `metrics.csv`; it may be one that a run is writing or was killed over.
        names: the columns.

    Returns:
        Each of the columns that the file has, one number a row; NaN where the cell is blank or text.

    Raises:
        RunDirectoryError: the file is missing or not a metrics file.
    """
    return {name: _as_floats(cells) for name, cells in _cells(Path(path), names).items()}


class NewRows:
    """What a run adds to its metrics file, a few columns as numbers: a look costs what is new, however long it is."""

    def __init__(self, path: Path | str, names: Sequence[str]) -> None:
        """Begin with the first row.

        Args:
            path: a `metrics.csv`; it may come later.
            names: the columns.
        """
        self._path, self._names = Path(path), tuple(names)
        self._header = b""
        self._num_bytes = self._num_rows = 0  # read so far

    def read(self) -> dict[str, list[float]]:
        """Return the rows that were finished since the last call, as `read_columns` does; nothing where there are none.

        Raises:
            OSError: the file cannot be read.
            RunDirectoryError: it is not a metrics file.
        """
        with open(self._path, "rb") as file:
            header = file.readline()
            same = header == self._header  # else all rows were written anew, with one more column
            place = self._num_bytes if same else len(header)
            file.seek(place)
            body = _whole(file.read())
        columns = _columns(self._path, header) if body else ()
        known = 0 if same else self._num_rows
        found = {name: _as_floats(cells[known:]) for name, cells in _cells_of(columns, body, self._names).items()}
        if body:
            self._header, self._num_bytes = header, place + len(body)
            self._num_rows += body.count(b"\n") - known
        return found


def blank_rows(path: Path | str, name: str) -> list[bool]:
    """Return for each row of a metrics file whether its cell of a column is blank; nothing where there is no such one.

    Raises:
        RunDirectoryError: the file is missing or not a metrics file.
    """
    return [not cell for cells in _cells(Path(path), (name,)).values() for cell in cells]


def column_names(path: Path) -> tuple[str, ...]:
    """Return the columns of a metrics file; none where there is no such file."""
    try:
        with open(path, "rb") as file:
            return _columns(path, file.readline())
    except (OSError, RunDirectoryError):
        return ()


def _cells(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the cells of those columns that a metrics file has, one a row."""
    try:
        data = _whole(path.read_bytes())
    except OSError as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error.strerror}") from error
    header, _, body = data.partition(b"\n")
    return _cells_of(_columns(path, header) if data else (), body, names)


def _cells_of(columns: Sequence[str], body: bytes, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the cells of those of `names` that are among a file's columns, one a row of `body`."""
    places = {name: columns.index(name) for name in names if name in columns}
    if not places:
        return {}
    cuts = max(places.values()) + 1
    if b'"' in body:  # a cell of text may hold commas
        rows: list[list[Any]] = list(csv.reader(body.decode(errors="replace").splitlines()))
    else:
        rows = [line.split(b",", cuts) for line in body.split(b"\n")[:-1]]
    return {name: [row[place] for row in rows] for name, place in places.items()}


def _as_floats(cells: list[Any]) -> list[float]:
    """Return the numbers in cells; NaN where one is blank or text."""
    try:
        return list(map(float, cells))
    except ValueError:
        return [_as_float(cell) for cell in cells]


def _as_float(cell: bytes | str) -> float:
    """Return the number in a cell, or NaN."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _whole(data: bytes) -> bytes:
    """Return a file's data up to its last line break, and nothing from where a crash left zeros."""
    hole = data.find(b"\0")
    if hole >= 0:
        data = data[:hole]
    return data[: data.rfind(b"\n") + 1]


def _whole_lines(path: Path) -> list[bytes]:
    """Return the finished lines of a file."""
    return _whole(path.read_bytes()).splitlines(keepends=True)


def _columns(path: Path, header: bytes) -> tuple[str, ...]:
    """Return the columns that a header line names."""
    try:
        columns = tuple(next(csv.reader([header.decode()])))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        columns = ()
    if columns[: len(FIRST_COLUMNS)] != FIRST_COLUMNS:
        expected = ",".join(FIRST_COLUMNS)
        raise RunDirectoryError(f"'{path}' is no metrics file of rlx: its first line does not begin with '{expected}'")
    return columns


def _header(columns: Sequence[str]) -> bytes:
    """Return the line that names the columns."""
    return _line([_cell(name) for name in columns])


def _line(cells: Sequence[str]) -> bytes:
    """Return one line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """Return how a value stands in a cell."""
    if value is None:
        return ""
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float | int):
        return repr(value)
    return " ".join(str(value).replace("\0", " ").splitlines())


def _value(cell: str) -> Value:
    """Return what a cell says."""
    if not cell:
        return None
    try:
        return int(cell)
    except ValueError:
        pass
    try:
        return float(cell)
    except ValueError:
        return cell


def as_number(value: Any) -> float | None:
    """Return a row's value as a number, or None where it is text, blank or not a number (NaN)."""
    if value is None or isinstance(value, str):
        return None
    number = float(value)
    return None if math.isnan(number) else number

"""The CSV file of a run."""

import csv
import os
import resource

import numpy as np
import pytest

from rlx.errors import RunDirectoryError
from rlx.run.metrics import CsvSink, NewRows, as_number, read_metrics


def row(step, **metrics):
    return {"env_steps": step * 100, "iteration": step, "wall_time": step / 3, **metrics}


def write(path, *rows):
    sink = CsvSink(path)
    for each in rows:
        sink.write(each)
    sink.close()


def test_rows_stand_in_the_file_at_once_under_one_header(tmp_path):
    path = tmp_path / "metrics.csv"
    sink = CsvSink(path)
    sink.write({"loss": 0.5, **row(1)})
    assert path.read_text() == "env_steps,iteration,wall_time,loss\n100,1,0.3333333333333333,0.5\n"
    sink.write(row(2, loss=0.25))
    assert path.read_text().splitlines()[2] == "200,2,0.6666666666666666,0.25"
    sink.close()


def test_the_first_columns_are_there_even_where_a_row_lacks_them(tmp_path):
    write(tmp_path / "m.csv", {"loss": 1.0})
    assert (tmp_path / "m.csv").read_text() == "env_steps,iteration,wall_time,loss\n,,,1.0\n"


def test_a_new_column_keeps_every_old_row(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, row(1, a=1), row(2, a=2), row(3, b="x, y", c=True), row(4, a=4, d=None))
    rows = read_metrics(path)
    assert [each["a"] for each in rows] == [1, 2, None, 4]
    assert [each["b"] for each in rows] == [None, None, "x, y", None]
    assert [each["c"] for each in rows] == [None, None, 1, None]
    assert list(rows[0]) == ["env_steps", "iteration", "wall_time", "a", "b", "c", "d"]
    with open(path, newline="") as file:  # and others' readers see a plain table
        assert {len(cells) for cells in csv.reader(file)} == {7}
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_numbers_come_back_to_the_bit(tmp_path):
    values = [0.1 + 0.2, 1e-300, -0.0, float("inf"), 2**70, np.float32(0.1), np.int64(7)]
    write(tmp_path / "m.csv", *(row(step, x=value) for step, value in enumerate(values)))
    assert [repr(each["x"]) for each in read_metrics(tmp_path / "m.csv")] == [
        "0.30000000000000004",
        "1e-300",
        "-0.0",
        "inf",
        "1180591620717411303424",
        repr(float(np.float32(0.1))),
        "7",
    ]
    write(tmp_path / "nan.csv", row(0, x=float("nan")))
    assert as_number(read_metrics(tmp_path / "nan.csv")[0]["x"]) is None


def test_a_line_is_a_row_whatever_text_it_holds(tmp_path):
    path = tmp_path / "m.csv"
    write(path, row(1, note='two\nlines, "quoted"\r\nand more\0', **{"odd\nname": 1}), row(2))
    assert len(path.read_bytes().splitlines()) == 3
    assert read_metrics(path)[0]["note"] == 'two lines, "quoted" and more '


def test_a_run_killed_at_any_byte_loses_only_the_row_being_written(tmp_path):
    """Every prefix of the file, as a kill may leave it: what is read, and what a reopened file continues with."""
    rows = [row(1, a=0.1), row(2, a=-2.5, note="some, text"), row(3, a=3)]
    sink = CsvSink(tmp_path / "whole.csv")
    ends = []
    for each in rows:
        sink.write(each)
        ends.append((tmp_path / "whole.csv").stat().st_size)
    sink.close()
    whole = (tmp_path / "whole.csv").read_bytes()
    start = whole.rfind(b"\n", 0, ends[1] - 1)  # the header of the wider file and its first row were renamed into place
    expected = read_metrics(tmp_path / "whole.csv")
    path = tmp_path / "cut.csv"
    for size in range(start + 1, len(whole) + 1):
        path.write_bytes(whole[:size])
        survived = sum(end <= size for end in ends)
        assert read_metrics(path) == expected[:survived]
        sink = CsvSink(path)
        assert sink.num_rows == survived
        for each in rows[survived:]:
            sink.write(each)
        sink.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("size", range(40))
def test_a_first_row_cut_short_counts_as_none(tmp_path, size):
    write(tmp_path / "m.csv", row(1, a=1))
    whole = (tmp_path / "m.csv").read_bytes()
    (tmp_path / "m.csv").write_bytes(whole[:size])
    assert read_metrics(tmp_path / "m.csv") == []
    write(tmp_path / "m.csv", row(1, a=1))
    assert (tmp_path / "m.csv").read_bytes() == whole


def test_zeros_that_a_crash_of_the_machine_left_are_cut_off(tmp_path):
    path = tmp_path / "m.csv"
    write(path, row(1, a=1))
    path.write_bytes(path.read_bytes() + b"200,2" + bytes(100) + b"\n300,3,1.0,1\n")
    assert len(read_metrics(path)) == 1
    write(path, row(2, a=2))
    assert [each["a"] for each in read_metrics(path)] == [1, 2]


def test_a_reopened_file_goes_on_from_the_row_that_a_checkpoint_knew(tmp_path):
    path = tmp_path / "m.csv"
    write(path, row(1, a=1), row(2, a=2), row(3, a=3, late=1))
    sink = CsvSink(path, keep_rows=1)
    assert sink.num_rows == 1
    sink.write(row(2, a=9))
    sink.close()
    assert [each["a"] for each in read_metrics(path)] == [1, 9]
    with pytest.raises(RunDirectoryError, match="has 2 rows, expected at least 3"):
        CsvSink(path, keep_rows=3)
    with pytest.raises(RunDirectoryError, match="has 0 rows, expected at least 3"):
        CsvSink(tmp_path / "new.csv", keep_rows=3)


def test_a_widening_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.csv"
    sink = CsvSink(path)
    sink.write(row(1, a=1))
    before = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            sink.write(row(2, a=2, b=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.csv"]
    sink.write(row(2, a=2, b=1))  # and there is room again
    sink.close()
    assert [each["b"] for each in read_metrics(path)] == [None, 1]


def test_a_full_disk_tears_no_row(tmp_path):
    path = tmp_path / "m.csv"
    sink = CsvSink(path)
    sink.write(row(1, a=1))
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            sink.write(row(2, a=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.write(row(3, a=3))
    sink.close()
    assert [each["a"] for each in read_metrics(path)] == [1, 3]


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "m.csv"
    for content in (b"epoch,loss\n1,2\n", b"\xff\xfe\n", b"\n"):
        path.write_bytes(content)
        for use in (read_metrics, CsvSink):
            with pytest.raises(RunDirectoryError, match="no metrics file of rlx"):
                use(path)
        assert path.read_bytes() == content
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        read_metrics(tmp_path / "missing.csv")


def test_whoever_follows_a_run_gets_each_row_once_also_over_a_new_column(tmp_path):
    path = tmp_path / "metrics.csv"
    sink, followed = CsvSink(path), NewRows(path, ("iteration", "eval/return"))
    assert followed.read() == {}  # nothing is written yet
    sink.write(row(1))
    sink.write(row(2))
    assert followed.read() == {"iteration": [1.0, 2.0]}
    assert followed.read() == {}
    sink.write(row(3))
    sink.write({"eval/return": 7.5, **row(4)})  # all rows are written anew, with one more cell
    assert followed.read() == {"iteration": [3.0, 4.0], "eval/return": [pytest.approx(float("nan"), nan_ok=True), 7.5]}
    with open(path, "ab") as file:
        file.write(b"500,5,1.0,8")  # being written
        file.flush()
        assert followed.read() == {}
        file.write(b".25\n600,6,1.0,9.0\n")
    assert followed.read() == {"iteration": [5.0, 6.0], "eval/return": [8.25, 9.0]}
    sink.close()


def test_a_file_that_is_gone_or_foreign_has_no_new_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    followed = NewRows(path, ("iteration",))
    with pytest.raises(FileNotFoundError):
        followed.read()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunDirectoryError, match=r"is no metrics file of rlx"):
        followed.read()

"""Files that are whole or not there."""

import errno
import json
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from rlx.errors import RlxError, UserError
from rlx.run.files import (
    RecordFile,
    check_output,
    expanded,
    replacing,
    write_json_atomic,
    write_text_atomic,
    writing_output,
)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_replaced_file_has_the_new_text_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    write_text_atomic(path, "new, ü")
    assert path.read_text(encoding="utf-8") == "new, ü"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_text_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:  # noqa: PT012
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_output_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path):
    path = check_output(tmp_path / "a.csv", "--csv")
    assert names(tmp_path) == []
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(RlxError, match=f"^cannot write '{path}': {os.strerror(errno.EFBIG)}$") as caught:  # noqa: SIM117
            with writing_output(path) as file:
                file.write(b"more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_status == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_an_output_goes_through_links_and_into_what_is_no_file(tmp_path):
    (tmp_path / "there").mkdir()
    for name, target in (("link", "there/a"), ("null", os.devnull)):
        (tmp_path / name).symlink_to(target)
        with writing_output(check_output(tmp_path / name, "--csv")) as file:
            file.write(b"text")
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "text"
    assert Path(os.devnull).is_char_device()
    assert names(tmp_path) == ["link", "null", "there"]


def test_a_place_where_no_file_can_be_is_refused_by_option_and_path(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("no/a")
    (tmp_path / "folder").mkdir()
    cases = {
        tmp_path / "folder": "it is a folder; expected a file",
        tmp_path / "no" / "a": "there is no folder",
        tmp_path / ("x" * 300): os.strerror(errno.ENAMETOOLONG),
        tmp_path / "circle": "",  # the words are Python's
        tmp_path / "nowhere": os.strerror(errno.ENOENT),
        Path("/proc/a.csv"): os.strerror(errno.ENOENT),  # which root may write to, by its rights
        Path("~nobody-of-this-name/a.csv"): "there is no folder '~nobody-of-this-name'",
    }
    for path, reason in cases.items():
        with pytest.raises(UserError, match=f"^--csv: cannot write '{path}': .*{reason}") as caught:
            check_output(path, "--csv")
        assert caught.value.exit_status == 2


def test_the_longest_name_can_be_replaced(tmp_path):
    path = check_output(tmp_path / ("x" * 255), "--csv")
    write_text_atomic(path, "text")
    assert path.read_text() == "text"


def test_a_users_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == check_output(Path("~/a"), "--csv") == tmp_path / "a"
    assert expanded("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


def test_json_is_strict_whatever_it_is_given(tmp_path):
    path = tmp_path / "a.json"
    data = {
        "nan": math.nan,
        "inf": np.float32("inf"),
        "numpy": np.int64(3),
        "torch": torch.tensor([1.5, math.inf]),
        "path": tmp_path,
        "tuple": (1, True, None),
        4: "key",
    }
    write_json_atomic(path, data)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "nan": None,
        "inf": None,
        "numpy": 3,
        "torch": [1.5, None],
        "path": str(tmp_path),
        "tuple": [1, True, None],
        "4": "key",
    }


def test_a_record_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path):
    file = RecordFile(tmp_path / "log")
    file.append(b"one\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the first 6 bytes of the record still fit
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.append(b"a record that is too long\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log").read_bytes() == b"one\n"
    file.append(b"two\n")
    file.close()
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_record_is_written_whole_when_the_system_takes_it_in_pieces(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    file = RecordFile(tmp_path / "log")
    file.append(b"0123456789")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"0123456789"
    assert file.size == 10

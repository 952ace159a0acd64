"""Files that are whole or not there."""

import errno
import json
import math
import os
import resource

import numpy as np
import pytest
import torch

from rlx.run.files import RecordFile, replacing, write_json_atomic, write_text_atomic


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

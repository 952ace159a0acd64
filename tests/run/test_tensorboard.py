"""TensorBoard events, read back by TensorBoard itself."""

import itertools
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlx.run.tensorboard import TensorBoardSink, _checksum


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_number_at_its_step(tmp_path):
    sink = TensorBoardSink(tmp_path / "tensorboard")
    sink.write({"env_steps": 100, "iteration": 1, "wall_time": 0.5, "loss/policy": -0.25, "note": "text", "gap": None})
    assert read(tmp_path / "tensorboard")["loss/policy"] == [(100, -0.25)]  # there before the sink is closed
    sink.write({"env_steps": 3_000_000_000, "iteration": 2, "wall_time": 1.5, "eval/return": 500, "solved": True})
    sink.flush()
    sink.close()
    sink.close()
    assert read(tmp_path / "tensorboard") == {
        "iteration": [(100, 1.0), (3_000_000_000, 2.0)],
        "wall_time": [(100, 0.5), (3_000_000_000, 1.5)],
        "loss/policy": [(100, -0.25)],
        "eval/return": [(3_000_000_000, 500.0)],
        "solved": [(3_000_000_000, 1.0)],
    }


def test_two_sinks_of_one_second_write_two_files(tmp_path):
    sinks = [TensorBoardSink(tmp_path) for _ in range(3)]
    for sink in sinks:
        sink.close()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("made_before", [0, 9, 99])
def test_events_after_the_point_where_a_run_was_taken_up_again_do_not_count(tmp_path, monkeypatch, made_before: int):
    monkeypatch.setattr("rlx.run.tensorboard._file_numbers", itertools.count(made_before))
    first = TensorBoardSink(tmp_path)
    for step in (10, 20, 30):
        first.write({"env_steps": step, "x": float(step)})
    first.close()
    second = TensorBoardSink(tmp_path, purge_step=20)
    second.write({"env_steps": 25, "x": 2.5})
    second.close()
    assert read(tmp_path)["x"] == [(10, 10.0), (25, 2.5)]


def test_a_run_taken_up_again_after_the_clock_was_put_back_comes_behind_what_it_had_written(tmp_path, monkeypatch):
    for moment, step in ((2_000_000_000.5, 10), (1_900_000_000.5, 20), (1_900_000_001.5, 30)):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        sink = TensorBoardSink(tmp_path, purge_step=step)
        sink.write({"env_steps": step, "x": float(step)})
        sink.close()
    assert read(tmp_path)["x"] == [(10, 10.0), (20, 20.0), (30, 30.0)]


def test_events_before_a_torn_one_are_read(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"env_steps": 1, "x": 1.0})
    sink.write({"env_steps": 2, "x": 2.0})
    sink.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert read(tmp_path)["x"] == [(1, 1.0)]


@pytest.mark.parametrize("data", [b"", b"123456789", bytes(range(256))])
def test_the_checksum_is_tensorboards(data):
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    assert int.from_bytes(_checksum(data), "little") == masked_crc32c(data)


def test_writing_imports_neither_torch_nor_tensorboards_stub_of_tensorflow(tmp_path):
    script = (
        "import sys; from rlx.run.tensorboard import TensorBoardSink; TensorBoardSink(sys.argv[1]).close();"
        "print([name for name in ('torch', 'tensorflow', 'tensorboard.compat.tensorflow_stub') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_late_row_behind_the_point_where_a_run_was_taken_up_again_takes_nothing_away(tmp_path) -> None:
    first = TensorBoardSink(tmp_path)
    for step in (160, 400):
        first.write({"env_steps": step, "iteration": step // 80, "x": 1.0})
    first.close()
    second = TensorBoardSink(tmp_path, purge_step=401)
    second.write({"env_steps": 320, "iteration": 4, "eval/return": 5.0})  # an evaluation, told of late
    second.write({"env_steps": 480, "iteration": 6, "x": 2.0})
    second.close()
    found = read(tmp_path)
    assert found["iteration"] == [(160, 2.0), (400, 5.0), (480, 6.0)]
    assert found["eval/return"] == [(320, 5.0)]

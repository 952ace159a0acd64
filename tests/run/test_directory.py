"""Run directories."""

import math
import subprocess
import sys
import textwrap

import pytest

from rlx.errors import RunDirectoryError
from rlx.run.directory import (
    create_run_directory,
    default_run_directory,
    is_run_directory,
    read_summary,
    write_summary,
    write_text_atomic,
)


def test_a_run_directory_is_made_with_its_parents(tmp_path):
    made = create_run_directory(tmp_path / "a" / "b" / "run")
    assert made.is_dir()
    assert made.is_absolute()


def test_a_run_directory_that_exists_is_refused_and_left_alone(tmp_path):
    run = create_run_directory(tmp_path / "run")
    write_text_atomic(run / "config.yaml", "seed: 0\n")
    with pytest.raises(RunDirectoryError, match=r"run_dir: '.*/run' already exists"):
        create_run_directory(run)
    write_summary(run, {"status": "done"})
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        create_run_directory(run)
    assert (run / "config.yaml").read_text() == "seed: 0\n"


def test_a_path_that_cannot_be_a_directory_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        create_run_directory(tmp_path / "file")
    with pytest.raises(RunDirectoryError, match=r"Not a directory|lies below something that is a file"):
        create_run_directory(tmp_path / "file" / "run")
    with pytest.raises(RunDirectoryError, match="File name too long"):
        create_run_directory(tmp_path / ("x" * 300))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match=r"'.*link'"):
        create_run_directory(tmp_path / "link")


def test_of_several_processes_exactly_one_gets_the_directory(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from rlx.errors import RunDirectoryError
        from rlx.run.directory import create_run_directory
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            create_run_directory(sys.argv[1])
        except RunDirectoryError:
            sys.exit(2)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=30)
    assert sorted(racer.returncode for racer in racers) == [0, 2, 2, 2]


def test_default_directories_of_one_second_differ_and_are_one_folder_each(tmp_path):
    paths = {default_run_directory("ALE/Pong-v5", "ppo", tmp_path) for _ in range(100)}
    assert len(paths) == 100
    assert {path.parent for path in paths} == {tmp_path / "ALE-Pong-v5" / "ppo"}
    assert default_run_directory("../..", "").parts[:3] == ("runs", "-", "unnamed")


def test_a_summary_comes_back_and_holds_no_nan(tmp_path):
    assert read_summary(tmp_path) is None
    write_summary(tmp_path, {"status": "done", "return": math.nan, "returns": [1.0, 2.0]})
    assert read_summary(tmp_path) == {"status": "done", "return": None, "returns": [1.0, 2.0]}
    (tmp_path / "summary.json").write_text('{"status": "do')
    with pytest.raises(RunDirectoryError, match=r"summary\.json"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(RunDirectoryError, match="no JSON object"):
        read_summary(tmp_path)


def test_only_what_a_run_wrote_counts_as_a_run(tmp_path):
    assert not is_run_directory(tmp_path)
    assert not is_run_directory(tmp_path / "missing")
    (tmp_path / "config.yaml").write_text("")
    assert not is_run_directory(tmp_path)
    (tmp_path / "metrics.csv").write_text("")
    assert is_run_directory(tmp_path)

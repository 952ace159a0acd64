"""`log.txt` of whole runs: how it began, what it was warned of, how it ended."""

import logging
import os
import re
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

import rlx as package
from rlx.errors import EnvironmentFault
from rlx.run.log import RunLog, git_commit
from tests.batcher.ledger import ID
from tests.program import own, rlx_train
from tests.run.jobs import SMALL, train

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) (.*)")


def lines(directory: Path) -> list[str]:
    """Return the log's lines without their times, each of the promised form; tracebacks left out."""
    matches = [LINE.fullmatch(line) for line in (directory / "log.txt").read_text().splitlines()]
    return [f"{match[1]} {match[2]}" for match in matches if match]


def git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, *arguments], cwd=directory, capture_output=True, text=True, check=True).stdout


def test_log_tells_how_a_run_began_what_happened_and_how_it_ended(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "mine.py").write_text("one = 1\n")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-m", "One")
    typed = [
        *own("Warns"),
        "batcher=local",
        "seed=3",
        "total_steps=128",
        "evaluation.every=64",
        "evaluation.episodes=2",
    ]
    done = rlx_train(tmp_path, *typed, "run_dir='my run'", "checkpoint.every=64")
    assert done.returncode == 0, done.stderr
    told = lines(tmp_path / "my run")
    assert told[0] == "INFO begins: ppo on tests.run.short_and_long:Warns-v0, 128 steps"
    command = next(line for line in told if line.startswith("INFO command: rlx train "))
    assert all(word in command for word in ("seed=3", "batcher=local", "'run_dir='\"'\"'my run'\"'\"''"))
    assert f"INFO working directory: {tmp_path}" in told
    assert any(line.startswith("INFO host: ") and "process" in line for line in told)
    versions = next(line for line in told if line.startswith("INFO versions: "))
    assert f"rlx {package.__version__}, Python 3." in versions
    assert f"torch {torch.__version__}" in versions
    assert f"INFO git: {git(tmp_path, 'rev-parse', 'HEAD').strip()}" in told
    assert "INFO seed: 3; 4 environments; device: cpu" in told or "INFO seed: 3; 2 environments; device: cpu" in told
    warned = [line for line in told if line.startswith("WARNING")]
    assert len(warned) == 2
    assert "FutureWarning: levels are deprecated" in warned[0]
    assert warned[1] == "WARNING level 3 is missing"
    assert "FutureWarning: levels are deprecated" in done.stderr  # where it was shown, it is still
    assert "level 3 is missing\n" in done.stderr
    at = [
        index for index, line in enumerate(told) if re.match("INFO (evaluation|checkpoint) at (64|128) steps: ", line)
    ]
    assert len(at) == 4
    assert told[at[-1]] == "INFO checkpoint at 128 steps: checkpoints/step-000000128"
    assert "checkpoint at 64 " in told[at[0]]
    assert "evaluation at 64 steps: eval/return " in told[at[1]]  # told when the next is due, under its weights' steps
    assert told[-1].startswith("INFO done at 128 steps, after ")


def test_uncommitted_changes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init")
    (tmp_path / "mine.py").write_text("one = 1\n")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-m", "One")
    (tmp_path / "mine.py").write_text("one = 2\n")
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", *SMALL, "total_steps=64")
    (told,) = (line for line in lines(tmp_path / "run") if line.startswith("INFO git: "))
    assert told.endswith(" (with changes that are not committed)")


def test_changed_files_may_be_named_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init")
    git(tmp_path, "config", "core.quotePath", "false")
    named = os.fsdecode(b"caf\xe9.py")
    (tmp_path / named).write_text("")
    git(tmp_path, "add", named)
    git(tmp_path, "commit", "--quiet", "-m", "One")
    (tmp_path / named).write_text("pass\n")
    monkeypatch.chdir(tmp_path)
    assert git_commit() == f"{git(tmp_path, 'rev-parse', 'HEAD').strip()} (with changes that are not committed)"


def test_log_of_a_run_that_failed_holds_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    with pytest.raises(EnvironmentFault):
        train(tmp_path / "run", *SMALL, "total_steps=640", "env=gym", f"env.id={ID}", "+env.kwargs.break_at=40")
    told = lines(tmp_path / "run")
    assert re.match(r"ERROR failed at \d+ steps, after \d", told[-1])
    assert not any(line.startswith("INFO git: ") for line in told)
    text = (tmp_path / "run/log.txt").read_text()
    assert "Traceback (most recent call last):" in text
    assert "ledger.py" in text
    assert "the ledger tore" in text.splitlines()[-1]


def test_nothing_of_logging_or_warnings_is_changed_for_good(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers), warnings.showwarning, set(logging.root.manager.loggerDict)
    train(tmp_path / "run", *SMALL, "total_steps=64")
    after = list(logging.getLogger().handlers), warnings.showwarning, set(logging.root.manager.loggerDict)
    assert after[:2] == before[:2]
    assert not [name for name in after[2] - before[2] if name.startswith("rlx.run")]


def test_lines_before_the_file_is_there_come_first_and_a_full_disk_is_borne(tmp_path: Path) -> None:
    with RunLog() as log:
        logging.getLogger("early").warning("early")
        log.open(tmp_path / "log.txt")
        log.info("late")
    log.info("too late")
    assert lines(tmp_path) == ["WARNING early", "INFO late"]
    with RunLog() as log:
        log.open(Path("/dev/full"))  # nothing is written yet
        log.info("dropped")


def test_warnings_still_reach_standard_error_where_no_handler_was_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with RunLog() as log:
        log.open(tmp_path / "log.txt")
        logging.getLogger("levels").warning("level 3 is missing")
        log.info("quiet")
    assert capsys.readouterr().err == "level 3 is missing\n"
    assert logging.getLogger().handlers == []

"""Studies that several processes share: who begins a trial, and what becomes of those that nobody ends."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

pytest.importorskip("optuna")

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from rlx.errors import ConfigError, RunDirectoryError, RunWriteError
from rlx.tools.presence import SILENT_S, Presence
from rlx.tools.study import JOURNAL, PROCESSES, RETRY_OF, counts, open_study

from ..disk import full_disk
from ..program import ENVIRONMENT
from .studies import plan

LOOP = """
import sys, os, signal
from pathlib import Path
from optuna.trial import TrialState
from rlx.tools.study import open_study
from tests.tools.studies import plan
with open_study(Path(sys.argv[1]), plan()) as study:
    for wanted in range(1, int(sys.argv[2]) + 1):  # a race for each
        while (trial := study.begin(wanted)) is not None:
            if sys.argv[3] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            study.end(trial, TrialState.COMPLETE, 1.0)
"""


def start(directory: Path, wanted: int, how: str = "end") -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", LOOP, str(directory), str(wanted), how], env=ENVIRONMENT)


def test_processes_begin_together_no_more_trials_than_asked_for(tmp_path: Path) -> None:
    others = [start(tmp_path / "study", 12) for _ in range(3)]
    assert [other.wait(60) for other in others] == [0, 0, 0]
    with open_study(tmp_path / "study", plan()) as study:
        assert [(trial.number, trial.state) for trial in study.trials()] == [
            (number, TrialState.COMPLETE) for number in range(12)
        ]
        assert study.begin(12) is None
    assert [path.name for path in (tmp_path / "study" / PROCESSES).iterdir()] == ["turn"]


def test_trial_of_a_killed_process_failed_and_is_repeated_once(tmp_path: Path) -> None:
    for _ in range(2):
        assert start(tmp_path / "study", 3, "die").wait(60) == -9
    with open_study(tmp_path / "study", plan()) as study:
        trial = study.begin(1)
        assert trial is not None
        first, again, after = study.trials()
        assert first.state is again.state is TrialState.FAIL
        assert not counts(first)
        assert not counts(again)
        assert again.params == first.params
        assert again.user_attrs[RETRY_OF] == 0
        assert RETRY_OF not in after.user_attrs
        assert study.begin(1) is None  # it runs, and counts


def test_trial_that_another_process_ended_is_not_ended_again(tmp_path: Path) -> None:
    with open_study(tmp_path / "study", plan()) as study:
        trial = study.begin(1)
        assert trial is not None
        study.optuna.tell(trial.number, state=TrialState.FAIL)
        with pytest.raises(UpdateFinishedTrialError):
            study.end(trial, TrialState.COMPLETE, 1.0)


def test_draws_depend_on_the_number_of_the_trial_alone(tmp_path: Path) -> None:
    space = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}
    tpe = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 2}
    drawn: list[list[dict[str, float]]] = []
    for name, stops in (("once", 0), ("stopped", 3)):
        made = plan(space=space, sampler=tpe)
        for wanted in (stops, 6):
            with open_study(tmp_path / name, made) as study:
                while (trial := study.begin(wanted)) is not None:
                    study.end(trial, TrialState.COMPLETE, trial.params["x"])
                found = [trial.params for trial in study.trials()]
        drawn.append(found)
    assert drawn[0] == drawn[1]
    assert len({params["x"] for params in drawn[0]}) == 6


def test_half_a_line_at_the_end_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    with open_study(tmp_path / "study", plan()) as study:
        assert study.begin(1) is not None
    with open(tmp_path / "study" / JOURNAL, "ab") as file:
        file.write(b'{"op_code": 4, "wor')
    with open_study(tmp_path / "study", plan()) as study:
        assert study.begin(1) is not None
    with open_study(tmp_path / "study", plan()) as study:
        assert len(study.trials()) == 2


def test_half_a_line_that_a_process_left_while_others_go_on_is_cut_off(tmp_path: Path) -> None:
    with open_study(tmp_path / "study", plan()) as study:
        assert study.begin(1) is not None
        with open(tmp_path / "study" / JOURNAL, "ab") as file:
            file.write(b'{"op_code": 4, "wor')
        assert study.begin(2) is not None
    with open_study(tmp_path / "study", plan()) as study:
        assert len(study.trials()) == 2


def test_disk_that_was_full_for_a_while_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    with open_study(tmp_path / "study", plan()) as study:
        trial = study.begin(1)
        assert trial is not None
        size = (tmp_path / "study" / JOURNAL).stat().st_size
        with full_disk(size + 10), pytest.raises(OSError, match="File too large"):
            study.end(trial, TrialState.COMPLETE, 1.0)
        assert (tmp_path / "study" / JOURNAL).stat().st_size == size
        study.end(trial, TrialState.FAIL)
    with open_study(tmp_path / "study", plan()) as study:
        assert [trial.state for trial in study.trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_database_keeps_a_study(tmp_path: Path) -> None:
    made = plan(storage=f"sqlite:///{tmp_path / 'studies.db'}", defaults={"x": "better"})
    with open_study(tmp_path / "study", made) as study:
        trial = study.begin(1)
        assert trial is not None
        study.end(trial, TrialState.COMPLETE, 2.0)
    with open_study(tmp_path / "study", plan()) as study:  # a study knows its storage
        assert [(trial.value, trial.params) for trial in study.trials()] == [(2.0, {"x": "better"})]
    assert not (tmp_path / "study" / JOURNAL).exists()
    (tmp_path / "studies.db").unlink()
    with pytest.raises(RunDirectoryError, match="not in its storage any more"), open_study(tmp_path / "study", plan()):
        pass


def test_studies_that_begin_in_the_same_moment_share_a_new_database(tmp_path: Path) -> None:
    together = Barrier(4)

    def begin(name: str) -> int:
        together.wait(60)
        with open_study(tmp_path / name, plan(storage=f"sqlite:///{tmp_path / 'studies.db'}")) as study:
            return len(study.trials())

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(begin, "abcd")) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"overrides": ["total_steps=80"]}, "other overrides: total_steps=40, not total_steps=80"),
        ({"space": {"x": {"choices": ["good"]}}}, "other keys to tune: x: "),
        ({"seeds": 2}, "other seeds: 1, not 2"),
        ({"storage": "sqlite:///x.db"}, "--storage: the study in"),
    ],
)
def test_another_study_in_the_directory_is_told_apart(tmp_path: Path, changes: dict, fragment: str) -> None:
    with open_study(tmp_path / "study", plan()):
        pass
    with pytest.raises(ConfigError) as error:
        open_study(tmp_path / "study", plan(**changes))
    assert fragment in str(error.value)


def test_nothing_is_left_of_a_study_that_could_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--storage: 'nonsense://x' cannot be opened"):
        open_study(tmp_path / "study", plan(storage="nonsense://x"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "note").touch()
    with pytest.raises(RunDirectoryError, match="is no study"):
        open_study(tmp_path, plan())


def test_study_that_cannot_be_written_is_one_message_and_is_begun_later(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    with (
        full_disk(),
        pytest.raises(RunWriteError, match=f"the study in '{directory}' cannot be written: File too large"),
    ):
        open_study(directory, plan())
    study = open_study(directory, plan())
    with full_disk(), pytest.raises(RunWriteError, match="cannot be written: File too large"):
        study.__enter__()
    with open_study(directory, plan()) as study:
        assert study.begin(1) is not None


def test_process_of_another_machine_is_there_while_it_touches_its_file(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere-7-abcdef"
    other.mkdir()
    (other / "run.lock").touch()
    with Presence(tmp_path) as us:
        assert us.lives(us.name)
        assert us.lives(other.name)
        old = (other / "run.lock").stat().st_mtime - SILENT_S - 1
        os.utime(other / "run.lock", (old, old))
        assert not us.lives(other.name)
        assert not us.lives("elsewhere-8-abcdef")
    assert not (tmp_path / us.name).exists()

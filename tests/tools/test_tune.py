"""The loop of `rlx tune`, with a program in place of `rlx train` that takes no time; tests/cli/ has the real one."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState

from rlx.cli.report import describe
from rlx.errors import RlxError, RunWriteError, UserError
from rlx.run.directory import METRICS
from rlx.run.signals import StopRequested
from rlx.tools.study import JOURNAL, REASON, Study, open_study
from rlx.tools.trial import RunProcess
from rlx.tools.tune import OUTPUT, run_trials
from rlx.tools.tune_report import describe_study, draw_study, table

from ..disk import full_disk
from .studies import COMMAND, plan


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def tuned(directory: Path, ways: list[str], jobs: int = 1, **changes: Any) -> tuple[Study, list[str]]:
    """Run a study whose trials are told what to do."""
    lines: list[str] = []
    with open_study(directory, plan(**changes)) as study:
        for way in ways:
            study.optuna.enqueue_trial({"x": way})
        run_trials(study, trials=len(ways), jobs=jobs, command=COMMAND, tell=lines.append)
    return study, lines


def test_trial_is_worth_the_mean_of_its_last_evaluations(tmp_path: Path) -> None:
    study, lines = tuned(tmp_path / "study", ["good", "better"], jobs=2, pruner=None)
    assert [trial.value for trial in study.trials()] == [35.0, 55.0]
    assert study.trials()[0].intermediate_values == {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0}
    assert sorted(lines) == ["trial 0: 35.00 (x=good)", "trial 1: 55.00 (x=better)"]
    assert (tmp_path / "study" / "trial-00001" / "metrics.csv").exists()


def test_bad_trial_is_stopped_early(tmp_path: Path) -> None:
    study, lines = tuned(tmp_path / "study", ["good", "bad", "better"])
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert study.trials()[1].intermediate_values == {1: 1.0, 2: 2.0}
    assert lines[1] == "trial 1: pruned (x=bad)"
    assert list((tmp_path / "study" / OUTPUT).iterdir()) == []


def test_trial_that_fails_has_its_reason_and_takes_no_other_along(tmp_path: Path) -> None:
    study, _ = tuned(tmp_path / "study", ["fails", "good", "dies", "better"], jobs=2, pruner=None)
    states = [trial.state for trial in study.trials()]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials()[0].user_attrs[REASON] == "x: got 'fails', expected something else"
    assert study.trials()[2].user_attrs[REASON] == "killed by SIGKILL"
    printed = tmp_path / "study" / OUTPUT / "trial-00000.txt"
    assert printed.read_text().startswith("a line before\n")


def test_study_ends_when_nothing_but_failures_comes(tmp_path: Path) -> None:
    with pytest.raises(RlxError, match="2 trials failed one after the other, the last one: x: got 'fails'"):
        tuned(tmp_path / "study", ["fails"] * 4, most_failures=2)
    with open_study(tmp_path / "study", plan(most_failures=2)) as study:
        assert len([trial for trial in study.trials() if trial.state is TrialState.FAIL]) == 2


def test_study_that_cannot_be_written_any_more_ends_in_one_line(tmp_path: Path) -> None:
    with open_study(tmp_path / "study", plan()) as study:
        size = (tmp_path / "study" / JOURNAL).stat().st_size
        with full_disk(size), pytest.raises(RunWriteError, match=r"cannot go on: File too large$") as caught:
            run_trials(study, trials=1, jobs=1, command=COMMAND, tell=lambda _: None)
    assert describe(caught.value) == f"Error: {caught.value}"  # a traceback is for code of the user's own


@pytest.mark.parametrize("below_nohup", [True, False])
def test_closed_terminal_ends_a_study_unless_nohup_has_it_ignored(below_nohup: bool, tmp_path: Path) -> None:
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        os.kill(os.getpid(), signal.SIGHUP)

    own = signal.signal(signal.SIGHUP, signal.SIG_IGN if below_nohup else signal.default_int_handler)
    stopped = None
    try:
        with open_study(tmp_path / "study", plan(space={"x": {"choices": ["good"]}})) as study:
            run_trials(study, trials=2, jobs=1, command=COMMAND, tell=tell)
    except StopRequested as stop:
        stopped = stop.signal
    finally:
        signal.signal(signal.SIGHUP, own)
    assert stopped == (None if below_nohup else signal.SIGHUP)
    assert lines[0] == "trial 0: 35.00 (x=good)"
    assert not below_nohup or lines[1:] == ["trial 1: 35.00 (x=good)"]


def test_seeds_of_a_trial_are_averaged(tmp_path: Path) -> None:
    study, _ = tuned(tmp_path / "study", ["good", "bad"], seeds=2, seed=4)
    good, bad = study.trials()
    assert good.value == 39.5
    assert bad.state is TrialState.PRUNED
    assert bad.intermediate_values == {1: 5.5, 2: 6.5}
    assert [run.relative_to(tmp_path / "study").as_posix() for run in study.runs(1)] == [
        *("trial-00001/seed-4", "trial-00001/seed-5"),
    ]
    assert all((run / "metrics.csv").exists() for run in study.runs(1))


def test_evaluation_that_a_long_iteration_leaves_out_is_not_compared(tmp_path: Path) -> None:
    study, _ = tuned(tmp_path / "study", ["good"], every=5, evaluations=8)
    assert study.trials()[0].intermediate_values == {2: 10.0, 4: 20.0, 6: 30.0, 8: 40.0}


def test_report_ranks_trials_and_draws_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study, _ = tuned(tmp_path / "study", ["good", "better", "bad", "fails"])
    found = describe_study(study)
    assert json.loads(json.dumps(found)) == found
    assert found["count"] == {"complete": 2, "pruned": 1, "failed": 1}
    assert found["best"] == 1
    assert found["importances"] == {"x": 1.0}
    assert [row["value"] for row in found["trials"]] == [35.0, 55.0, 2.0, None]
    lines = [" ".join(line.split()) for line in table(found, study)]
    assert lines == [
        "ppo on CartPole: 2 complete, 1 pruned, 1 failed",
        "trial 3 failed: x: got 'fails', expected something else",
        "trial 1 trial 0 importance",
        "mean return 55.00 35.00",
        "x better good 1.00",
    ]
    pictures, notes = draw_study(found, tmp_path)
    assert [picture.name for picture in pictures] == ["history.png", "importance.png"]
    assert notes == []
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_report_of_a_study_without_a_result_says_so(tmp_path: Path) -> None:
    with open_study(tmp_path / "study", plan()) as study:
        found = describe_study(study)
        assert list(table(found, study)) == ["ppo on CartPole: no trial yet"]
        assert found["best"] is None
        assert draw_study(found, tmp_path)[0] == []


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_has_drawn_all_there_is_ends_its_study(tmp_path: Path) -> None:
    for sampler in ("BruteForceSampler", "GridSampler"):
        given = {"search_space": {"x": ["good", "better"]}} if sampler == "GridSampler" else {}
        options = {"sampler": {"_target_": f"optuna.samplers.{sampler}", **given}, "pruner": None}
        small = plan(space={"x": {"choices": ["good", "better"]}}, **options)
        for _ in range(2):  # and it stays so
            lines: list[str] = []
            with open_study(tmp_path / sampler, small) as study:
                run_trials(study, trials=9, jobs=1, command=COMMAND, tell=lines.append)
                assert sorted(trial.params["x"] for trial in study.trials()) == ["better", "good"]
            assert lines[-1] == "the sampler has drawn all that there is to draw"


def test_a_sampler_whose_package_is_missing_is_one_line(tmp_path: Path) -> None:
    if importlib.util.find_spec("cmaes"):
        pytest.skip("cmaes is installed")
    space = {"x": {"choices": ["good"]}, "y": {"low": 0.0, "high": 1.0}, "z": {"low": 0.0, "high": 1.0}}
    options = {"space": space, "sampler": {"_target_": "optuna.samplers.CmaEsSampler"}, "pruner": None}
    with open_study(tmp_path / "study", plan(**options)) as study, pytest.raises(UserError, match="needs cmaes, which"):
        run_trials(study, trials=9, jobs=1, command=COMMAND, tell=lambda _: None)


def test_a_look_at_a_run_reads_what_is_new_however_long_it_has_gone_on(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = tmp_path / METRICS
    rows = "".join(f"{number},{number},0.5,1.0\n" for number in range(1, 50_001))
    path.write_text(f"env_steps,iteration,wall_time,eval/return\n{rows}")
    with RunProcess([sys.executable, "-c", ""], tmp_path, tmp_path / "out") as run:
        run.poll()
        assert len(run.evaluations) == 50_000
        before = bytes_read()
        with open(path, "a") as file:
            file.write("50001,,,2.0\n")
        run.poll()
        assert run.evaluations[50_000:] == [(50_001, 2.0)]
        assert bytes_read() - before < path.stat().st_size / 4

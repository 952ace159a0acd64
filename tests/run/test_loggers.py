"""`logger=[...]`: rlx's own, those of services, and users' own."""

import json
import logging
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from rlx.cli.resume import run_resume
from rlx.errors import CheckpointError, ConfigError, MissingPackageError, RunDirectoryError
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.run.launch import launch, resume_run
from rlx.run.loggers import RunInfo, hyperparameters
from rlx.run.metrics import read_metrics
from rlx.run.signals import StopRequested
from tests.run.jobs import SMALL, composed
from tests.run.loggers import Ending, Kept
from tests.run.resuming import resume, stopped_at

EVERY = ["total_steps=192", "checkpoint.every=1", "checkpoint.keep_last=9", "seed=3"]


def run(directory: Path, *overrides: str, **loggers: dict[str, Any]) -> Path:
    """Train with rlx's own loggers and others."""
    config, choices = composed(*SMALL, *EVERY, *overrides, f"run_dir='{directory}'")
    config["logger"] |= loggers
    launch(config, choices)
    return directory


def own(name: str, **values: Any) -> dict[str, Any]:
    return {"_target_": f"tests.run.loggers.{name}", **values}


@pytest.fixture(autouse=True)
def _nothing_kept():
    Kept.made.clear()


@pytest.mark.parametrize(
    ("chosen", "files"),
    [("[csv,tensorboard]", ["metrics.csv", "tensorboard"]), ("csv", ["metrics.csv"]), ("[]", [])],
)
def test_only_the_loggers_that_are_named_write(tmp_path: Path, chosen: str, files: list[str]) -> None:
    directory = run(tmp_path / "run", f"logger={chosen}")
    assert sorted(path.name for path in directory.iterdir() if path.name in ("metrics.csv", "tensorboard")) == files
    assert json.loads((directory / "summary.json").read_text())["env_steps"] == 192


def test_a_logger_of_ones_own_is_told_of_the_run_and_gets_the_rows_of_the_csv_file(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", mine=own("Kept", label="here"))
    (kept,) = Kept.made
    assert (kept.label, kept.run.directory, kept.run.title) == ("here", directory, "ppo on CartPole")
    assert (kept.run.env_steps, kept.run.position) == (0, None)
    assert kept.run.config["algo"]["num_steps"] == 16
    columns = {key for row in kept.rows for key in row}
    assert [{key: row.get(key) for key in columns} for row in kept.rows] == read_metrics(directory / "metrics.csv")
    assert kept.calls == ["flush", "flush", "flush", "close"]


def test_a_run_holds_its_directory_while_it_writes_and_gives_it_back(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", mine=own("Kept", label="here"))
    assert Kept.made[0].held == [True, True, True]
    assert not (directory / "run.lock").exists()
    with pytest.raises(ConfigError, match="it did not begin"):
        run(tmp_path / "other", mine=own("Failing", at="begin"))
    assert not (tmp_path / "other").exists()


def test_a_resumed_runs_logger_is_told_where_the_checkpoint_knew_it(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", mine=own("Kept", label="here"))
    again = stopped_at(whole, tmp_path / "again", 128)
    assert load_checkpoint(find_checkpoint(again)).meta["logs"]["mine"] == 2
    resume(again)
    kept = Kept.made[-1]
    assert (kept.run.env_steps, kept.run.position) == (128, 2)
    assert [row["env_steps"] for row in kept.rows] == [192]
    assert kept.position() == 3


CSV = {"csv": {"_target_": "rlx.run.loggers.csv"}}
EVENTS = {"tensorboard": {"_target_": "rlx.run.loggers.tensorboard", "hparams": False}}


def steps_of_events(directory: Path) -> list[int]:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("loss/total")]


def test_a_resumed_run_may_have_other_loggers_and_the_csv_file_keeps_all_rows(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    again = stopped_at(whole, tmp_path / "again", 128)
    said = resume(again, logger=CSV | {"mine": own("Kept", label="x")}, **{"logger.mine.label": "new"})
    assert "resume: logger: [csv,tensorboard] -> [csv,mine]" in said
    (kept,) = Kept.made
    assert (kept.label, kept.run.env_steps, kept.run.position) == ("new", 128, None)
    assert [row["env_steps"] for row in kept.rows] == [192]
    assert [row["env_steps"] for row in read_metrics(again / "metrics.csv")] == [64, 128, 192]
    assert load_checkpoint(find_checkpoint(again)).config["logger"].keys() == {"csv", "mine", "console", "every"}


def test_a_logger_that_comes_back_goes_on_where_it_had_left(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    again = stopped_at(whole, tmp_path / "again", 128)
    assert steps_of_events(again) == [64, 128, 192], "the last came after the checkpoint"
    resume(again, logger=CSV, total_steps=256)
    resume(again, logger=CSV | EVENTS, total_steps=320)
    assert steps_of_events(again) == [64, 128, 320]
    assert [row["env_steps"] for row in read_metrics(again / "metrics.csv")] == [64, 128, 192, 256, 320]


def test_what_a_new_logger_wrote_before_the_run_was_killed_is_not_there_twice(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "logger=[]")
    again = stopped_at(whole, tmp_path / "again", 64)
    resume(again, logger=CSV | EVENTS)
    killed = stopped_at(again, tmp_path / "killed", 64)
    resume(killed, logger=CSV | EVENTS)
    assert [row["env_steps"] for row in read_metrics(killed / "metrics.csv")] == [128, 192]
    assert steps_of_events(killed) == [128, 192]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logger": EVENTS}, r"logger: got \[tensorboard\], but csv stays in a run that has it"),
        ({"logger": {}}, r"logger: got \[\], but csv stays in a run that has it"),
        ({"logger.tensorboard.hparams": False}, "logger.tensorboard.hparams: it may not change when a run is resumed"),
        ({"logger": CSV | EVENTS, "logger.tensorboard.hparams": False}, "it may not change when a run is resumed"),
        ({"logger": CSV | {"mine": own("Kept")}}, r"logger\.mine\.label: no value given"),
    ],
)
def test_loggers_that_a_resumed_run_may_not_have_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    whole = run(tmp_path / "whole")
    before = (whole / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=message):
        resume(whole, total_steps=900, **changes)
    assert (whole / "config.yaml").read_text() == before


def test_the_command_line_composes_the_loggers_of_a_resumed_run(tmp_path: Path, capsys, monkeypatch) -> None:
    whole = run(tmp_path / "whole", "logger=csv")
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "mine.yaml").write_text("mine:\n  _target_: tests.run.loggers.Kept\n  label: x\n")
    own_conf = f"--config-dir={tmp_path / 'conf'}"
    run_resume([f"resume={whole}", "logger=[csv,mine]", "logger.mine.label=y", "total_steps=256", own_conf])
    assert "resume: logger: [csv] -> [csv,mine]\n" in capsys.readouterr().err
    assert [kept.label for kept in Kept.made] == ["y"]
    with pytest.raises(ConfigError, match=r"tensorbord.* Did you mean .*tensorboard"):
        run_resume([f"resume={whole}", "logger=[csv,tensorbord]", "total_steps=320"])


def test_a_logger_of_another_checkpoint_is_not_imported_without_trust(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", mine=own("Kept", label="here"))
    with pytest.raises(CheckpointError, match=r"names code that is not rlx's: tests\.run\.loggers\.Kept"):
        resume_run(whole, {"total_steps": 900}, "test", tell=print)


ENDS = {"done": nullcontext(), "stopped": pytest.raises(StopRequested), "failed": pytest.raises(ArithmeticError)}
"""How a run may end, with what `tests.run.loggers.Ending` has it raise."""


@pytest.mark.parametrize("how", ENDS)
def test_a_logger_that_asks_is_told_how_the_run_ended(tmp_path: Path, how: str) -> None:
    with ENDS[how]:
        run(tmp_path / "run", mine=own("Ending", how=how))
    assert Ending.made[-1].told == how
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == how


def test_a_logger_that_asks_is_told_of_a_run_that_did_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it did not begin"):
        run(tmp_path / "run", mine=own("Ending", how="done"), then=own("Failing", at="begin"))
    assert Ending.made[-1].told == "failed"


@pytest.mark.parametrize("place", ["write", "flush", "close"])
def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path, place: str, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        directory = run(tmp_path / "run", mine=own("Failing", at=place), then=own("Kept", label="after"))
    warnings = [record.getMessage() for record in caplog.records if "logger.mine" in record.getMessage()]
    assert len(warnings) == 1
    assert "the server is gone" in warnings[0]
    assert [row["env_steps"] for row in read_metrics(directory / "metrics.csv")] == [64, 128, 192]
    assert len(Kept.made[0].rows) == 3
    assert warnings[0] in (directory / "log.txt").read_text()


def test_a_logger_that_does_not_begin_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.mine: it did not begin: RuntimeError: no key"):
        run(tmp_path / "run", mine={"_target_": "tests.run.test_loggers.no_key"})
    assert not (tmp_path / "run").exists()


def no_key(run: RunInfo) -> Kept:
    raise RuntimeError("no key")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (False, r"logger\.mine: got False, expected .*; to leave it out: logger=\[csv,tensorboard\]"),
        ({"_target_": "tests.run.loggers.Kept"}, r"logger\.mine\.label: no value given"),
        (own("Kept", label="here", lable=1), r"logger\.mine\.lable: there is no such key.*label"),
        ({"_target_": "tests.run.loggers.Kep"}, r"has no function or class 'Kep'. Did you mean 'Kept'\?"),
    ],
)
def test_wrong_keys_of_a_logger_are_named(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", mine=values)
    assert not (tmp_path / "run").exists()


def test_rows_that_were_removed_from_the_csv_file_are_missed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    (whole / "metrics.csv").write_text("env_steps,iteration,wall_time\n1,1,1\n")
    with pytest.raises(RunDirectoryError, match="has 1 rows, expected at least 3"):
        resume(whole, total_steps=256)


def test_tensorboard_has_the_configuration_in_its_hparams_tab(tmp_path: Path) -> None:
    whole = run(tmp_path / "run", "algo.learning_rate=[linear,1e-3,0]")
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["algo._target_"].string_value == "rlx.algo.ppo.train"
    assert hparams["algo.num_steps"].number_value == 16
    assert hparams["algo.learning_rate"].string_value == "['linear', 0.001, 0]"
    assert hparams["algo.normalize_advantage"].bool_value is True
    assert not [name for name in hparams if name.startswith(("logger", "checkpoint", "run_dir", "evaluation"))]
    plain = run(tmp_path / "plain", "logger.tensorboard.hparams=false")
    events = EventAccumulator(str(plain / "tensorboard"))
    events.Reload()
    assert not events.Tags()["tensors"]


def test_hyperparameters_are_flat_and_leave_out_what_decides_nothing() -> None:
    config = {"seed": 1, "run_dir": "x", "env": {"id": "A-v0", "kwargs": {"deep": True}, "none": None, "list": [1, 2]}}
    found = hyperparameters(config)
    assert found == {"seed": 1, "env.id": "A-v0", "env.kwargs.deep": True, "env.list": "[1, 2]"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_whose_package_is_missing_names_the_extra(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"logger={name} needs {name}, .*pip install 'rlx\[{name}\]'"):
        run(tmp_path / "run", f"logger=[csv,{name}]")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # of the packages themselves
def test_mlflow_keeps_parameters_and_rows_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path, monkeypatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'rlx[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = (tmp_path / "store").as_uri()
    whole = run(tmp_path / "whole", "logger=[csv,mlflow]", f"logger.mlflow.tracking_uri='{where}'")
    resume(stopped_at(whole, tmp_path / "again", 128))
    client = mlflow.MlflowClient(tracking_uri=where)
    (found,) = client.search_runs([client.get_experiment_by_name("rlx").experiment_id])
    assert found.info.run_name == "whole"
    assert found.info.status == "FINISHED"
    assert found.data.params["algo.num_steps"] == "16"
    history = client.get_metric_history(found.info.run_id, "loss/total")
    rows = read_metrics(whole / "metrics.csv")
    told = {row["env_steps"]: row["loss/total"] for row in rows}
    assert {metric.step: metric.value for metric in history} == told
    assert sorted(metric.step for metric in history) == [64, 128, 192, 192]  # the last again, by the resumed run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("how", "status"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_mlflow_shows_how_a_run_ended_until_it_is_resumed(tmp_path: Path, how: str, status: str, monkeypatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'rlx[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = (tmp_path / "store").as_uri()
    words = ["logger=[csv,mlflow]", f"logger.mlflow.tracking_uri='{where}'"]
    with ENDS[how]:
        run(tmp_path / "run", *words, mine=own("Ending", how=how))
    client = mlflow.MlflowClient(tracking_uri=where)
    experiment = client.get_experiment_by_name("rlx").experiment_id
    assert [found.info.status for found in client.search_runs([experiment])] == [status]
    resume(tmp_path / "run")
    assert [found.info.status for found in client.search_runs([experiment])] == ["FINISHED"]


def records_of(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, after Weights & Biases' own 7 bytes: blocks of 32 KiB, in
    them chunks of checksum (4 bytes), length (2) and kind: whole (1), first (2), middle (3), last (4)."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(180)
def test_wandb_writes_rows_offline_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'rlx[wandb]'")
    from wandb.proto import wandb_internal_pb2

    whole = run(tmp_path / "whole", "logger=[csv,wandb]", "logger.wandb.mode=offline")
    again = stopped_at(whole, tmp_path / "again", 128)
    shutil.rmtree(again / "wandb")
    resume(again)
    found: list[tuple[str, list[Any]]] = []
    for directory in (whole, again):
        (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
        rows: list[Any] = []
        for data in records_of(path.read_bytes()):
            record: Any = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                rows.append((json.loads(items["env_steps"]), json.loads(items["loss/total"])))
        found.append((path.stem, rows))
    told = [(row["env_steps"], row["loss/total"]) for row in read_metrics(whole / "metrics.csv")]
    assert found[0][1] == told
    assert found[1] == (found[0][0], told[2:])  # the same run there
    assert os.environ.get("WANDB_MODE") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("how", "code"), [("done", 0), ("stopped", 255), ("failed", 1)])
def test_wandb_gets_an_exit_code(tmp_path: Path, how: str, code: int) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'rlx[wandb]'")
    from wandb.proto import wandb_internal_pb2

    with ENDS[how]:
        run(tmp_path / "run", "logger=[csv,wandb]", "logger.wandb.mode=offline", mine=own("Ending", how=how))
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    codes: list[int] = []
    for data in records_of(path.read_bytes()):
        record: Any = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "exit":
            codes.append(record.exit.exit_code)
    assert codes == [code]

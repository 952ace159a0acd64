"""Configurations of an older rlx: brought up to date, each step with what runs did before; newer ones are refused."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlx.errors import CheckpointError, ConfigError, RunDirectoryError
from rlx.run.checkpoint import load_checkpoint
from rlx.run.directory import CONFIG, METRICS
from rlx.run.launch import read_config
from rlx.run.metrics import read_metrics
from rlx.run.migrate import KEY, SCHEMA, bring_up_to_date, read_stored, told_together
from rlx.run.policy import load_policy
from tests.run.jobs import SMALL, train
from tests.run.resuming import resume
from tests.run.write_schema import FIXTURES

EARLY = FIXTURES / "schema_1_early"
"""Of DQN, from before schedules, logger members, resuming, and samplers: written by rlx at 10f1746."""
WRITTEN: dict[int, dict[str, dict[str, Any]]] = {
    schema: json.loads((FIXTURES / f"schema_{schema}.json").read_text()) for schema in range(2, SCHEMA + 1)
}


def test_a_run_begins_with_its_schema_and_needs_no_step(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *SMALL, "total_steps=64")
    assert (run / CONFIG).read_text().startswith(f"{KEY}: {SCHEMA}\n")
    config, note = read_stored(run)
    assert note is None
    assert KEY not in config
    assert load_checkpoint(run / "checkpoints/step-000000064").config == config


def test_an_early_configuration_becomes_one_of_today_that_does_the_same() -> None:
    config, note = read_stored(EARLY)
    algo = config["algo"]
    assert algo["learning_rate"] == ["linear", 0.001, 0]
    assert algo["epsilon"] == ["linear", 1.0, 0.05, {"fraction": 0.2}]
    assert algo["prioritized_beta"] == ["linear", 0.4, 1.0]
    assert algo["hindsight"] is None
    assert not [key for key in algo if key.startswith(("anneal", "epsilon_st", "epsilon_e", "epsilon_f", "save"))]
    assert config["checkpoint"] == {"minutes": 0, "every": 0, "keep_last": 3, "keep_every": 0, "buffer": False}
    assert config["logger"] == {"csv": {"_target_": "rlx.run.loggers.csv"}, "console": False, "every": 0}
    assert (config["precision"], config["learner"]) == ("float32", {"kind": "alone"})
    read_config(config)  # refuses what is missing or has another name
    assert note is not None
    assert re.fullmatch(r"'.*config.yaml' was written by an older rlx \(format version 1\); .* and \d+ more", note)


def test_an_early_policy_is_rebuilt_and_says_so_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    policy = load_policy(EARLY)
    assert (policy.env_steps, policy.env["id"]) == (64, "CartPole-v1")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"checkpoint '{EARLY / 'checkpoints/step-000000064'}' was written by an older rlx")


def test_an_early_run_that_kept_weights_only_says_that_it_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds weights, but not what a run could go on from"):
        resume(shutil.copytree(EARLY, tmp_path / "run"), total_steps=128)


def test_a_resumed_run_of_an_older_rlx_is_of_todays_schema_from_there_on(tmp_path: Path) -> None:
    run = shutil.copytree(FIXTURES / "schema_1", tmp_path / "run")
    said = resume(run)
    assert [line for line in said if "older rlx" in line] == [
        f"checkpoint '{run}/checkpoints/step-000000080' was written by an older rlx (format version 1); "
        "it is read with learner.kind=alone"
    ]
    assert yaml.safe_load((run / CONFIG).read_text())[KEY] == SCHEMA
    told: list[str] = []
    load_checkpoint(run / "checkpoints/step-000000160", told.append)
    assert not told


@pytest.mark.parametrize(("schema", "part"), [(schema, part) for schema in WRITTEN for part in WRITTEN[schema]])
def test_every_schema_is_read(schema: int, part: str) -> None:
    """Fails where a key was added, renamed or dropped: raise SCHEMA, add a step, and see tests/run/write_schema.py."""
    config = deepcopy(WRITTEN[schema][""])
    if part:
        group = part.partition("=")[0]
        plain = {"console": True, "every": 0} if group == "logger" else {}
        config[group] = {**WRITTEN[schema][part], **plain}
    read_config(bring_up_to_date(config, schema, "it", ConfigError)[0])


def test_runs_of_schema_2_had_no_vtrace() -> None:
    config, note = bring_up_to_date({**WRITTEN[2][""], "algo": WRITTEN[2]["algo=a2c"]}, 2, "it", ConfigError)
    assert config["algo"]["vtrace"] is False
    assert note == "it was written by an older rlx (format version 2); it is read with algo.vtrace=false"


def test_the_standard_deviations_of_schema_3_are_found_where_agents_have_them_today(tmp_path: Path) -> None:
    # PPO on Pendulum, written at 80 and at 160 steps by rlx 0.1.0, schema 3.
    written = load_checkpoint(FIXTURES / "schema_3/checkpoints/step-000000160").state["agent"]
    assert "head.log_std.action" in written
    run = shutil.copytree(FIXTURES / "schema_3", tmp_path / "run")
    assert load_policy(run).agent.state_dict().keys() == written.keys()
    shutil.rmtree(run / "checkpoints/step-000000160")
    resume(run, total_steps=160)
    found = load_checkpoint(run / "checkpoints/step-000000160").state["agent"]
    for name, weight in written.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_a_row_under_way_in_schema_4_is_the_one_that_it_would_have_become(tmp_path: Path) -> None:
    # PPO on CartPole with one row for 160 steps, written at 80 of them by rlx 0.1.0, schema 4.
    run = shutil.copytree(FIXTURES / "schema_4", tmp_path / "run")
    (written,) = read_metrics(run / METRICS)
    resume(run)
    (found,) = read_metrics(run / METRICS)
    assert found["env_steps"] == written["env_steps"] == 160
    for name in ("loss/total", "loss/value", "loss/entropy", "learning_rate", "explained_variance", "ppo/num_epochs"):
        assert found[name] == pytest.approx(written[name], rel=1e-4), name


def test_a_newer_configuration_is_refused(tmp_path: Path) -> None:
    run = shutil.copytree(EARLY, tmp_path / "run")
    (run / CONFIG).write_text(f"{KEY}: {SCHEMA + 1}\n" + (run / CONFIG).read_text())
    message = rf"config.yaml' has format version {SCHEMA + 1}, written by a newer rlx; rlx .* reads up to .*upgrade rlx"
    with pytest.raises(RunDirectoryError, match=message):
        read_stored(run)
    with pytest.raises(RunDirectoryError, match=message):
        resume(run)


@pytest.mark.parametrize("schema", [0, "2", None, True])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(RunDirectoryError, match=r"got format version .*, expected 1 to"):
        bring_up_to_date({}, schema, "it", RunDirectoryError)


def test_what_is_no_configuration_of_its_schema_is_refused() -> None:
    with pytest.raises(CheckpointError, match="it holds no configuration of format version 1"):
        bring_up_to_date({"logger": ["csv"]}, 1, "it", CheckpointError)


def test_keys_of_ones_own_algorithm_are_its_own() -> None:
    own = {"_target_": "mine.train", "anneal_learning_rate": True, "learning_rate": 1.0, "save_buffer": True}
    assert bring_up_to_date({"algo": own}, 1, "it", ConfigError)[0]["algo"] == own


def test_many_older_runs_are_told_of_in_one_line() -> None:
    assert told_together([]) == []
    assert told_together(["a"]) == ["a"]
    assert told_together(["a", "b"]) == ["a (and 1 other likewise)"]
    assert told_together(["a", "b", "c"]) == ["a (and 2 others likewise)"]

"""`learner=ddp` under a real torchrun, with two processes: the same results as one, and no rank left waiting."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rlx.run.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from rlx.run.directory import read_summary
from rlx.run.metrics import TIMED, Row, read_metrics
from tests.program import ENVIRONMENT, left_in

pytestmark = pytest.mark.engines

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = ["-m", "rlx", "train"]
QUIET = ["logger=[csv]", "logger.console=false"]
ENV = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
ENDLESS = ["env=CartPole", "run_dir=run", "total_steps=1_000_000_000", "checkpoint.every=2048", "algo.num_steps=32"]


def torchrun(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *TRAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, env=ENV)


def alone(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *TRAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, env=ENV)


def trained(cwd: Path, *arguments: str, name: str = "run") -> list[Row]:
    """Train on two ranks, and return the rows."""
    found = torchrun(cwd, "learner=ddp", *QUIET, f"run_dir={name}", *arguments)
    assert found.returncode == 0, found.stderr
    return read_metrics(cwd / name / "metrics.csv")


@contextmanager
def training(cwd: Path, *arguments: str) -> "Iterator[tuple[subprocess.Popen[str], dict[int, psutil.Process]]]":
    """Give a torchrun whose run has a checkpoint and would go on for hours, and its ranks."""
    program = subprocess.Popen(
        [*TORCHRUN, *TRAIN, "learner=ddp", "logger=[csv]", *ENDLESS, *arguments],
        cwd=cwd,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        said: list[str] = []
        for line in program.stdout:
            said.append(line)
            if "steps |" in line and list_checkpoints(cwd / "run"):
                break
        else:
            pytest.fail("it ended before its first checkpoint:\n" + "".join(said))
        children = psutil.Process(program.pid).children()
        yield program, {int(child.environ()["RANK"]): child for child in children}
    finally:
        program.kill()
        program.communicate()


def exit_statuses(output: str) -> set[int]:
    """Return what torchrun says of its processes' ends."""
    return {int(number) for number in re.findall(r"exitcode +: (-?\d+)", output)}


def same_but_for_times(one: list[Row], other: list[Row]) -> bool:
    def kept(rows: list[Row]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]

    return kept(one) == kept(other)


def tensors_of(state: Any, path: str = "") -> dict[str, Any]:
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        return {path: state}
    return {name: value for key, item in items for name, value in tensors_of(item, f"{path}/{key}").items()}


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_two_ranks_learn_what_one_learns_from_the_same_batch(algo: str, tmp_path: Path) -> None:
    common = [f"algo={algo}", "env=CartPole", "algo.num_steps=32", "batcher.envs_per_worker=2", "total_steps=1536"]
    common += ["agent.normalize_observation=true", "agent.normalize_return=true", "stop_at_return=1000"]
    common += ["algo.batch_size=100_000", "algo.num_epochs=3"] if algo == "ppo" else []
    two = trained(tmp_path, *common, "batcher.num_workers=2", name="two")
    found = alone(tmp_path, *common, *QUIET, "batcher.num_workers=4", "run_dir=one")
    assert found.returncode == 0, found.stderr
    one = read_metrics(tmp_path / "one" / "metrics.csv")
    assert len(one) == len(two) == 6
    exact = [key for key in one[0] if key.startswith(("episode/", "env_steps", "iteration"))]
    near = [key for key in one[0] if key.startswith(("loss/", "grad_norm", "ppo/", "learning_rate"))]
    assert len(near) > 5
    for row, other in zip(one, two, strict=True):
        assert [row[key] for key in exact] == [other[key] for key in exact]
        assert [row[key] for key in near] == pytest.approx([other[key] for key in near], rel=1e-4, abs=1e-6), near


@pytest.mark.parametrize(
    "chosen",
    [
        "algo=dqn env=CartPole algo.prioritized_alpha=0.6 agent.normalize_observation=true",
        "algo=sac env=Pendulum algo.num_updates=2",
        "algo=reinforce env=CartPole",
        "algo=diayn env=Pendulum",
        "algo=hdqn env=Errand",
        "algo=ppo env=CartPole agent=gru",
        "algo=ppo env=CartPole batcher=episodes algo.batch_size=50",
    ],
)
def test_every_algorithm_runs_and_its_ranks_stay_alike(chosen: str, tmp_path: Path) -> None:
    off_policy = any(name in chosen for name in ("dqn", "sac", "diayn"))
    few = ["algo.learning_starts=100", "algo.batch_size=16"] if off_policy else []
    # A checkpoint is refused where modules differ in a bit.
    rows = trained(tmp_path, *chosen.split(), *few, "batcher.envs_per_worker=2", "algo.num_steps=8",
                   "checkpoint.every=100", "total_steps=400", "checkpoint.buffer=true")  # fmt: skip
    assert len(list_checkpoints(tmp_path / "run")) >= 2
    assert any(row.get("loss/total") is not None for row in rows)
    state = load_checkpoint(find_checkpoint(tmp_path / "run")).state
    own = state["ranks"]["1"]
    assert "agent" not in own
    assert {"batcher", "run"} <= own.keys()
    assert ("buffer" in own) == off_policy
    if off_policy:
        updated = [row["loss/total"] is not None for row in rows if "loss/total" in row]
        assert updated == sorted(updated)  # from `learning_starts` on, which counts the steps of all ranks
        assert rows[updated.index(True)]["env_steps"] >= 100


def test_early_stops_and_ragged_batches_leave_no_rank_waiting(tmp_path: Path) -> None:
    # CartPoleVec resets at the next step, so that ranks have as many steps as they have fewer episodes; evaluation
    # keeps rank 0 busy; and each epoch of some iterations is the last.
    rows = trained(tmp_path, "env=CartPoleVec", "algo.target_kl=0.002", "algo.num_steps=40", "algo.batch_size=37",
                   "total_steps=100_000", "stop_at_return=40", "evaluation.every=1000", "evaluation.episodes=3",
                   "algo.learning_rate=1e-3")  # fmt: skip
    trained_rows = [row for row in rows if row.get("loss/total") is not None]
    epochs = {row["ppo/num_epochs"] for row in trained_rows}
    assert min(epochs) < 10
    assert all(float(number).is_integer() for number in epochs)
    steps = [row["env_steps"] for row in trained_rows]
    assert any((after - before) % 2 for before, after in zip([0, *steps], steps, strict=False))  # the ranks differ
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert summary["status"] == "done"
    assert summary["env_steps"] < 100_000
    assert summary["episode/return"] >= 40
    assert any(row.get("eval/return") is not None for row in rows)
    assert (tmp_path / "run" / "checkpoints" / "best").is_dir()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other_in_time_with_one_message(rank: int, tmp_path: Path) -> None:
    with training(tmp_path) as (program, ranks):
        place = ranks[rank].pid
        ranks[rank].kill()
        output, _ = program.communicate(timeout=60)
    assert program.returncode == 1
    errors = [line for line in output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert f"rank {rank} of 2 (process {place} on " in errors[0]
    assert exit_statuses(output) == {-9, 1}
    assert left_in(tmp_path) == []
    if rank == 1:  # rank 0 says so in the run, too
        summary = read_summary(tmp_path / "run")
        assert summary is not None
        assert (summary["status"], summary["reason"].split(":")[0]) == ("failed", "RankError")
    assert find_checkpoint(tmp_path / "run")


def test_a_rank_that_stands_still_ends_the_others_within_the_limit(tmp_path: Path) -> None:
    with training(tmp_path, "learner.timeout=4") as (program, ranks):
        place = ranks[1].pid
        ranks[1].suspend()
        status = ranks[0].wait(60)
        ranks[1].kill()
        output, _ = program.communicate(timeout=60)
    assert status in (1, None)  # None: torchrun was the one to hear it
    named = re.escape(f"rank 1 of 2 (process {place} on ")
    assert re.search(rf"Error: {named}.*\) has shown no sign of life for 4 s \(learner\.timeout\)", output)
    assert exit_statuses(output) == {1, -9}
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_on_one_rank_stops_all_at_one_iteration_and_the_run_can_go_on(rank: int, tmp_path: Path) -> None:
    with training(tmp_path) as (program, ranks):
        ranks[rank].send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=60)
    assert exit_statuses(output) == {143}
    assert output.count("Interrupted: stopped by SIGTERM.") == 1
    assert not [line for line in output.splitlines() if line.startswith("Error:")]
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert summary["status"] == "stopped"
    assert summary["env_steps"] == summary["checkpoint"] == load_checkpoint(find_checkpoint(tmp_path / "run")).meta[
        "env_steps"
    ]  # fmt: skip
    assert left_in(tmp_path) == []
    more = summary["env_steps"] + 1
    found = torchrun(tmp_path, "resume=run", f"total_steps={more}", "logger.console=false")
    assert found.returncode == 0, found.stderr
    assert "exact=true" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_stopped_and_resumed_equals_never_stopped(algo: str, tmp_path: Path) -> None:
    common = [
        f"algo={algo}",
        "env=CartPole",
        "algo.num_steps=16",
        "batcher.envs_per_worker=2",
        "algo.learning_rate=1e-3",
    ]
    common += ["algo.learning_starts=100", "algo.epsilon=0.1", "checkpoint.buffer=true"] if algo == "dqn" else []
    whole = trained(tmp_path, *common, "total_steps=768", name="whole")
    trained(tmp_path, *common, "total_steps=384", name="halves")
    found = torchrun(tmp_path, "resume=halves", "total_steps=768")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("goes on from step-000000384") == 1
    assert same_but_for_times(whole, read_metrics(tmp_path / "halves" / "metrics.csv"))
    first, second = (
        tensors_of(load_checkpoint(find_checkpoint(tmp_path / name)).state) for name in ("whole", "halves")
    )
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not _equal(value, second[name])]
    assert different == []

    found = alone(tmp_path, "resume=halves", "total_steps=999")
    assert found.returncode == 2
    assert "torchrun --standalone --nproc-per-node 2 -m rlx train resume=halves" in found.stderr


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool((one == other).all()) if hasattr(one, "all") else one == other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "learner=alone: this is one of 2 processes (WORLD_SIZE=2)"),
        (["learner=ddp", "algo.num_steps=0"], "algo.num_steps: expected an integer >= 1, got 0"),
        (["learner=ddp", "algo.lerning_rate=1"], "Did you mean 'algo.learning_rate'?"),
        (["learner=ddp", "run_dir=taken"], "run_dir: 'taken' exists already"),
        (["learner=ddp", "seed=1,2", "-m"], "-m: the jobs of a multirun are runs of their own"),
        (["learner=ddp", "device=cuda:0"], "device: got 'cuda:0', but with learner=ddp each rank has a GPU of its own"),
    ],
)
def test_what_is_wrong_is_said_once_and_leaves_nothing(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    found = torchrun(tmp_path, "env=CartPole", *words)
    assert found.returncode == 1
    assert exit_statuses(found.stderr) <= {2, 143, -15}  # the others are ended by torchrun, at once or as rlx ends
    errors = [line for line in found.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert os.listdir(tmp_path) == ["taken"]
    assert left_in(tmp_path) == []


def test_a_failing_environment_on_one_rank_is_told_by_that_rank(tmp_path: Path) -> None:
    # Of four environments the last one breaks: it is rank 1's.
    found = torchrun(
        tmp_path, "learner=ddp", *QUIET, "env=gym", "env.id=tests.engines.breaking:BreaksLast-v0", "run_dir=run",
        "batcher=local", "batcher.envs_per_worker=2", "algo.num_steps=8", "seed=3",
    )  # fmt: skip
    assert found.returncode == 1
    errors = [line for line in found.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: rank 1: ")
    assert "it is the last one" in errors[0]
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert "rank 1 of 2" in summary["reason"]
    assert "it is the last one" in summary["reason"]

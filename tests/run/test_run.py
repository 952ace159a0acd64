"""A run from its first row to its summary: what is logged, saved, stopped, evaluated, and repeated."""

import gc
import json
import logging
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlx.batcher import Batcher
from rlx.cli.members import config_directory
from rlx.env import make
from rlx.errors import EnvironmentFault, RunDirectoryError
from rlx.run import RunOptions
from rlx.run.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from rlx.run.evaluate import Evaluator, evaluate_path
from rlx.run.launch import launch
from rlx.run.metrics import TIMED, read_metrics
from rlx.run.run import EPISODE_WINDOW
from rlx.run.signals import STOP_SIGNALS
from rlx.run.sinks import Sinks
from tests.batcher.ledger import ID, Parity, episode_length
from tests.batcher.memory import open_blocks
from tests.run.loggers import Circle

SMALL = ["algo.num_steps=16", "algo.batch_size=64", "algo.num_epochs=2", "batcher=local", "batcher.envs_per_worker=4"]


def run(directory: Path, *overrides: str) -> Path:
    """Train for three iterations in this process, unless told otherwise."""
    words = [*SMALL, "total_steps=192", "logger.console=false", *overrides, f"run_dir='{directory}'"]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("config", overrides=words)
    launch(OmegaConf.to_container(config, resolve=True), {"algo": "ppo", "env": "CartPole"})
    return directory


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


ALWAYS = {
    "env_steps", "iteration", "wall_time", "episode/return", "episode/length", "speed/steps_per_second",
    "speed/collect_steps_per_second", "speed/learn_steps_per_second", "loss/total", "loss/policy", "loss/value",
    "loss/entropy", "ppo/approx_kl", "ppo/clip_fraction", "explained_variance", "grad_norm", "learning_rate",
}  # fmt: skip
EVALUATED = {"eval/return", "eval/return_std", "eval/length", "eval/cpu_share", "time/eval_wait"}


def test_every_iteration_is_a_row_in_csv_and_in_tensorboard(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", "evaluation.every=128", "evaluation.episodes=2")
    rows = read_metrics(directory / "metrics.csv")
    assert set(rows[0]) >= ALWAYS | EVALUATED
    assert [row["env_steps"] for row in rows] == [64, 128, 192, 128, 192]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 2, 3]
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    columns = {column for row in rows for column in row} - {"env_steps"}  # which is every event's step
    assert set(events.Tags()["scalars"]) == columns
    for column in columns:
        told = {event.step: event.value for event in events.Scalars(column)}
        told_of = rows[:3] if column in ("iteration", "wall_time") else rows  # an evaluation's steps lie in the past
        expected = {row["env_steps"]: row[column] for row in told_of if row[column] is not None}
        assert told == pytest.approx(expected, rel=1e-6, nan_ok=True), column  # events hold 32-bit numbers
    assert summary(directory)["status"] == "done"
    assert OmegaConf.load(directory / "config.yaml").algo.num_steps == 16


def test_the_same_seed_gives_the_same_rows_and_weights_with_local_and_process_workers(tmp_path: Path) -> None:
    found = []
    for name, workers in (("a", ()), ("b", ()), ("c", ("batcher=process", "batcher.num_workers=1"))):
        evaluation = ("evaluation.every=64", "evaluation.episodes=2")
        directory = run(tmp_path / name, "seed=7", *workers, *evaluation, "batcher.envs_per_worker=4")
        rows = read_metrics(directory / "metrics.csv")
        kept = [{key: row[key] for key in row if not key.startswith(TIMED)} for row in rows]
        found.append((kept, load_checkpoint(find_checkpoint(directory)).state["agent"]))
    for rows, weights in found[1:]:
        assert rows == found[0][0]
        assert all(torch.equal(value, found[0][1][name]) for name, value in weights.items())
    other = run(tmp_path / "d", "seed=8")
    assert read_metrics(other / "metrics.csv")[0]["loss/value"] != found[0][0][0]["loss/value"]


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """It comes whenever it comes, and may hide what stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_a_run_gives_back_its_memory_and_files_as_it_ends(tmp_path: Path) -> None:
    before = open_blocks()
    run(tmp_path / "run", "evaluation.every=128", "evaluation.episodes=2")
    assert open_blocks() == before


@pytest.mark.usefixtures("_no_collector")
def test_what_a_run_left_is_collected_though_the_next_one_spares_the_collector_all_that_is_there(
    tmp_path: Path,
) -> None:
    Circle.alive.clear()
    for name in "abc":
        run(tmp_path / name, "+logger.circle={_target_:tests.run.loggers.Circle}")
        assert len(Circle.alive) == 1  # its own, no earlier one
    gc.collect()
    assert not Circle.alive


def test_checkpoints_come_when_due_and_the_last_are_kept(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", "checkpoint.every=64", "checkpoint.keep_last=2")
    assert [path.name for path in list_checkpoints(directory)] == ["step-000000128", "step-000000192"]
    saved = load_checkpoint(find_checkpoint(directory))
    assert saved.meta["env_steps"] == 192
    assert set(saved.state) == {"agent", "optimizer", "minibatches", "batcher", "run"}
    assert saved.config["algo"]["num_steps"] == 16


def test_evaluations_are_rows_keyed_by_the_weights_steps(tmp_path: Path) -> None:
    options = ("evaluation.every=64", "evaluation.episodes=3", "checkpoint.every=64", "checkpoint.keep_last=9")
    directory = run(tmp_path / "run", *options)
    rows = [row for row in read_metrics(directory / "metrics.csv") if row["eval/return"] is not None]
    assert [(row["env_steps"], row["iteration"]) for row in rows] == [(64, 1), (128, 2), (192, 3)]
    assert all(row["episode/count"] is None for row in rows)
    # The learner went on meanwhile; the weights that played are those of the row's steps.
    first = evaluate_path(directory / "checkpoints/step-000000064", episodes=3, num_workers=1)
    assert (first.mean, first.std) == (rows[0]["eval/return"], rows[0]["eval/return_std"])
    assert summary(directory)["eval/return"] == rows[-1]["eval/return"]


def test_stop_at_return_waits_for_a_full_window_of_episodes(tmp_path: Path) -> None:
    # Its returns are 2 or 60, so that the goal is below the mean from the first episode on.
    short = ["env=gym", "env.id=tests.run.short_and_long:ShortAndLong-v0", "algo.batch_size=8", "algo.num_steps=4"]
    directory = run(tmp_path / "run", *short, "stop_at_return=2", "total_steps=1_000_000")
    rows = read_metrics(directory / "metrics.csv")
    counts = [row["episode/count"] for row in rows]
    assert all(row["episode/return"] is None or row["episode/return"] >= 2 for row in rows)
    assert any(row["episode/return"] is not None for row in rows[:-1])
    assert all(count < EPISODE_WINDOW for count in counts[:-1])
    assert counts[-1] >= EPISODE_WINDOW == 100
    found = summary(directory)
    assert (found["status"], found["env_steps"]) == ("done", rows[-1]["env_steps"])
    assert find_checkpoint(directory).name == f"step-{found['env_steps']:09d}"
    log = (directory / "log.txt").read_text()
    assert f"stop_at_return: the mean return of the last 100 episodes is {rows[-1]['episode/return']:.6g}" in log


def test_stop_at_return_that_is_not_reached_ends_nothing(tmp_path: Path) -> None:
    short = ["env=gym", "env.id=tests.run.short_and_long:ShortAndLong-v0"]
    directory = run(tmp_path / "run", *short, "stop_at_return=61", "total_steps=4096")
    found = summary(directory)
    assert (found["env_steps"], found["episode/count"] > EPISODE_WINDOW) == (4096, True)


def test_a_run_that_fails_says_why_and_keeps_its_rows(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault):
        run(tmp_path / "run", "env=gym", f"env.id={ID}", "+env.kwargs.break_at=40")
    found = summary(tmp_path / "run")
    assert found["status"] == "failed"
    assert "the ledger tore" in found["reason"]
    assert len(read_metrics(tmp_path / "run" / "metrics.csv")) == 2


@pytest.mark.parametrize("change", ["env=gym", "algo.gamma=0.9"])
def test_what_cannot_start_leaves_nothing_behind(tmp_path: Path, change: str) -> None:
    if change == "env=gym":
        with pytest.raises(EnvironmentFault):
            run(tmp_path / "run", "env=gym", "env.id=tests.run.broken:Broken-v0")
    else:
        (tmp_path / "run").mkdir()
        with pytest.raises(RunDirectoryError):
            run(tmp_path / "run", change)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_learner_never_waits_for_an_evaluation_between_its_decision_points() -> None:
    makers = Parity, partial(make, ID)
    settings = {"num_workers": 2, "envs_per_worker": 3, "num_steps": 5, "seed": 3}
    with Batcher(*makers, **settings) as learner, Evaluator(*makers, episodes=200, seed=3) as evaluator:
        agent = Parity(learner.specs)
        evaluator.begin(agent, learner)
        workers = [handle.pid for handle in evaluator.start()._handles]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # it takes for ever
        for _ in range(20):
            learner.collect()
            evaluator.poll()
        assert learner.collect().num_steps == 30
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        while evaluator._result is None:  # 200 episodes are two rounds: they follow each other without finish()
            learner.collect()
            evaluator.poll()
        found = evaluator.finish()
    with Evaluator(*makers, episodes=200, seed=3) as alone:
        result = alone.play(agent)
    assert (found["eval/return"], found["eval/return_std"]) == (result.mean, result.std)
    assert 0.0 < found["eval/cpu_share"] < 1.0


def test_an_evaluation_plays_the_same_episodes_after_a_worker_of_its_own_has_died() -> None:
    with Evaluator(Parity, partial(make, ID), episodes=6, seed=3, num_workers=2) as evaluator:
        agent = Parity(evaluator.start().specs)
        before = evaluator.play(agent)
        os.kill(evaluator.start()._handles[0].pid, signal.SIGKILL)
        evaluator.play(agent)  # in which it is started again: that one may differ
        after = evaluator.play(agent)
    assert (after.returns, after.lengths) == (before.returns, before.lengths)


def test_evaluation_plays_exactly_n_episodes_and_does_not_favour_short_ones() -> None:
    with Evaluator(Parity, partial(make, ID), episodes=50, seed=5, num_workers=2, workers="local") as evaluator:
        result = evaluator.play(Parity(evaluator.start().specs))
    assert len(result.returns) == len(result.lengths) == 50
    # An environment's first episodes are known from its seed: their mean is what an unbiased evaluation finds.
    from rlx.seeding import env_seed

    seeds = [env_seed(5, row, evaluation=True) % 1000 for row in range(50)]
    assert sorted(result.lengths) == sorted(episode_length(seed, 0) for seed in seeds)


def test_fewer_evaluation_episodes_than_a_mixed_batch_has_environments_are_the_first_ones(tmp_path: Path) -> None:
    members = "[{id: CartPole-v1, max_episode_steps: 5}, {id: CartPole-v1, max_episode_steps: 7}]"
    mixed = "env=mixed", f"env.members={members}"
    directory = run(tmp_path / "run", *mixed, "evaluation.every=192", "evaluation.episodes=1")
    assert [row["eval/length"] for row in read_metrics(directory / "metrics.csv") if row.get("eval/length")] == [5]
    for episodes, lengths in ((1, [5]), (2, [5, 7]), (3, [5, 7, 5]), (5, [5, 5, 7, 7, 5])):
        assert sorted(evaluate_path(directory, episodes=episodes).lengths) == sorted(lengths)


class Unending(gymnasium.Env[Any, int]):
    """An environment whose episodes never end, as registered: without a time limit."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Unending-v0", Unending)


def test_an_evaluation_of_episodes_that_never_end_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlx.batcher.episodes.MOST_EPISODE_STEPS", 500)
    endless = "env=gym", "env.id=tests.run.test_run:Unending-v0"
    with pytest.raises(EnvironmentFault, match=r"3 episodes have not ended after .* steps each"):
        run(tmp_path / "evaluated", *endless, "evaluation.every=64", "evaluation.episodes=3")
    # It was the evaluation of 64 steps, waited for at 128: what was learned until there is kept.
    assert load_checkpoint(find_checkpoint(tmp_path / "evaluated")).meta["env_steps"] == 128

    trained = run(tmp_path / "run", *endless)
    told: list[tuple[int, int]] = []
    options: dict[str, Any] = {"episodes": 5, "trust": True, "report": lambda *now: told.append(now)}
    with pytest.raises(EnvironmentFault, match="--max-episode-steps N"):
        evaluate_path(trained, **options)
    told.clear()
    result = evaluate_path(trained, **options, max_episode_steps=150)
    assert result.lengths == [150] * 5
    assert result.returns == [150.0] * 5
    assert told[-1] == (5, 6 * 150)  # two workers with three environments each, the last of which does not count
    assert told == sorted(told)
    assert told[0][0] == 0


@pytest.mark.parametrize("where", ["open", "close"])
def test_a_run_cleans_up_behind_whatever_breaks_it(where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    close = Evaluator.close

    def interrupt(*given: Any) -> None:
        if where == "close":
            close(*given)
        raise KeyboardInterrupt  # as a second Ctrl-C does, which no `except Exception` holds up

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}, logging.getLogger().handlers[:]
    monkeypatch.setattr(*{"open": (Sinks, "open"), "close": (Evaluator, "close")}[where], interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "evaluation.every=64", "evaluation.episodes=1")
    assert ({number: signal.getsignal(number) for number in STOP_SIGNALS}, logging.getLogger().handlers) == before
    assert (tmp_path / "run").exists() == (where == "close")
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_directory_and_a_device_may_be_given_by_name() -> None:
    options = RunOptions("runs/mine", seed=0, total_steps=10, device="cpu")
    assert options.directory == Path("runs/mine")
    assert options.device == torch.device("cpu")

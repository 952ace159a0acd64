"""Resuming: stopped anywhere and resumed equals never stopped, to the bit; and what cannot be resumed says why."""

import copy
import json
import logging
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium
import pytest
import torch
import yaml

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import make
from rlx.errors import CheckpointError, ConfigError, DeviceError, RlxError, RunDirectoryError
from rlx.run import launch
from rlx.run.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, step_of
from rlx.run.cores import Cores
from rlx.run.evaluate import Evaluator
from rlx.run.launch import resume_run
from rlx.run.metrics import read_metrics
from rlx.run.migrate import KEY, SCHEMA
from rlx.run.records import Records
from rlx.run.signals import StopRequested
from tests.program import rlx
from tests.run.jobs import train
from tests.run.resuming import EVALUATED, JOBS, end_of, job, resume, steps_of, stopped_at, total_steps


@pytest.mark.parametrize("name", JOBS)
def test_run_killed_after_an_iteration_and_resumed_equals_one_never_stopped(tmp_path: Path, name: str, caplog) -> None:
    whole = train(tmp_path / "whole", *job(name), total_steps(name), *EVALUATED)
    wanted = end_of(whole)
    for step in steps_of(whole)[:-1][1:4:2]:
        with caplog.at_level(logging.WARNING):
            resume(stopped_at(whole, tmp_path / str(step), step))
        assert "exact=false" not in caplog.text
        assert end_of(tmp_path / str(step)) == wanted, step


def paths_in(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every field of a nested state, at every depth."""
    found: list[tuple[Any, ...]] = []
    if isinstance(state, dict):
        for key, value in state.items():
            found += [(*path, key), *paths_in(value, (*path, key))]
    elif isinstance(state, list) and state and isinstance(state[0], dict):
        found += paths_in(state[0], (*path, 0))
    return found


def without(state: Any, path: tuple[Any, ...]) -> Any:
    state = copy.deepcopy(state)
    owner = state
    for part in path[:-1]:
        owner = owner[part]
    del owner[path[-1]]
    return state


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a run does whose GPU is not here")
def test_a_run_of_a_gpu_goes_on_where_there_is_none(tmp_path: Path, caplog) -> None:
    """A GPU's generators have states of 16 bytes."""
    words = ["algo=sac", "env=Pendulum", "batcher=local", "batcher.envs_per_worker=4", "algo.learning_starts=64"]
    run = train(tmp_path / "run", *words, "total_steps=128", "checkpoint.buffer=true", "logger=csv")
    path = find_checkpoint(run)
    state, config, meta = load_checkpoint(path)
    state["noise"]["generator"] = state["noise"]["generator"][:16].clone()
    shutil.rmtree(path)
    save_checkpoint(run, state, {**config, "device": "cuda:3"}, meta)
    with pytest.raises(
        DeviceError, match=r"device: got 'cuda:3', but this machine has 0 CUDA devices; device=cpu works"
    ):
        resume(run, total_steps=192)
    with caplog.at_level(logging.WARNING):
        resume(run, total_steps=192, device="cpu")
    assert "exact=false: device is cpu and was cuda:3: sums are rounded otherwise" in caplog.text
    assert "exact=false: noise: drawn anew, by the generator of another device" in caplog.text
    assert [row["env_steps"] for row in read_metrics(run / "metrics.csv")][-1] == 192


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a run does whose GPU is not here")
def test_environments_of_a_gpu_go_on_and_are_evaluated_where_there_is_none(tmp_path: Path, caplog) -> None:
    words = ["env=CartPoleTorch", "batcher=local", "batcher.envs_per_worker=4", "algo.num_steps=16"]
    run = train(tmp_path / "run", *words, "total_steps=128", "logger=csv")
    path = find_checkpoint(run)
    state, config, meta = load_checkpoint(path)
    config["env"]["device"] = "cuda"
    (worker,) = state["batcher"]["workers"]
    worker["rollout"]["generator"] = worker["rollout"]["generator"][:16].clone()
    shutil.rmtree(path)
    save_checkpoint(run, state, config, meta)
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    written["env"]["device"] = "cuda"
    (run / "config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    played = rlx(tmp_path, "eval", "run", "--episodes", "2")
    assert played.returncode == 0, played.stderr
    assert "env.device=cuda is not here: the environments are made on the CPU" in played.stderr
    with caplog.at_level(logging.WARNING):
        resume(run, total_steps=256, **{"env.device": "cpu"})
    assert "exact=false: env.device is cpu and was cuda: sums are rounded otherwise" in caplog.text
    assert "actions are drawn anew, by another device's generator" in caplog.text
    assert [row["env_steps"] for row in read_metrics(run / "metrics.csv")][-1] >= 256
    caplog.clear()
    resume(run, total_steps=384)  # config.yaml says where the run began, and its checkpoint where it is
    assert "exact=false" not in caplog.text


@pytest.mark.faults
@pytest.mark.parametrize(
    "name",
    [
        "ppo_native",
        *(
            pytest.param(name, marks=pytest.mark.matrix)
            for name in ("ppo_transformer", "dqn", "dqn_recurrent", "dqn_hindsight", "diayn")
        ),
    ],
)
def test_a_checkpoint_that_lacks_any_one_field_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    whole = train(tmp_path / "whole", *job(name), total_steps(name), *EVALUATED)
    run = stopped_at(whole, tmp_path / "run", steps_of(whole)[2])
    path = find_checkpoint(run)
    state, config, meta = load_checkpoint(path)
    rows = (run / "metrics.csv").read_bytes()
    paths = [path for path in paths_in(state) if path[:3] != ("run", "counters", "last")]  # the summary's figures
    assert len(paths) > 60
    for field in paths:
        save_checkpoint(run, without(state, field), config, meta)
        with pytest.raises(CheckpointError):  # noqa: PT012
            resume(run)
            raise AssertionError(f"{field} is not missed")
        assert (run / "metrics.csv").read_bytes() == rows, field
        assert not (run / "run.lock").exists()
    save_checkpoint(run, state, config, meta)
    resume(run)
    assert end_of(run) == end_of(whole)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """A run of six iterations that has ended; tests copy it."""
    return train(tmp_path_factory.mktemp("ended") / "run", *job("ppo"), total_steps("ppo"))


@pytest.fixture
def stopped(ended: Path, tmp_path: Path) -> Path:
    """A copy as it is left after the fourth iteration."""
    return stopped_at(ended, tmp_path / "run", 320)


def test_a_resumed_run_goes_on_in_its_directory_and_says_so(stopped: Path) -> None:
    said = resume(stopped, **{"total_steps": 640, "checkpoint.keep_last": 2})
    assert said[:2] == ["resume: total_steps: 480 -> 640", "resume: checkpoint.keep_last: 99 -> 2"]
    assert said[2].endswith("goes on from step-000000320")
    rows = read_metrics(stopped / "metrics.csv")
    assert [row["env_steps"] for row in rows] == [80, 160, 240, 320, 400, 480, 560, 640]
    times = [row["wall_time"] for row in rows]
    assert times == sorted(times)
    assert [step_of(path) for path in list_checkpoints(stopped)] == [560, 640]
    assert "total_steps: 640" in (stopped / "config.yaml").read_text()
    log = (stopped / "log.txt").read_text()
    assert "begins: ppo on CartPole" in log
    assert "resumes from step-000000320: ppo on CartPole, 640 steps" in log
    assert "exact=true" in log
    assert json.loads((stopped / "summary.json").read_text())["env_steps"] == 640
    assert not (stopped / "run.lock").exists()


@pytest.mark.parametrize("asked", [2, "auto"])
def test_other_threads_are_not_said_to_be_exact(stopped: Path, asked: int | str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(launch, "find_cores", lambda: Cores(1, "of the test"))
    with caplog.at_level(logging.WARNING):
        resume(stopped, num_threads=asked)
    torch.set_num_threads(1)
    told = "exact=false: num_threads is 2 and was 1: sums are rounded otherwise"
    assert (told in caplog.text, "exact=true" in (stopped / "log.txt").read_text()) == (asked == 2, asked != 2)


def test_events_that_the_checkpoint_did_not_know_of_are_cut_off(stopped: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resume(stopped)
    events = EventAccumulator(str(stopped / "tensorboard"))
    events.Reload()
    found = [event.step for event in events.Scalars("loss/total")]
    assert found == [80, 160, 240, 320, 400, 480]
    assert len(list((stopped / "tensorboard").iterdir())) == 2


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(ended: Path, stopped: Path) -> None:
    newest = find_checkpoint(stopped)
    (newest / "tensors.safetensors").write_bytes(b"short")
    said = resume(stopped)
    assert "truncated" in said[0]
    assert said[0].endswith("falling back to 'step-000000240'")
    assert end_of(stopped) == end_of(ended)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo.gamma": 0.5}, "algo.gamma: it may not change when a run is resumed; total_steps, stop_at_return"),
        ({"total_step": 900}, r"total_step: it is no key.*Did you mean 'total_steps'\?"),
        ({"total_steps": 320}, "has done 320 steps, and total_steps is 320; give total_steps=MORE"),
        ({"total_steps": "many"}, "total_steps: "),
        ({"total_steps": 900, "checkpoint.keep_last": 0}, "checkpoint.keep_last: expected an integer >= 1, got 0"),
        ({"total_steps": 900, "evaluation.episodes": 0}, "evaluation.episodes: expected an integer >= 1, got 0"),
    ],
    ids=str,
)
def test_keys_that_may_not_change_are_refused(stopped: Path, changes: dict[str, Any], message: str) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in stopped.rglob("*.*"))
    said: list[str] = []
    with pytest.raises(ConfigError, match=message):
        resume_run(stopped, changes, "test", tell=said.append, trust=True)
    assert said == []  # nor that it goes on
    assert sorted((path, path.stat().st_mtime_ns) for path in stopped.rglob("*.*")) == before


def test_a_run_that_stop_at_return_ended_goes_on_with_another_one(tmp_path: Path) -> None:
    short = ["env=gym", "env.id=tests.run.short_and_long:ShortAndLong-v0", "total_steps=100_000", "stop_at_return=2"]
    run = train(tmp_path / "run", *job("ppo"), *short)
    with pytest.raises(ConfigError, match="was ended by stop_at_return=2"):
        resume(run)
    steps = read_metrics(run / "metrics.csv")[-1]["env_steps"]
    resume(run, stop_at_return=None, total_steps=steps + 160)
    assert read_metrics(run / "metrics.csv")[-1]["env_steps"] == steps + 160


def test_what_is_no_run_is_refused_by_name(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="nothing' does not exist"):
        resume(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunDirectoryError, match="folder' is no run directory"):
        resume(tmp_path / "folder")
    with pytest.raises(RunDirectoryError, match=f"expected the directory of a run; its run is '{stopped}'"):
        resume(find_checkpoint(stopped))
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        resume(stopped)


def test_a_checkpoint_of_another_algorithm_is_refused_with_both(stopped: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", *job("a2c"), total_steps("a2c"))
    shutil.copytree(find_checkpoint(other), stopped / "checkpoints" / "step-000000480")
    with pytest.raises(CheckpointError, match=r"belongs to another run: its algo is .*a2c.*, this run's .*ppo"):
        resume(stopped)


def test_an_environment_that_is_told_a_number_that_is_none_is_its_own(tmp_path: Path) -> None:
    told = "env=gym", "env.id=CartPole-v1", "+env.kwargs.sutton_barto_reward=nan"  # as true as any number but 0
    run = train(tmp_path / "run", *job("ppo"), total_steps("ppo"), *told)
    steps = read_metrics(run / "metrics.csv")[-1]["env_steps"]
    resume(run, total_steps=steps + 160)
    assert read_metrics(run / "metrics.csv")[-1]["env_steps"] == steps + 160


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("agent", {"hidden_sizes": [32, 64]}, r"agent\.\S+ is \[2, 4, 64\] float32 in the checkpoint and \[2, 4, 32\]"),
        ("env", {"id": "Acrobot-v1"}, "belongs to another environment: it was trained on .*, this one is "),
    ],
)
def test_shapes_that_do_not_fit_are_named_with_both(stopped: Path, key: str, value: Any, message: str) -> None:
    # As if the code had changed under the same names.
    path = find_checkpoint(stopped)
    state, config, meta = load_checkpoint(path)
    config[key] |= value
    save_checkpoint(stopped, state, config, meta)
    (stopped / "config.yaml").write_text(yaml.safe_dump({KEY: SCHEMA, **config}))
    with pytest.raises(CheckpointError, match=message):
        resume(stopped)


def test_a_run_that_another_process_writes_is_refused_with_its_host_and_pid(stopped: Path) -> None:
    from rlx.run.lock import RunLock

    with (
        RunLock(stopped),
        pytest.raises(RunDirectoryError, match=f"is being written by process {os.getpid()} on {os.uname().nodename}"),
    ):
        resume(stopped)
    resume(stopped)


def test_without_the_buffer_the_run_says_so_refills_it_and_makes_no_burst_of_updates(tmp_path: Path, caplog) -> None:
    whole = train(tmp_path / "whole", *job("sac"), "checkpoint.buffer=false", total_steps("sac"))
    run = stopped_at(whole, tmp_path / "run", 240)
    assert "buffer" not in load_checkpoint(find_checkpoint(run)).state
    with caplog.at_level(logging.WARNING):
        resume(run)
    assert "exact=false: the replay buffer was not saved (checkpoint.buffer=false)" in caplog.text
    rows = read_metrics(run / "metrics.csv")
    assert [row["sac/buffer"] for row in rows] == [80, 160, 240, 80, 160, 240]
    assert [row["loss/total"] is None for row in rows] == [True, False, False, True, False, False]


def test_environments_that_cannot_be_brought_back_begin_anew_and_the_run_says_so(tmp_path: Path, caplog) -> None:
    own = ["env=gym", "env.id=tests.run.short_and_long:Forgetful-v0"]
    whole = train(tmp_path / "whole", *job("ppo"), *own, total_steps("ppo"))
    run = stopped_at(whole, tmp_path / "run", 240)
    with caplog.at_level(logging.WARNING):
        resume(run)
    assert "exact=false: " in caplog.text
    assert "showed something else when its actions were repeated" in caplog.text
    assert "exact=false" in (run / "log.txt").read_text()
    assert [row["env_steps"] for row in read_metrics(run / "metrics.csv")] == [80, 160, 240, 320, 400, 480]


def test_what_all_workers_say_is_told_once(tmp_path: Path, caplog) -> None:
    pytest.importorskip("ale_py")
    atari = ["env=Pong", "agent=conv", "agent.hidden_size=16"]
    whole = train(tmp_path / "whole", *job("ppo"), *atari, total_steps("ppo"))
    with caplog.at_level(logging.WARNING):
        resume(stopped_at(whole, tmp_path / "run", 400))
    assert caplog.text.count("exact=false: Pong: it cannot tell its state") == 1


def test_environments_with_a_state_of_their_own_need_no_repetition(tmp_path: Path, caplog) -> None:
    own = ["env=gym", "env.id=tests.run.short_and_long:Telling-v0", "env.max_episode_steps=7"]
    whole = train(tmp_path / "whole", *job("ppo"), *own, total_steps("ppo"))
    run = stopped_at(whole, tmp_path / "run", 240)
    state = load_checkpoint(find_checkpoint(run)).state["batcher"]["workers"][0]
    assert state["journal"] is None
    assert state["env"]["envs"][0]["env"].keys() == {"left", "generator"}
    with caplog.at_level(logging.WARNING):
        resume(run)
    assert "exact=false" not in caplog.text
    assert end_of(run) == end_of(whole)


def test_code_that_is_not_trusted_is_not_imported(tmp_path: Path) -> None:
    from rlx.run.launch import resume_run

    own = ["env=gym", "env.id=tests.run.short_and_long:ShortAndLong-v0"]
    whole = train(tmp_path / "whole", *job("ppo"), *own, total_steps("ppo"))
    with pytest.raises(RlxError, match=r"names code that is not rlx's: tests\.run\.short_and_long"):
        resume_run(whole, {"total_steps": 900}, "test", tell=print)
    conf = tmp_path / "conf"
    (conf / "algo").mkdir(parents=True)
    (conf / "algo" / "mine.yaml").write_text("_target_: tests.run.filled_first.train\n")  # the package, no more
    with pytest.raises(
        RlxError, match=r"No YAML file in '.*conf' has that name whole: write it into one, or give --tr"
    ):
        resume_run(whole, {"total_steps": 900}, "test", tell=print, config_dir=conf)


def test_a_replay_buffer_that_an_algorithm_has_filled_itself_is_not_said_to_fill_again(tmp_path: Path, caplog) -> None:
    own = ["~algo", "+algo._target_=tests.run.filled_first.train", "+algo.num_steps=20", "checkpoint.buffer=false"]
    words = [word for word in job("ppo") if not word.startswith("algo")]
    whole = train(tmp_path / "whole", *words, *own, total_steps("ppo"))
    with caplog.at_level(logging.WARNING):
        resume(stopped_at(whole, tmp_path / "run", 240))
    assert (
        "was not saved (checkpoint.buffer=false), and begins with 80 steps that the algorithm put there" in caplog.text
    )


def test_a_run_of_an_earlier_rlx_is_resumed(tmp_path: Path) -> None:
    # Written by rlx 0.1.0, schema 1, in the middle of PPO on CartPole; a copy of each released schema stays here.
    run = shutil.copytree(Path(__file__).parent / "fixtures" / "schema_1", tmp_path / "run")
    assert json.loads((run / "checkpoints/step-000000080/checkpoint.json").read_text())["schema"] == 1
    resume(run)
    assert [row["env_steps"] for row in read_metrics(run / "metrics.csv")] == [80, 160]


def test_an_evaluation_under_way_is_played_again_with_the_weights_that_it_had(tmp_path: Path) -> None:
    words = [*job("ppo"), total_steps("ppo"), "evaluation.every=160", "evaluation.episodes=3"]
    whole = train(tmp_path / "whole", *words)
    run = stopped_at(whole, tmp_path / "run", 240)  # that of 160 steps is told of at 320
    state = load_checkpoint(find_checkpoint(run)).state
    assert state["run"]["evaluation"]["playing"] == {"env_steps": 160, "iteration": 2}
    name = next(iter(state["agent"]))
    assert not state["run"]["evaluation"]["weights"][name].equal(state["agent"][name])
    resume(run)
    assert end_of(run) == end_of(whole)


def train_until(run: Path, words: list[Any], monkeypatch: pytest.MonkeyPatch, owner: type, called: str) -> None:
    """Train until a method is called, in whose place a signal ends the run at once."""
    with monkeypatch.context() as patched:
        patched.setattr(owner, called, Mock(side_effect=StopRequested(signal.SIGINT, safe=False)))
        with pytest.raises(StopRequested):
            train(run, *words)


def test_a_run_that_had_only_to_evaluate_has_done_so_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*job("ppo"), total_steps("ppo"), "evaluation.every=480", "evaluation.episodes=3"]
    wanted = end_of(train(tmp_path / "whole", *words))
    run = tmp_path / "run"
    train_until(run, words, monkeypatch, Evaluator, "finish")
    assert load_checkpoint(find_checkpoint(run)).state["run"]["evaluation"]["playing"] is not None
    resume(run)
    assert end_of(run) == wanted
    with pytest.raises(ConfigError, match="has done 480 steps"):
        resume(run)
    resume(run, **{"evaluation.every": 0, "total_steps": 560})
    assert [row["env_steps"] for row in read_metrics(run / "metrics.csv") if row["eval/return"] is not None] == [480]


def test_weights_that_were_best_are_saved_though_a_run_is_stopped_as_they_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*job("ppo"), total_steps("ppo"), "evaluation.every=160", "evaluation.episodes=3"]
    wanted = end_of(train(tmp_path / "whole", *words))
    run = tmp_path / "run"
    train_until(run, words, monkeypatch, Records, "save_best")
    assert not (run / "checkpoints/best").exists()
    resume(run)
    assert end_of(run) == wanted


class Counting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pays by how many episodes there have been, which nothing that is seen tells."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1", max_episode_steps=30))
        self._episodes = 0

    def reset(self, **options: Any) -> Any:
        self._episodes += 1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float(self._episodes), *rest


gymnasium.register("Counting-v0", Counting)


def test_what_carries_over_and_shows_in_rewards_alone_is_noticed(tmp_path: Path, caplog) -> None:
    words = ["env=gym", "env.id=tests.run.test_resume:Counting-v0", *job("ppo"), "algo.num_steps=600"]
    whole = train(tmp_path / "whole", *words, "algo.batch_size=600", "total_steps=7200")
    run = stopped_at(whole, tmp_path / "run", 4800)  # 1,200 steps a row: past its first new seed
    with caplog.at_level(logging.WARNING):
        resume(run)
    assert "paid something else when its actions were repeated" in caplog.text


@pytest.mark.parametrize("how", ["ahead", "ordered", "waiting"])
def test_what_begins_anew_plays_nothing_twice(how: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_workers": 2, "envs_per_worker": 2, "num_steps": 30, "seed": 3, "workers": "local"}
    make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    firsts: list[list[float]] = []
    state: dict[str, Any] | None = None
    for number in range(3):
        with Batcher(make_agent, partial(make, "CartPole-v1"), **settings, asynchronous=how == "ahead") as batcher:
            batcher.publish(make_agent(batcher.specs))
            if number:
                told = batcher.load_state_dict(state, number)
                assert told[0].endswith("and its environments begin new episodes")
            for _ in range(40):  # past the first new seeds, too
                steps = batcher.collect().steps
                firsts += steps["env/obs"][steps["env/is_first"]].tolist()
            if how == "ordered":
                batcher.execute()
            state = batcher.state_dict(between_pieces=how != "waiting")
    assert len({tuple(first) for first in firsts}) == len(firsts) > 100


def test_the_best_weights_stay_the_best_while_a_run_goes_on_without_evaluations(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *job("ppo"), total_steps("ppo"), "evaluation.every=80", "evaluation.episodes=2")
    known = load_checkpoint(find_checkpoint(run)).state["run"]["evaluation"]
    resume(run, **{"evaluation.every": 0, "total_steps": 560})
    kept = load_checkpoint(find_checkpoint(run)).state["run"]["evaluation"]
    assert kept == {"best": known["best"], "playing": None, "weights": None, "due": None}


def test_a_resume_that_its_logs_refuse_leaves_the_configuration_as_it_was(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *job("ppo"), total_steps("ppo"))
    config, metrics = (run / "config.yaml").read_text(), run / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(RunDirectoryError, match="rows were removed from it"):
        resume(run, total_steps=960)
    metrics.unlink()
    with pytest.raises(RunDirectoryError, match="has 0 rows"):
        resume(run, total_steps=960)
    assert not metrics.exists()
    assert (run / "config.yaml").read_text() == config

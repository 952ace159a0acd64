"""`rlx bench` measures what it says: the same steps on both sides, in the units it prints."""

import json
from functools import partial
from typing import ClassVar

import gymnasium
import pytest

from rlx.cli.app import app
from rlx.env import GymVecEnv, TorchCartPole, make
from rlx.errors import ConfigError
from rlx.tools.adapter import bench_adapter
from rlx.tools.bench import bench_collect
from rlx.tools.startup import bench_start


@pytest.mark.parametrize("vectorization", ["per_instance", "native"])
def test_bench_collect_reports_both_rates_and_their_ratio(vectorization: str) -> None:
    found = bench_collect(num_workers=1, envs_per_worker=3, num_steps=16, seconds=0.1, vectorization=vectorization)
    assert found["steps_per_second"] > 0
    assert found["ceiling_steps_per_second"] > 0
    assert 0.1 < found["ratio"] < 10
    assert (found["ceiling_of_raw"] is None) == (vectorization == "native")
    # observations, action, logits, reward, both flags: what two slots of 16 steps of 3 environments hold at least
    assert found["shared_bytes"] >= 2 * 16 * 3 * (16 + 8 + 8 + 4 + 1 + 1)


def test_shared_memory_is_what_the_specs_say_and_the_rest_is_alignment() -> None:
    found = bench_collect(num_workers=1, envs_per_worker=3, num_steps=16, seconds=0.1)
    parts = found["shared_bytes_of"]
    assert sum(parts.values()) == found["shared_bytes"]
    assert parts["obs"] == 2 * 17 * 3 * 4 * 4
    assert parts["final/obs"] == 2 * 16 * 3 * 4 * 4
    assert parts["agent/logits"] == 2 * 16 * 3 * 2 * 4
    assert parts["reward"] == 2 * 16 * 3 * 4
    assert parts["weights"] >= 2 * 4 * (2 * (4 * 64 + 64 + 64 * 64 + 64) + 64 * 3)
    assert 0 <= parts["alignment"] < 64 * 2 * len(parts)


def test_scaling_compares_gains_and_checks_compare_rates_in_one_run() -> None:
    found = bench_collect(num_workers=2, envs_per_worker=1, num_steps=16, seconds=0.1, scaling=True, checks=True)
    assert found["gain_ratio"] == found["gain"] / found["ceiling_gain"]
    assert 0.1 < found["gain"] < 10
    assert 0 < found["checks_cost"] < 1
    assert found["unchecked_steps_per_second"] > 0
    with pytest.raises(ConfigError, match="--num-workers is 1, expected >= 2"):
        bench_collect(num_workers=1, scaling=True)


class Counted(gymnasium.Wrapper):
    """Counts all its steps and resets, and keeps the actions that it got."""

    steps, resets = 0, 0
    actions: ClassVar[set[float]] = set()

    def step(self, action):
        Counted.steps += 1
        Counted.actions.add(float(action))
        return super().step(action)

    def reset(self, **options):
        Counted.resets += 1
        return super().reset(**options)


def make_counted(num_envs: int) -> GymVecEnv:
    return GymVecEnv(lambda: Counted(gymnasium.make("CartPole-v1")), num_envs, name="Counted")


def test_bench_adapter_steps_and_resets_the_same_environments_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: dict[str, int] = {}

    def one_turn(runs, seconds):
        for name, run in runs.items():
            Counted.steps = Counted.resets = 0
            Counted.actions = set()
            assert run(2) == 2 * 16 * 3 == Counted.steps
            assert Counted.actions == {0.0, 1.0}
            sides[name] = Counted.resets
        return {name: [1.0] for name in runs}

    monkeypatch.setattr("rlx.tools.adapter.rates_in_turns", one_turn)
    found = bench_adapter(make_counted, num_envs=3, num_steps=16, seconds=0.1)
    assert (found["ratio"], found["num_envs"], found["env"]) == (1.0, 3, "Counted")
    assert sides["rlx"] > 1
    assert abs(sides["rlx"] - sides["bare"] - 3) <= 3  # rlx's own begin with a reset


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_bench_adapter_measures_environments_with_any_actions(env_id: str) -> None:
    found = bench_adapter(partial(make, env_id), num_envs=2, num_steps=8, seconds=0.05)
    assert found["steps_per_second"] > 0
    assert 0.01 < found["ratio"] < 10


def test_bench_adapter_refuses_what_has_no_bare_form() -> None:
    make_env = partial(TorchCartPole, autoreset="next_step", max_episode_steps=500, device="cpu")
    with pytest.raises(ConfigError, match="rlx knows no bare form of 'TorchCartPole'"):
        bench_adapter(make_env, num_envs=2, seconds=0.05)


def test_bench_adapter_takes_its_environment_as_training_does(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--num-envs", "2", "--num-steps", "4", "--seconds", "0.1", "--json"]
    with pytest.raises(SystemExit) as end:
        app(["bench", "adapter", "env=CartPoleVec", *options], prog_name="rlx")
    assert end.value.code == 0
    assert json.loads(capfd.readouterr().out)["env"] == "CartPole-v1"
    for wrong, said in (("algo=ppo", "expected env=MEMBER"), ("env=CartPoleVek", "Did you mean 'CartPoleVec'?")):
        with pytest.raises(SystemExit) as end:
            app(["bench", "adapter", wrong, *options], prog_name="rlx")
        assert end.value.code == 2
        assert said in capfd.readouterr().err


def test_bench_start_measures_a_program_from_its_start_to_its_end() -> None:
    found = bench_start(num_workers=1, envs_per_worker=2, times=1)
    assert 0 < found["start_seconds"] < found["first_piece_seconds"] < 60
    assert 0 <= found["close_seconds"] < 10
    assert found["private_megabytes"] is None or 0 < found["private_megabytes"] < 200


def test_bench_collect_refuses_what_the_hand_written_loop_cannot_run() -> None:
    with pytest.raises(ConfigError, match="Discrete"):
        bench_collect(env="Pendulum-v1", num_workers=1, envs_per_worker=1, seconds=0.1)

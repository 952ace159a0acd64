"""`rlx bench collect` measures what it says: the same steps on both sides, in the units it prints."""

import pytest

from rlx.errors import ConfigError
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


def test_bench_start_measures_a_program_from_its_start_to_its_end() -> None:
    found = bench_start(num_workers=1, envs_per_worker=2, times=1)
    assert 0 < found["start_seconds"] < found["first_piece_seconds"] < 60
    assert 0 <= found["close_seconds"] < 10
    assert found["private_megabytes"] is None or 0 < found["private_megabytes"] < 200


def test_bench_collect_refuses_what_the_hand_written_loop_cannot_run() -> None:
    with pytest.raises(ConfigError, match="Discrete"):
        bench_collect(env="Pendulum-v1", num_workers=1, envs_per_worker=1, seconds=0.1)

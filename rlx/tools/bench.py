"""`rlx bench`: rates measured beside what they can be measured against, in the same processes and the same minutes."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

from rlx.agent.actor_critic import ActorCritic
from rlx.batcher.batcher import Batcher
from rlx.env import make
from rlx.errors import ConfigError
from rlx.tools.ceiling import run_ceiling, run_raw

_TURN_SECONDS = 0.15  # short, so that a change of the machine's speed meets both sides of a pair


def bench_collect(
    *,
    env: str = "CartPole-v1",
    num_workers: int = 2,
    envs_per_worker: int = 4,
    num_steps: int = 128,
    seconds: float = 5.0,
    vectorization: str = "per_instance",
) -> dict[str, Any]:
    """Measure collection with a policy of two hidden layers of 64, and a hand-written loop with the same work.

    The two take turns of 0.15 s in the same worker processes, so that a change of the machine's speed meets both.

    Args:
        env: the environment's id; vector observations and discrete actions.
        num_workers: worker processes.
        envs_per_worker: environments of each.
        num_steps: steps of each environment a call; at the end of a call both wait for all workers, as a learner does.
        seconds: how long each of the two is measured.
        vectorization: `per_instance` or `native`.

    Returns:
        `steps_per_second` (valid transitions of rlx), `ceiling_steps_per_second`, `ratio` (median of the turns'),
        `raw_steps_per_second` (one bare environment in each worker, all at the same time: the mean), `ceiling_of_raw`
        (the ceiling's rate over the workers' number times that), `shared_bytes` and what these are made of, and the
        arguments.

    Raises:
        ConfigError: an environment that the hand-written loop cannot run.
    """
    make_env = partial(make, env, vectorization=cast(Any, vectorization))
    make_agent = partial(ActorCritic, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)
    with Batcher(
        make_agent,
        make_env,
        num_workers=num_workers,
        envs_per_worker=envs_per_worker,
        num_steps=num_steps,
        seed=0,
    ) as batcher:
        observation, action = batcher.specs.observation, batcher.specs.action
        if list(observation) != ["obs"] or "action" not in action or action["action"].kind != "discrete":
            raise ConfigError(f"env: got '{env}', expected one with Box observations and Discrete actions")
        torch.manual_seed(0)
        batcher.publish(make_agent(batcher.specs))
        native = vectorization == "native"

        def collect(pieces: int) -> int:
            return sum(batcher.collect().num_steps for _ in range(pieces))

        def ceiling(pieces: int) -> int:
            return sum(sum(batcher.call(run_ceiling, env, native, num_steps)) for _ in range(pieces))

        turns = [(collect, _pieces_a_turn(collect)), (ceiling, _pieces_a_turn(ceiling))]
        raw: list[float] = []
        rates: tuple[list[float], list[float]] = ([], [])
        ends = time.perf_counter() + 2 * seconds
        while time.perf_counter() < ends or len(rates[0]) < 3:
            for (run, pieces), found in zip(turns, rates, strict=True):
                started = time.perf_counter()
                count = run(pieces)
                found.append(count / (time.perf_counter() - started))
            if not native:
                raw.append(sum(batcher.call(run_raw, env, _TURN_SECONDS / 4)) / num_workers)
        ours, theirs = map(statistics.median, rates)
        one = statistics.median(raw) if raw else None
        return {
            "steps_per_second": ours,
            "ceiling_steps_per_second": theirs,
            "ratio": statistics.median(a / b for a, b in zip(*rates, strict=True)),
            "raw_steps_per_second": one,
            "ceiling_of_raw": None if one is None else theirs / (num_workers * one),
            "turns": len(rates[0]),
            "shared_bytes": batcher.num_bytes,
            "shared_bytes_of": batcher.bytes_by_block,
            "env": env,
            "num_workers": num_workers,
            "envs_per_worker": envs_per_worker,
            "num_steps": num_steps,
            "vectorization": vectorization,
        }


def _pieces_a_turn(run: Callable[[int], int]) -> int:
    run(2)  # what is made at the first call
    started = time.perf_counter()
    run(4)
    return max(1, round(4 * _TURN_SECONDS / max(time.perf_counter() - started, 1e-6)))

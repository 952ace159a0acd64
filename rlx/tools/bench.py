"""`rlx bench collect`: rates of collection beside what they can be measured against, in the same minutes."""

import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch

from rlx.agent.actor_critic import ActorCritic
from rlx.batcher.batcher import Batcher
from rlx.env import make
from rlx.errors import ConfigError
from rlx.tools.ceiling import run_ceiling, run_raw
from rlx.tools.checks_cost import share_of_checks, time_checks
from rlx.tools.turns import TURN_SECONDS, Run, median_ratio, rates_in_turns


def bench_collect(
    *,
    env: str = "CartPole-v1",
    num_workers: int = 2,
    envs_per_worker: int = 4,
    num_steps: int = 128,
    seconds: float = 5.0,
    vectorization: str = "per_instance",
    scaling: bool = False,
    checks: bool = False,
    ray: str | None = None,
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
        scaling: measure both with one worker, too, in the same turns.
        checks: measure rlx without its checks of numbers, too, in the same turns.
        ray: measure rlx with as many actors of Ray, too, in the same turns: the cluster's address (`auto`,
            `host:port`), or `local` for a Ray of our own; None: do not.

    Returns:
        `steps_per_second` (valid transitions of rlx), `ceiling_steps_per_second`, `ratio` (median of the turns'),
        `raw_steps_per_second` (one bare environment in each worker, all at the same time: the mean), `ceiling_of_raw`
        (the ceiling's rate over the workers' number times that), `shared_bytes` and what these are made of, and the
        arguments. With `scaling`, `gain` and `ceiling_gain` (rate over that of one worker) and `gain_ratio`, the first
        over the second. With `checks`, `unchecked_steps_per_second`, and `checks_cost`, the part of a piece's time
        that its check takes, each the least in a worker's own time. With `ray`, `ray_steps_per_second`, and
        `ray_ratio`, actors over processes.

    Raises:
        ConfigError: an environment that the hand-written loop cannot run, or one worker to compare with one.
    """
    if scaling and num_workers < 2:
        raise ConfigError(f"--scaling compares several workers with one: --num-workers is {num_workers}, expected >= 2")
    native = vectorization == "native"
    make_env = partial(make, env, vectorization=cast(Any, vectorization))
    settings: dict[str, Any] = {"envs_per_worker": envs_per_worker, "num_steps": num_steps, "seed": 0}
    with ExitStack() as stack:

        def started(count: int, **changes: Any) -> Batcher:
            batcher = Batcher(_make_agent, make_env, num_workers=count, **(settings | changes))
            stack.enter_context(batcher)
            observation, action = batcher.specs.observation, batcher.specs.action
            if list(observation) != ["obs"] or "action" not in action or action["action"].kind != "discrete":
                raise ConfigError(f"env: got '{env}', expected one with Box observations and Discrete actions")
            torch.manual_seed(0)
            batcher.publish(_make_agent(batcher.specs))
            return batcher

        batcher = started(num_workers)
        runs = {
            "rlx": partial(_collect, batcher),
            "ceiling": partial(_ceiling, batcher, env, native, num_steps),
        }
        if scaling:
            alone = started(1)
            runs["rlx alone"] = partial(_collect, alone)
            runs["ceiling alone"] = partial(_ceiling, alone, env, native, num_steps)
        if checks:
            batcher.call(time_checks)
            runs["unchecked"] = partial(_collect, started(num_workers, check_finite=False))
        if ray is not None:
            actors = started(num_workers, workers="ray", address=None if ray == "local" else ray)
            runs["ray"] = partial(_collect, actors)
        raw: list[float] = []

        def measure_raw() -> None:
            raw.append(sum(batcher.call(run_raw, env, TURN_SECONDS / 4)) / num_workers)

        rates = rates_in_turns(cast("dict[str, Run]", runs), seconds, None if native else measure_raw)
        cost = max(batcher.call(share_of_checks)) if checks else 0.0
        ours, theirs = rates["rlx"], rates["ceiling"]
        ceiling = statistics.median(theirs)
        one = statistics.median(raw) if raw else None
        found: dict[str, Any] = {
            "steps_per_second": statistics.median(ours),
            "ceiling_steps_per_second": ceiling,
            "ratio": median_ratio(ours, theirs),
            "raw_steps_per_second": one,
            "ceiling_of_raw": None if one is None else ceiling / (num_workers * one),
            "turns": len(ours),
            "shared_bytes": batcher.num_bytes,
            "shared_bytes_of": batcher.bytes_by_block,
        }
    if scaling:
        gain, ceiling_gain = median_ratio(ours, rates["rlx alone"]), median_ratio(theirs, rates["ceiling alone"])
        found |= {"gain": gain, "ceiling_gain": ceiling_gain, "gain_ratio": gain / ceiling_gain}
    if checks:
        found["unchecked_steps_per_second"] = statistics.median(rates["unchecked"])
        found["checks_cost"] = cost
    if ray is not None:
        found["ray_steps_per_second"] = statistics.median(rates["ray"])
        found["ray_ratio"] = median_ratio(rates["ray"], ours)
    return found | {
        "env": env,
        "num_workers": num_workers,
        "envs_per_worker": envs_per_worker,
        "num_steps": num_steps,
        "vectorization": vectorization,
    }


_make_agent = partial(ActorCritic, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)


def _collect(batcher: Batcher, pieces: int) -> int:
    count = 0
    for _ in range(pieces):
        count += batcher.collect().num_steps
        batcher.episodes.clear()  # as a run does
    return count


def _ceiling(batcher: Batcher, env: str, native: bool, num_steps: int, pieces: int) -> int:
    return sum(sum(batcher.call(run_ceiling, env, native, num_steps)) for _ in range(pieces))

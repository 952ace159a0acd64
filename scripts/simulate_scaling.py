"""Work out, by arithmetic alone, how fast a run on many workers and ranks would be, and what holds it back.

    python scripts/simulate_scaling.py
    python scripts/simulate_scaling.py --workers 1000 --ranks 64 --nodes 8 --observation-bytes 7056

Nothing is run. Each iteration collects a piece in every worker, moves the pieces to the ranks and the weights to the
nodes, and makes the updates; what each part takes follows from the sizes below. Workers differ: the piece of each takes
its time times a lognormal draw, and an iteration waits for the slowest. docs/scaling.md tells where the constants are
from.
"""

import argparse
import random
from dataclasses import dataclass

ANSWER_S = 0.7e-3  # of one call of Ray, which its driver takes one after the other
PIPE_S = 0.1e-3  # of one command to a worker process and its answer
HOP_S = 25e-6  # of one message between two machines
OUTPUT_BYTES = 22  # of a step beside the observation: action, log-probability, value, reward, two flags


@dataclass(frozen=True)
class Setup:
    """What there is: `workers`, `ranks` and `nodes` over all; the rest of one worker, update or link."""

    workers: int
    ranks: int
    nodes: int
    envs: int
    num_steps: int
    epochs: int
    batch_size: int
    observation_bytes: int
    parameters: int
    worker_steps: float
    learner_samples: float
    network: float
    local: float
    jitter: float
    ray: bool
    asynchronous: bool


def slowest(setup: Setup, draws: int = 200) -> float:
    """Return how many times the usual time the slowest of all workers takes, on average."""
    generator = random.Random(0)
    found = (max(generator.lognormvariate(0, setup.jitter) for _ in range(setup.workers)) for _ in range(draws))
    return sum(found) / draws


def iteration(setup: Setup) -> dict[str, float]:
    """Return the seconds of each part of one iteration."""
    here, ranks_here = setup.workers / setup.ranks, max(1.0, setup.ranks / setup.nodes)
    steps = setup.envs * setup.num_steps * here  # of one rank
    collect = setup.envs * setup.num_steps / setup.worker_steps * slowest(setup)
    commands = here * (ANSWER_S if setup.ray else PIPE_S)
    # A rank's own machine needs no network for its own workers; with Ray all pieces come over its link.
    transitions = steps * (setup.observation_bytes + OUTPUT_BYTES) * ranks_here / setup.network if setup.ray else 0.0
    machines = max(1.0, setup.nodes / setup.ranks) if setup.ray else 0.0
    weights = 4 * setup.parameters * machines * ranks_here / setup.network
    updates = setup.epochs * max(1, round(steps / setup.batch_size))
    learn = setup.epochs * steps / setup.learner_samples
    share = 2 * (setup.ranks - 1) / setup.ranks
    # In a ring each machine's link is crossed once; within a machine the bytes go through memory.
    one = (
        share * 4 * setup.parameters / (setup.network if setup.nodes > 1 else setup.local)
        + 2 * (setup.ranks - 1) * HOP_S
    )
    return {"collect": collect, "commands": commands, "transitions": transitions, "weights": weights,
             "learn": learn, "all-reduce": updates * one if setup.ranks > 1 else 0.0}  # fmt: skip


def steps_per_second(setup: Setup) -> tuple[float, dict[str, float]]:
    """Return environment steps a second over all, and the parts of an iteration."""
    parts = iteration(setup)
    learning = parts["learn"] + parts["all-reduce"]
    collecting = sum(parts.values()) - learning
    seconds = max(learning, collecting) if setup.asynchronous else learning + collecting
    return setup.envs * setup.num_steps * setup.workers / seconds, parts


def main() -> None:
    """Print a table: one worker and rank, then more and more of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, about in (
        ("workers", 1000, "over all"),
        ("ranks", 64, "one a GPU"),
        ("nodes", 8, "machines of ranks and their workers"),
        ("envs", 8, "of a worker"),
        ("num-steps", 128, "of an environment, a piece"),
        ("epochs", 4, "passes over a batch"),
        ("batch-size", 1024, "samples of a rank's update"),
        ("observation-bytes", 7056, "of a step: 7056 is one Atari frame"),
        ("parameters", 1_700_000, "1.7 million are DQN's convolutions"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    for name, value, about in (
        ("worker-steps", 3200.0, "steps a second of one worker, its policy included"),
        ("learner-samples", 60_000.0, "samples a second of one rank's updates"),
        ("network", 1.25e9, "bytes a second of one machine's link"),
        ("local", 1.0e11, "bytes a second between ranks of one machine: NCCL over NVLink; Gloo has 0.75e9"),
        ("jitter", 0.05, "standard deviation of the log of a worker's time"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=about)
    parser.add_argument("--ray", action="store_true", help="workers on other machines, by Ray")
    parser.add_argument("--asynchronous", action="store_true", help="workers run ahead by a piece")
    options = vars(parser.parse_args())
    print(
        "workers ranks nodes      steps/s efficiency  "
        + " ".join(f"{name:>12}" for name in iteration(Setup(**options)))
    )
    one, whole = 0.0, options["workers"] / options["ranks"]
    for ranks in sorted({1, 2, 8, 64, options["ranks"]}):
        if ranks > options["ranks"]:
            continue
        nodes = max(1, round(options["nodes"] * ranks / options["ranks"]))
        setup = Setup(**{**options, "ranks": ranks, "workers": round(whole * ranks), "nodes": nodes})
        speed, parts = steps_per_second(setup)
        one = one or speed / setup.workers
        shown = " ".join(f"{1000 * seconds:9.1f} ms" for seconds in parts.values())
        print(f"{setup.workers:7d} {ranks:5d} {nodes:5d} {speed:12,.0f} {speed / setup.workers / one:10.0%}  {shown}")


if __name__ == "__main__":
    main()

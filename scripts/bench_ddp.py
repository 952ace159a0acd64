"""Measure a distributed learner: samples a second of two ranks beside those of one, and the bytes of an update.

    python scripts/bench_ddp.py --hidden-sizes 512 512 --batch-size 1024

Two processes, a thread each, make PPO's updates: in turns rank 0 alone, without any exchange, while rank 1 rests; then
both, their gradients averaged. Turns are short and take each other's place, so that whatever else the machine does
falls on both kinds.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rlx.agent import ActorCritic
from rlx.algo.optimizer import FlatAdam
from rlx.algo.ppo import loss
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor, Trajectories
from rlx.run.ranks import Ranks
from rlx.run.rendezvous import join

OBSERVATION, ACTIONS = 17, 6  # HalfCheetah's


def batch_of(size: int, seed: int) -> Trajectories:
    """Return a minibatch of random steps, as PPO's loss takes it."""
    torch.manual_seed(seed)
    fields = {
        "env/obs": torch.randn(size, 1, OBSERVATION),
        "agent/action": torch.randn(size, 1, ACTIONS).tanh(),
        "agent/raw_action": torch.randn(size, 1, ACTIONS),
        "advantage": torch.randn(size, 1),
        "return": torch.randn(size, 1),
        "value": torch.randn(size, 1),
        "log_prob": torch.full((size, 1), -ACTIONS * 1.4),
    }
    steps = TemporalDictTensor(fields, [1] * size)
    return Trajectories(DictTensor.empty(size), steps, DictTensor.empty(0), num_steps=size)


def update(agent: ActorCritic, optimizer: FlatAdam, batch: Trajectories, ranks: Ranks) -> None:
    """Make one of PPO's updates, with whatever ranks there are."""
    moments = ranks.std_mean_of(batch.steps, "advantage")
    terms = loss(agent, batch, clip_coef=0.2, clip_vf=False, ent_coef=0.0, vf_coef=0.5, normalize_advantage=True,
                 moments=moments)  # fmt: skip
    optimizer.zero_grad()
    terms["loss/total"].backward()
    ranks.average_gradients(agent, batch.num_steps)
    optimizer.clip_grad_norm(0.5)
    optimizer.step(1e-4)


def loopback_bytes() -> int:
    """Return what this machine has sent to itself."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def measure(ranks: Ranks, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures, on rank 0."""
    torch.set_num_threads(1)
    limits = {"low": (-1.0,) * ACTIONS, "high": (1.0,) * ACTIONS}
    action = Spec((ACTIONS,), torch.float32, **limits)
    specs = EnvSpecs({"obs": Spec((OBSERVATION,), torch.float32)}, {"action": action})
    torch.manual_seed(0)
    agent = ActorCritic(specs, hidden_sizes=options.hidden_sizes, activation="tanh", log_std_init=0.0)
    optimizer = FlatAdam(agent, eps=1e-5)
    parameters = optimizer.parameters.numel()
    batch = batch_of(options.batch_size, ranks.rank)
    alone, seconds, sent = Ranks(), {1: list[float](), ranks.size: list[float]()}, list[float]()
    for turn in range(2 * options.turns + 2):
        size = ranks.size if turn % 2 else 1
        ranks.sum(0.0)
        before, began = loopback_bytes(), time.perf_counter()
        if size > 1 or ranks.rank == 0:
            for _ in range(options.updates):
                update(agent, optimizer, batch, ranks if size > 1 else alone)
        ranks.sum(0.0)
        if turn > 1:  # the first of each kind warms up
            seconds[size].append(time.perf_counter() - began)
            if size > 1:
                sent.append((loopback_bytes() - before) / options.updates)
    speeds = {size: [size * options.updates * options.batch_size / each for each in found]
              for size, found in seconds.items()}  # fmt: skip
    ratios = [two / one for one, two in zip(speeds[1], speeds[ranks.size], strict=True)]
    return {
        "ranks": ranks.size,
        "parameters": parameters,
        "batch_size": options.batch_size,
        "update_ms_alone": 1000 * statistics.median(seconds[1]) / options.updates,
        "update_ms": 1000 * statistics.median(seconds[ranks.size]) / options.updates,
        "samples_per_second_alone": statistics.median(speeds[1]),
        "samples_per_second": statistics.median(speeds[ranks.size]),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_greatest": max(ratios),
        "buffer_bytes": 4 * (parameters + 1),
        "bytes_sent_by_each_rank": 4 * (parameters + 1) * 2 * (ranks.size - 1) / ranks.size,
        "loopback_bytes_per_update": min(sent),
    }


def main() -> None:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--batch-size", type=int, default=1024, help="samples of each rank's update")
    parser.add_argument("--updates", type=int, default=5, help="a turn")
    parser.add_argument("--turns", type=int, default=12, help="of each kind")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    if "RANK" not in os.environ:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
        os.execve(sys.executable, [sys.executable, *torchrun, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    with join({"kind": "ddp", "timeout": 300}) as ranks:
        found = measure(ranks, options)
        if ranks.rank == 0:
            print(json.dumps(found, indent=2))
        ranks.wait_for_end()


if __name__ == "__main__":
    main()

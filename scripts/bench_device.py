"""Measure collection where everything lives on one device: rlx beside a bare loop of the same policy and environment.

    python scripts/bench_device.py --device cuda --num-envs 1024 4096 16384

The environment is TorchCartPole, the policy two hidden layers of 64. The bare loop acts and steps, writes what it sees
and does into blocks as large as rlx's, and neither counts episodes nor closes gaps. The two take turns of 0.15 s.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import StepBuffer, TorchCartPole
from rlx.tools.turns import median_ratio, rates_in_turns

make_agent = partial(ActorCritic, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)


def bare_loop(env: TorchCartPole, num_steps: int) -> Callable[[int], None]:
    """Return what steps all rows through so many pieces."""
    size, device = env.num_envs, env.device
    network = make_agent(env.specs).to(device).network.single(0)
    generator = torch.Generator(device).manual_seed(0)
    obs = torch.zeros(num_steps + 1, size, 4, device=device)
    logits = torch.zeros(num_steps, size, 2, device=device)
    action = torch.zeros(num_steps, size, dtype=torch.int64, device=device)
    reward = torch.zeros(num_steps, size, device=device)
    ends = torch.zeros(2, num_steps, size, dtype=torch.bool, device=device)
    noise = torch.empty(num_steps, size, 2, device=device)
    buffers = [StepBuffer({"obs": obs[t + 1]}, reward[t], ends[0, t], ends[1, t]) for t in range(num_steps)]
    first = env.allocate()
    env.reset(first, seeds=list(range(size)))
    obs[-1].copy_(first.obs["obs"])

    @torch.inference_mode()
    def loop(pieces: int) -> None:
        for _ in range(pieces):
            obs[0].copy_(obs[-1])
            noise.exponential_(generator=generator).log_()
            for t in range(num_steps):
                network(obs[t], logits[t])
                torch.argmin(noise[t].sub_(logits[t]), -1, out=action[t])
                env.step({"action": action[t]}, buffers[t])

    return loop


def measure(device: str, num_envs: int, num_steps: int, seconds: float) -> dict[str, Any]:
    """Return both rates, in steps per second, and their ratio."""
    make_env = partial(TorchCartPole, autoreset="next_step", max_episode_steps=500, device=device)
    settings: dict[str, Any] = {"num_workers": 1, "envs_per_worker": num_envs, "workers": "local"}
    with Batcher(make_agent, make_env, num_steps=num_steps, seed=0, **settings) as batcher:
        batcher.publish(make_agent(batcher.specs).to(device))
        step_bare = bare_loop(make_env(num_envs=num_envs), num_steps)

        def finish(pieces: int) -> int:
            if batcher.device.type == "cuda":
                torch.cuda.synchronize(batcher.device)
            return pieces * num_steps * num_envs

        def collect(pieces: int) -> int:
            for _ in range(pieces):
                batcher.collect()
                batcher.episodes.clear()
            return finish(pieces)

        def bare(pieces: int) -> int:
            step_bare(pieces)
            return finish(pieces)

        rates = rates_in_turns({"rlx": collect, "bare": bare}, seconds)
    return {
        "device": device,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "steps_per_second": statistics.median(rates["rlx"]),
        "bare_steps_per_second": statistics.median(rates["bare"]),
        "ratio": median_ratio(rates["rlx"], rates["bare"]),
    }


def main() -> None:
    """Measure what the command line says, one JSON line a number of environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--num-steps", type=int, default=32, help="of each environment a piece")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each of the two is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for num_envs in options.num_envs:
        print(json.dumps(measure(options.device, num_envs, options.num_steps, options.seconds)), flush=True)


if __name__ == "__main__":
    main()

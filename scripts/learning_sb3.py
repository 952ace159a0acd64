"""Train Stable-Baselines3 over seeds 0 to N-1 with its own defaults, and evaluate it as `scripts/learning.py` does rlx.

    pip install stable-baselines3
    python scripts/learning_sb3.py --seeds 3 --out /tmp/hopper_sb3 --algo SAC --env Hopper-v5 --steps 100000

Evaluation: 100 episodes with the policy's mode and the final weights, on environment seeds that training never uses.
One JSON line a seed goes to OUT.jsonl, as the other script writes it; seeds that are there are not run again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


def evaluate(model: Any, env_id: str, episodes: int, seed: int) -> list[float]:
    """Return the returns of some episodes."""
    env = gymnasium.make(env_id)
    returns: list[float] = []
    for episode in range(episodes):
        seen, _ = env.reset(seed=1_000_000 * (seed + 1) + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(seen, deterministic=True)
            seen, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--algo", choices=["SAC", "DQN", "PPO", "A2C"], required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()

    import stable_baselines3
    import torch

    torch.set_num_threads(1)
    record: Path = arguments.out.with_suffix(".jsonl")
    record.parent.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    for seed in range(arguments.seeds):
        if any(row["seed"] == seed for row in found):
            continue
        started = time.perf_counter()
        model = getattr(stable_baselines3, arguments.algo)("MlpPolicy", arguments.env, seed=seed, device="cpu")
        model.learn(arguments.steps)
        seconds = round(time.perf_counter() - started, 1)
        returns = evaluate(model, arguments.env, arguments.episodes, seed)
        row = {"seed": seed, "mean": float(np.mean(returns)), "std": float(np.std(returns)), "seconds": seconds}
        found.append(row)
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    means = [row["mean"] for row in sorted(found, key=lambda row: row["seed"])]
    print(f"{arguments.algo} on {arguments.env}: mean {np.mean(means):.1f} over seeds {np.round(means, 1).tolist()}")


if __name__ == "__main__":
    main()

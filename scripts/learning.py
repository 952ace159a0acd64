"""Train over seeds 0 to N-1, evaluate each with its final weights, and print each figure, the mean and the spread.

    python scripts/learning.py --seeds 5 --out /tmp/acrobot experiment=ppo_acrobot

Evaluation: 100 episodes with the policy's mode, on environment seeds that training never uses. One JSON line a seed
goes to OUT.jsonl; runs lie under OUT. Seeds that OUT.jsonl has already are not run again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    record = arguments.out.with_suffix(".jsonl")
    record.parent.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    for seed in range(arguments.seeds):
        if any(row["seed"] == seed for row in found):
            continue
        run = arguments.out / str(seed)
        rlx = [sys.executable, "-m", "rlx"]
        started = time.perf_counter()
        train = [*rlx, "train", *arguments.overrides, f"seed={seed}", f"run_dir='{run}'", "logger.console=false"]
        subprocess.run(train, check=True)
        seconds = time.perf_counter() - started
        played = [*rlx, "eval", str(run), "--episodes", str(arguments.episodes), "--seed", str(seed), "--json"]
        result = json.loads(subprocess.run(played, check=True, capture_output=True, text=True).stdout)
        row = {"seed": seed, "mean": result["mean"], "std": result["std"], "seconds": round(seconds, 1)}
        found.append(row)
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    means = np.array([row["mean"] for row in sorted(found, key=lambda row: row["seed"])])
    draws = np.random.default_rng(0).choice(means, (10_000, len(means))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    seconds = np.mean([row["seconds"] for row in found])
    print(f"{' '.join(arguments.overrides)}: mean {means.mean():.1f} over {len(means)} seeds")
    print(f"  95 % bootstrap interval {low:.1f} to {high:.1f}; {seconds:.1f} s a run; seeds: {means.round(1).tolist()}")


if __name__ == "__main__":
    main()

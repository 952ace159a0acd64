"""Draw episode returns over environment steps, the mean over seeds and each seed behind it.

python scripts/plot_learning.py docs/cartpole.png "PPO on CartPole-v1" /tmp/cartpole/*
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from rlx.run.metrics import read_metrics


def main(out: str, title: str, *runs: str) -> None:
    """Draw the runs into `out`."""
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    for run in runs:
        rows = [row for row in read_metrics(Path(run) / "metrics.csv") if row["episode/return"] is not None]
        curves.append((np.array([row["env_steps"] for row in rows]), np.array([row["episode/return"] for row in rows])))
    grid = np.linspace(0, max(steps[-1] for steps, _ in curves), 400)
    stacked = np.array([np.interp(grid, steps, returns) for steps, returns in curves])
    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=150)
    for values in stacked:
        axes.plot(grid, values, color="#4878a8", alpha=0.25, linewidth=1)
    axes.plot(grid, stacked.mean(axis=0), color="#1b4f83", linewidth=2.2, label=f"mean of {len(curves)} seeds")
    axes.set(xlabel="environment steps", ylabel="return, mean of the last 100 episodes", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_xlim(0, grid[-1])
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

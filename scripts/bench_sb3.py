"""Time whole commands beside Stable-Baselines3 with the same numbers, in turns, and print the ratios.

    pip install stable-baselines3          # may be another environment's Python: --sb3-python
    python scripts/bench_sb3.py --pairs 3 ppo algo=ppo env=CartPole
    python scripts/bench_sb3.py --pairs 3 ppo experiment=ppo_cartpole_zoo
    python scripts/bench_sb3.py --pairs 3 dqn experiment=dqn_cartpole_zoo
    python scripts/bench_sb3.py --pairs 3 sac experiment=sac_pendulum_sb3

Each side is a process from the shell: imports, workers, training, final files (Stable-Baselines3 writes none). PPO and
DQN have the zoo's numbers for CartPole there, SAC its own defaults on Pendulum. The second ratio is of the CPU time, of
all processes of a side: on a machine that does other work as well it says more than the clock does.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SB3 = """
import sys
import torch
torch.set_num_threads(1)
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
seed = int(sys.argv[1])
"""
TRAIN = {
    "ppo": """
env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
model = PPO("MlpPolicy", env, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0,
            learning_rate=lambda left: 0.001 * left, clip_range=lambda left: 0.2 * left, seed=seed, device=sys.argv[2])
model.learn(100_000)
""",
    "dqn": """
model = DQN("MlpPolicy", "CartPole-v1", learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1000,
            gamma=0.99, target_update_interval=10, train_freq=256, gradient_steps=128, exploration_fraction=0.16,
            exploration_final_eps=0.04, policy_kwargs={"net_arch": [256, 256]}, seed=seed, device=sys.argv[2])
model.learn(50_000)
""",
    "sac": """
model = SAC("MlpPolicy", "Pendulum-v1", seed=seed, device=sys.argv[2])
model.learn(5_000)
""",
}


def seconds(command: list[str]) -> tuple[float, float]:
    """Return how long a command takes, and the CPU time of its processes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sb3-python", default=sys.executable)
    parser.add_argument("--device", default="cpu", help="of both learners: cpu or cuda")
    parser.add_argument("algorithm", choices=TRAIN)
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    ratios: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for pair in range(arguments.pairs):
            run = Path(scratch) / str(pair)
            rlx = [sys.executable, "-m", "rlx", "train", *arguments.overrides, f"device={arguments.device}"]
            ours = seconds([*rlx, f"seed={pair}", f"run_dir={run}"])
            code = SB3 + TRAIN[arguments.algorithm]
            theirs = seconds([arguments.sb3_python, "-c", code, str(pair), arguments.device])
            ratios.append((ours[0] / theirs[0], ours[1] / theirs[1]))
            print(
                f"pair {pair}: rlx {ours[0]:.1f} s, Stable-Baselines3 {theirs[0]:.1f} s, ratio {ratios[-1][0]:.3f}; "
                f"CPU {ours[1]:.1f} and {theirs[1]:.1f} s, ratio {ratios[-1][1]:.3f}",
                flush=True,
            )
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    shown = " ".join(arguments.overrides)
    print(f"{shown}: median ratios over {len(ratios)} pairs: {wall:.3f}, of the CPU time {cpu:.3f}")


if __name__ == "__main__":
    main()

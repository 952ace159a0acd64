"""Draw where each skill of a DIAYN run leads: two of the numbers that the environment shows, a colour a skill.

python scripts/plot_skills.py RUN docs/skills.png --episodes 5 --x 0 --y 1 --labels position velocity
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt

from rlx.batcher import EpisodeBatcher
from rlx.data import DictTensor
from rlx.run.build import maker
from rlx.run.checkpoint import find_checkpoint, load_checkpoint


def main() -> None:
    """Play the skills of the newest checkpoint, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=5, help="of each skill")
    parser.add_argument("--x", type=int, default=0)
    parser.add_argument("--y", type=int, default=1)
    parser.add_argument("--labels", nargs=2, default=["obs[x]", "obs[y]"])
    arguments = parser.parse_args()
    saved = load_checkpoint(find_checkpoint(arguments.run))
    make_env, make_agent = maker("env", saved.config["env"]), maker("agent", saved.config["agent"])
    num_skills = saved.config["agent"]["num_skills"]
    with EpisodeBatcher(
        make_agent,
        make_env,
        num_workers=1,
        envs_per_worker=num_skills * arguments.episodes,
        num_steps=1000,
        seed=0,
        workers="local",
        evaluation=True,
    ) as batcher:
        agent = make_agent(batcher.specs)
        agent.load_state_dict(saved.state["agent"])
        skill = torch.arange(num_skills).repeat_interleave(arguments.episodes)
        batcher.reset(DictTensor({"skill": skill}))
        batcher.publish(agent)
        steps = batcher.collect().steps
        seen, lengths = steps["env/obs"], steps.lengths.tolist()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    colours = plt.get_cmap("tab20" if num_skills > 10 else "tab10")
    for row, which in enumerate(skill.tolist()):
        path = seen[row, : lengths[row]]
        label = f"skill {which}" if row % arguments.episodes == 0 else None
        axes.plot(path[:, arguments.x], path[:, arguments.y], color=colours(which), linewidth=0.8, label=label)
    axes.set(xlabel=arguments.labels[0], ylabel=arguments.labels[1])
    axes.set_title(f"{num_skills} skills without a reward, {arguments.episodes} episodes of each")
    axes.legend(fontsize=7, ncols=2, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()

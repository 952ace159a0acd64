"""Draw where each skill of a DIAYN run leads, and how well the discriminator tells them apart.

    python scripts/plot_skills.py RUN OUT --x 0 --y 1 --labels position velocity
    python scripts/plot_skills.py RUN OUT --x angle:0,1 --y 2 --labels "angle" "angular velocity"

An axis is one of the numbers that the environment shows (those of a Dict one part behind the other), or
`angle:COSINE,SINE`, the angle of two of them, from 0 to 2 pi. The newest checkpoint plays new episodes, on environment
seeds that training never uses, with drawn actions; printed is the part of their steps whose skill the discriminator
finds.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

mpl.use("Agg")
import matplotlib.pyplot as plt

from rlx.algo.diayn import Discriminator
from rlx.batcher import EpisodeBatcher
from rlx.cli.report import reported_errors
from rlx.data import DictTensor, TemporalDictTensor
from rlx.errors import UserError
from rlx.run.build import maker
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.tools.draw import COLORS, print_style


def play(run: Path, episodes: int) -> tuple[TemporalDictTensor, Tensor, Tensor]:
    """Return what the skills of the newest checkpoint did, which skill, and which one the discriminator takes it for.

    Args:
        run: the run's directory.
        episodes: of each skill.

    Returns:
        The steps `[B, T]`, the skills `[B]` and the discriminator's choice at each step `[B, T]`, int64.
    """
    saved = load_checkpoint(find_checkpoint(run))
    if "discriminator" not in saved.state:
        raise UserError(f"'{run}' has no skills that a discriminator tells apart; expected a run of algo=diayn")
    make_env, make_agent = maker("env", saved.config["env"]), maker("agent", saved.config["agent"])
    num_skills = saved.config["agent"]["num_skills"]
    skill = torch.arange(num_skills).repeat_interleave(episodes)
    settings: dict[str, Any] = {"num_workers": 1, "num_steps": 1000, "seed": 0, "workers": "local", "evaluation": True}
    with EpisodeBatcher(make_agent, make_env, envs_per_worker=len(skill), **settings) as batcher:
        agent = make_agent(batcher.specs)
        agent.load_state_dict(saved.state["agent"])
        discriminator = Discriminator(batcher.specs, num_skills, saved.config["algo"]["discriminator_hidden_sizes"])
        discriminator.load_state_dict(saved.state["discriminator"])
        batcher.reset(DictTensor({"skill": skill}))
        batcher.publish(agent)
        steps = batcher.collect().steps
    with torch.no_grad():
        logits = discriminator(steps.group("next").flatten())
    taken_for = torch.full(steps.leading_shape, -1)
    taken_for[steps.mask()] = logits.argmax(-1)
    return steps, skill, taken_for


def numbers(steps: TemporalDictTensor) -> Tensor:
    """Return the numbers `[B, T, n]` that the environment showed: those of a Dict's parts one behind the other."""
    parts = [steps[name] for name in steps if name.split("/")[:2] == ["env", "obs"]]
    return torch.cat([part.reshape(*steps.leading_shape, -1).float() for part in parts], dim=-1)


def coordinate(seen: Tensor, axis: str) -> Tensor:
    """Return one number of each observation `[..., n]`: that at a place, or the angle of a cosine and a sine."""
    try:
        if not axis.startswith("angle:"):
            return seen[..., int(axis)]
        cosine, sine = (seen[..., int(place)] for place in axis.removeprefix("angle:").split(","))
    except (ValueError, IndexError):
        last = seen.shape[-1] - 1
        raise UserError(
            f"--x, --y: got '{axis}', expected a place from 0 to {last}, or two of them as angle:0,1"
        ) from None
    return torch.atan2(sine, cosine) % (2 * math.pi)


def draw(
    steps: TemporalDictTensor, skill: Tensor, confusion: Tensor, axes: tuple[str, str], labels: tuple[str, str]
) -> Any:
    """Return the figure: a panel a skill, all that the others do in grey behind it, and the confusion matrix."""
    num_skills, mask, seen = len(confusion), steps.mask().numpy(), numbers(steps)
    x, y = (coordinate(seen, axis).numpy() for axis in axes)
    rows = max(1, round(math.sqrt(num_skills / 2)))
    columns = -(-num_skills // rows)
    figure = plt.figure(figsize=(1.35 * columns + 3.2, max(2.9, 1.45 * rows)), dpi=200, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.35 * columns, 3.2))
    panels = left.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[num_skills:]:
        panel.set_axis_off()
    for which, panel in enumerate(panels.flat[:num_skills]):
        own = mask & (skill == which).unsqueeze(1).numpy()
        dots: dict[str, Any] = {"markersize": 1.6, "linestyle": "", "marker": ".", "markeredgewidth": 0}
        panel.plot(x[mask & ~own], y[mask & ~own], color="#D5D5D5", rasterized=True, **dots)
        panel.plot(x[own], y[own], color=COLORS[0], rasterized=True, **dots)
        panel.set_title(f"skill {which}", fontsize=8.5, pad=3)
        if axes[0].startswith("angle:"):
            panel.set_xlim(0, 2 * math.pi)
            panel.set_xticks([math.pi / 2, math.pi, 1.5 * math.pi], ["π/2", "π", "3π/2"])
    left.supxlabel(labels[0], fontsize=9)
    left.supylabel(labels[1], fontsize=9)

    matrix = right.subplots()
    shares = (confusion / confusion.sum(1, keepdim=True)).numpy()
    image = matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for spine in matrix.spines.values():
        spine.set_visible(True)
    accuracy = float(confusion.diagonal().sum() / confusion.sum())
    matrix.set_title(f"{accuracy:.1%} of the steps are found ({1 / num_skills:.1%} by chance)", fontsize=8.5)
    every = range(0, num_skills, max(1, num_skills // 10))
    matrix.set(xlabel="skill that the discriminator finds", ylabel="skill that is played", xticks=every, yticks=every)
    right.colorbar(image, ax=matrix, shrink=0.75, label="part of the steps", ticks=[0, 0.5, 1])
    return figure


def main() -> None:
    """Play the skills of a run's newest checkpoint, print the discriminator's accuracy, draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=5, help="of each skill")
    parser.add_argument("--x", default="0")
    parser.add_argument("--y", default="1")
    parser.add_argument("--labels", nargs=2, default=["obs[x]", "obs[y]"])
    arguments = parser.parse_args()
    steps, skill, taken_for = play(arguments.run, arguments.episodes)
    num_skills = int(skill.max()) + 1
    played, mask = skill.unsqueeze(1).expand_as(taken_for), steps.mask()
    confusion = torch.zeros(num_skills, num_skills)
    confusion.index_put_((played[mask], taken_for[mask]), torch.ones(int(mask.sum())), accumulate=True)
    accuracy = float(confusion.diagonal().sum() / confusion.sum())
    each = ", ".join(f"{value:.2f}" for value in confusion.diagonal() / confusion.sum(1))
    print(f"found in {accuracy:.3f} of {int(confusion.sum()):,} steps, {1 / num_skills:.3f} by chance; each: {each}")
    with print_style():
        draw(steps, skill, confusion, (arguments.x, arguments.y), tuple(arguments.labels)).savefig(arguments.out)


if __name__ == "__main__":
    with reported_errors():
        main()

"""Time the learner's updates beside the same updates written by hand in plain torch, in turns, and print the ratios.

    python scripts/bench_learner.py --turns 60

Both sides draw a batch from as many steps, with networks of the same shapes, one thread, `torch.optim.Adam(fused=True)`
on the hand-written side. Time is that of the thread, so that other work on the machine counts little. The last row has
rlx's products in bfloat16 and those by hand in float32: what `precision=bfloat16` brings on this machine.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.agent import ActorCritic, ConvActorCritic, QNetwork, SoftActorCritic, flatten_parameters
from rlx.algo import dqn, ppo, sac
from rlx.algo.optimizer import FlatAdam
from rlx.data import DictTensor, EnvSpecs, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.run.compute import Compute

Update = Callable[[], object]
STEPS = 10_000
OBS = {"obs": Spec((4,), torch.float32)}
DISCRETE = EnvSpecs(OBS, {"action": Spec((), torch.int64, "discrete", nvec=(2,))})
IMAGES = EnvSpecs({"obs": Spec((4, 84, 84), torch.uint8)}, DISCRETE.action)
PAPER = {"filters": [32, 64, 64], "kernel_sizes": [8, 4, 3], "strides": [4, 2, 1]}  # of DQN's network
BOX = EnvSpecs(OBS, {"action": Spec((1,), torch.float32, low=(-1.0,), high=(1.0,))})


def experience(specs: EnvSpecs) -> tuple[ReplayBuffer, dict[str, Tensor]]:
    """Return made-up steps in a replay buffer, and as plain tensors."""
    plain = {"obs": torch.randn(STEPS, 4), "next": torch.randn(STEPS, 4), "reward": torch.randn(STEPS)}
    plain["action"] = torch.randint(2, (STEPS,)) if specs is DISCRETE else torch.rand(STEPS, 1) * 2 - 1
    plain["ended"] = torch.rand(STEPS) < 0.01
    flags = plain["ended"].unsqueeze(0)
    fields = {
        "env/obs": plain["obs"].unsqueeze(0),
        "env/is_first": torch.zeros_like(flags),
        "agent/action": plain["action"].unsqueeze(0),
        "next/obs": plain["next"].unsqueeze(0),
        "next/reward": plain["reward"].unsqueeze(0),
        "next/terminated": flags,
        "next/truncated": torch.zeros_like(flags),
    }
    buffer = ReplayBuffer(specs, capacity=2 * STEPS, num_envs=1)
    steps = TemporalDictTensor(fields, torch.tensor([STEPS]))
    buffer.add(Trajectories(DictTensor.empty(1), steps, DictTensor.empty(0)))
    return buffer, plain


def layers(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return dense layers with an activation in between."""
    pairs = [(nn.Linear(a, b), activation()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[module for pair in pairs for module in pair][:-1])


def dqn_updates() -> tuple[Update, Update]:
    """Return one update of DQN by rlx, and by hand: 64 transitions, two layers of 256."""
    buffer, plain = experience(DISCRETE)
    agent = QNetwork(DISCRETE, hidden_sizes=[256, 256], activation="relu", dueling=False, num_quantiles=0)
    target, generator = deepcopy(agent), torch.Generator().manual_seed(0)
    optimizer = FlatAdam(agent, eps=1e-8)
    look_ahead = partial(dqn.ahead, target)
    batches = itertools.chain.from_iterable(
        buffer.batches(128, 64, generator, gamma=0.99, also=look_ahead) for _ in itertools.count()
    )

    def ours() -> None:
        terms = dqn.loss(agent, next(batches), n_step=1, double=False)
        math.isfinite(terms["loss/total"].item())
        optimizer.zero_grad()
        terms["loss/total"].backward()
        optimizer.clip_grad_norm(10.0)
        optimizer.step(1e-3)

    network = layers(4, 256, 256, 2)
    old, adam = deepcopy(network), torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def by_hand() -> None:
        index = torch.randint(STEPS, (64,), generator=generator)
        obs, following, action, reward, ended = (plain[k][index] for k in ("obs", "next", "action", "reward", "ended"))
        with torch.no_grad():
            wanted = reward + 0.99 * old(following).amax(-1).masked_fill(ended, 0.0)
        loss = F.smooth_l1_loss(network(obs).gather(-1, action.unsqueeze(-1)).squeeze(-1), wanted)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        adam.step()

    return ours, by_hand


def convolutional() -> nn.Sequential:
    """Return the network of DQN's paper with an action's logits and a value at its end."""
    convolutions = [nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
    body = itertools.chain.from_iterable((each, nn.ReLU()) for each in convolutions)
    return nn.Sequential(*body, nn.Flatten(), *layers(3136, 512, 2 + 1))


def ppo_updates(*, images: bool = False, bfloat16: bool = False) -> tuple[Update, Update]:
    """Return one update of PPO by rlx, and by hand: 256 steps, two networks with two layers of 64, or one for images.

    With `bfloat16` rlx's products are computed in it, and those by hand in float32.
    """
    number = 1024 if images else STEPS
    obs = torch.randint(256, (number, 4, 84, 84), dtype=torch.uint8) if images else torch.randn(number, 4)
    plain = {"obs": obs, "action": torch.randint(2, (number,))}
    plain |= {name: torch.randn(number) for name in ("advantage", "return", "value")}
    plain["log_prob"] = torch.full((number,), -0.7)
    names = {"obs": "env/obs", "action": "agent/action"}
    fields = {names.get(name, name): value.unsqueeze(1) for name, value in plain.items()}
    steps = TemporalDictTensor(fields, torch.ones(number, dtype=torch.int64))
    samples = Trajectories(DictTensor.empty(number), steps, DictTensor.empty(0))
    agent = (
        ConvActorCritic(IMAGES, **PAPER, hidden_size=512, activation="relu", log_std_init=0.0)
        if images
        else ActorCritic(DISCRETE, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)
    )
    loss = Compute(torch.device("cpu"), compile=False, precision="bfloat16" if bfloat16 else "float32")(ppo.loss, agent)
    optimizer, generator = FlatAdam(agent, eps=1e-5), torch.Generator().manual_seed(0)
    minibatches = itertools.chain.from_iterable(samples.minibatches(256, generator) for _ in itertools.count())

    def ours() -> None:
        terms = loss(
            agent,
            next(minibatches),
            clip_coef=0.2,
            clip_vf=False,
            ent_coef=0.01,
            vf_coef=0.5,
            normalize_advantage=True,
        )
        math.isfinite(terms["loss/total"].item())
        optimizer.zero_grad()
        terms["loss/total"].backward()
        optimizer.clip_grad_norm(0.5)
        optimizer.step(3e-4)

    actor, critic = (layers(4, 64, 64, outputs, activation=nn.Tanh) for outputs in (2, 1))
    both = convolutional()
    parameters = [*both.parameters()] if images else [*actor.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(parameters, lr=3e-4, fused=True)
    indices = itertools.chain.from_iterable(
        torch.randperm(number, generator=generator).split(256) for _ in itertools.count()
    )

    def by_hand() -> None:
        index = next(indices)
        obs, action, advantage, wanted, old = (
            plain[k][index] for k in ("obs", "action", "advantage", "return", "log_prob")
        )
        outputs = both(obs.float() / 255).split([2, 1], -1) if images else (actor(obs), critic(obs))
        log_probs = outputs[0].log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        ratio = (log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1) - old).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        value_loss = 0.5 * (outputs[1].squeeze(-1) - wanted).square().mean()
        adam.zero_grad()
        (policy_loss + 0.5 * value_loss - 0.01 * entropy).backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        adam.step()

    return ours, by_hand


def sac_updates() -> tuple[Update, Update]:
    """Return one update of SAC by rlx, and by hand: 256 transitions, two layers of 256."""
    buffer, plain = experience(BOX)
    agent = SoftActorCritic(BOX, hidden_sizes=[256, 256], activation="relu", temperature_init=1.0, num_skills=0)
    target, generator = deepcopy(agent.critics), torch.Generator().manual_seed(0)
    optimizer = FlatAdam(agent, eps=1e-8)
    moving, followed = flatten_parameters(target).detach(), list(agent.critics.parameters())

    def ours() -> None:
        batch = buffer.sample(256, generator, gamma=0.99)
        terms = sac.loss(agent, target, batch, generator, n_step=1, target_entropy=-1.0)
        math.isfinite(terms["loss/total"].item())
        optimizer.zero_grad()
        terms["loss/total"].backward()
        optimizer.step(3e-4)
        with torch.no_grad():
            moving.lerp_(torch.cat([parameter.reshape(-1) for parameter in followed]), 0.005)

    actor, critics = layers(4, 256, 256, 2), nn.ModuleList([layers(5, 256, 256, 1) for _ in range(2)])
    old, log_alpha = deepcopy(critics), torch.zeros((), requires_grad=True)
    adams = [
        torch.optim.Adam(parameters, lr=3e-4, fused=True)
        for parameters in (list(critics.parameters()), list(actor.parameters()), [log_alpha])
    ]

    def draw(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(obs).chunk(2, -1)
        log_std = log_std.clamp(-5, 2)
        noise = torch.empty_like(mean).normal_(generator=generator)
        u = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.919 - 2 * (0.693 - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(-1)

    def value(networks: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
        seen = torch.cat([obs, action], -1)
        return torch.stack([network(seen).squeeze(-1) for network in networks])

    def step(adam: torch.optim.Optimizer, loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    def by_hand() -> None:
        index = torch.randint(STEPS, (256,), generator=generator)
        obs, following, action, reward, ended = (plain[k][index] for k in ("obs", "next", "action", "reward", "ended"))
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_prob = draw(following)
            next_value = value(old, following, next_action).amin(0) - alpha * next_log_prob
            wanted = reward + 0.99 * next_value.masked_fill(ended, 0.0)
        step(adams[0], 0.5 * (value(critics, obs, action) - wanted).square().sum(0).mean())
        drawn, log_prob = draw(obs)
        critics.requires_grad_(False)
        step(adams[1], (alpha * log_prob - value(critics, obs, drawn).amin(0)).mean())
        critics.requires_grad_(True)
        step(adams[2], -log_alpha * (log_prob.detach().mean() - 1.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(old.parameters()), list(critics.parameters()), 0.005)

    return ours, by_hand


def seconds(update: Update, times: int) -> float:
    """Return the thread's time of one update, the mean over some."""
    started = time.thread_time()
    for _ in range(times):
        update()
    return (time.thread_time() - started) / times


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--times", type=int, default=10, help="updates a turn")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to measure, as they are printed; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = {
        "ppo": ppo_updates,
        "dqn": dqn_updates,
        "sac": sac_updates,
        "ppo, images": partial(ppo_updates, images=True),
        "ppo, images, bfloat16": partial(ppo_updates, images=True, bfloat16=True),
    }
    for name in arguments.only or sides:
        ours, by_hand = sides[name]()
        seconds(ours, 5), seconds(by_hand, 5)
        turns = [(seconds(ours, arguments.times), seconds(by_hand, arguments.times)) for _ in range(arguments.turns)]
        ratio = statistics.median(a / b for a, b in turns)
        least = [1e3 * min(column) for column in zip(*turns, strict=True)]
        print(f"{name}: rlx {least[0]:.2f} ms, by hand {least[1]:.2f} ms (least), median ratio {ratio:.3f}", flush=True)
    buffer, _ = experience(BOX)
    generator = torch.Generator().manual_seed(0)
    least = min(seconds(lambda: buffer.sample(256, generator), 20) for _ in range(arguments.turns))
    print(f"sampling 256 transitions: {1e6 * least:.0f} us (least)")


if __name__ == "__main__":
    main()

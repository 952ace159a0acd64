"""Hierarchical deep Q-learning, h-DQN (Kulkarni et al. 2016, arXiv:1604.06057), with hindsight for the worker.

DQN twice, on one replay buffer. The manager learns what options are worth, from the task's rewards; the worker learns
to do what an option says, from whether it was done.

| level   | transition                         | action | reward                                    | ends            |
|---------|------------------------------------|--------|-------------------------------------------|-----------------|
| manager | from one choice to the next one    | option | the task's over these k steps, discounted | with the task   |
| worker  | one step                           | action | 1 if the option's goal is achieved        | there, or so    |

The manager's decisions are semi-Markov: what follows a choice that was held for k steps counts gamma^k (Sutton, Precup
and Singh 1999, eq. 6). The worker's transitions get, in part, options that were achieved later in the episode.
"""

from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from rlx.agent import AgentMaker, HierarchicalQNetwork, flatten_parameters
from rlx.algo import dqn
from rlx.algo.means import mean_terms
from rlx.algo.optimizer import FlatAdam
from rlx.algo.schedules import Scheduled, at
from rlx.batcher import BatcherMaker
from rlx.data import DictTensor, Hindsight, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.errors import AgentError, ConfigError
from rlx.run import Run
from rlx.seeding import derive
from rlx.validate import Range

OPTION, NEW = "agent/option", "agent/new_option"


def loss(
    agent: HierarchicalQNetwork,
    target: HierarchicalQNetwork,
    choices: Trajectories,
    steps: Trajectories,
    *,
    double: bool,
) -> dict[str, Tensor]:
    """Return both levels' losses and their sum, `loss/total`; each is DQN's and trains its own network alone.

    Args:
        agent: both levels.
        target: the same with older weights.
        choices: transitions `[N, 1]` from one choice of an option to the next, the task's rewards summed up.
        steps: transitions `[N, 1]` of single steps; their rewards are not looked at.
        double: see `rlx.algo.dqn.loss`.

    Returns:
        0-dimensional `loss/total` (with gradients), `loss/manager`, `loss/worker`, `hdqn/option_q` and
        `hdqn/worker_q`, the mean values of what was done, and `hdqn/achieved`, the part of `steps` that achieve their
        option.
    """
    choices = _with(choices, {"agent/action": choices.steps[OPTION]}).with_steps(**dqn.ahead(target.manager, choices))
    manager = dqn.loss(agent.manager, choices, n_step=1, double=double)
    reward, achieved = achieves(steps.steps["next/obs/achieved_goal"], steps.steps[OPTION])
    ended = steps.steps["next/terminated"] | achieved
    attempts = _with(steps, {"next/reward": reward, "next/terminated": ended})
    worker = dqn.loss(agent.worker, attempts.with_steps(**dqn.ahead(target.worker, steps)), n_step=1, double=double)
    return {
        "loss/total": manager["loss/total"] + worker["loss/total"],
        "loss/manager": manager["loss/total"],
        "loss/worker": worker["loss/total"],
        "hdqn/option_q": manager["dqn/q"],
        "hdqn/worker_q": worker["dqn/q"],
        "hdqn/achieved": reward.mean(),
    }


def achieves(achieved: Tensor, option: Tensor) -> tuple[Tensor, Tensor]:
    """Return the worker's reward `[...]` float32 and whether the option ends here, `[...]` bool."""
    same = achieved == option
    return same.float(), same


def _with(batch: Trajectories, fields: dict[str, Tensor]) -> Trajectories:
    """Return a batch of transitions with other fields in the place of those of the same names."""
    steps = batch.steps.exclude(*fields) | TemporalDictTensor.trusted(fields, batch.steps.lengths, 1)
    return Trajectories(batch.info, steps, DictTensor.empty(0), num_steps=batch.num_steps)


def train(
    run: Run,
    make_agent: AgentMaker,
    make_batcher: BatcherMaker,
    *,
    num_steps: Annotated[int, Range(1)],
    num_updates: Annotated[int, Range(1)],
    batch_size: Annotated[int, Range(1)],
    buffer_size: Annotated[int, Range(1)],
    buffer_directory: Path | None,
    learning_starts: Annotated[int, Range(0)],
    learning_rate: Annotated[Scheduled, Range(0, 1, low_open=True)],
    adam_eps: Annotated[float, Range(0, 1, low_open=True)],
    gamma: Annotated[float, Range(0, 1)],
    worker_gamma: Annotated[float, Range(0, 1)],
    hindsight: Annotated[float, Range(0, 1)],
    double: bool,
    tau: Annotated[float, Range(0, 1, low_open=True)],
    epsilon: Annotated[Scheduled, Range(0, 1)],
    worker_epsilon: Annotated[Scheduled, Range(0, 1)],
    max_grad_norm: Annotated[float, Range(0, low_open=True)],
) -> None:
    """Train until `run.total_steps`.

    Args:
        run: where results go.
        make_agent: makes the agent of two levels from specs.
        make_batcher: makes the batcher for `num_steps`.
        num_steps: steps of each environment between updates, usually 1 to 32.
        num_updates: updates then, of both levels.
        batch_size: transitions an update, of each level, usually 32 to 256.
        buffer_size: steps kept, usually 1e4 to 1e6.
        buffer_directory: where they are kept on disk; None for in memory.
        learning_starts: steps before the first update, usually 1e3 to 1e4.
        learning_rate: of Adam, usually 1e-4 to 1e-3; may move, as `rlx.algo.schedules` tells.
        adam_eps: Adam's epsilon.
        gamma: the task's discount of a step, usually 0.97 to 0.999.
        worker_gamma: the worker's, usually 0.9 to 0.98.
        hindsight: part of the worker's transitions that get an option achieved later in their episode, usually 0.8.
        double: see `rlx.algo.dqn.loss`.
        tau: how far the target networks move at each update, usually 0.005 to 0.05.
        epsilon: probability that the manager chooses any option; usually falls from 1 to 0.05 or 0.1.
        worker_epsilon: probability that the worker takes any action, usually 0.05 to 0.2.
        max_grad_norm: norm at which the gradient of both losses is cut, usually 1 to 40.
    """
    with make_batcher(num_steps=num_steps) as batcher:
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, HierarchicalQNetwork):
            raise AgentError(f"algo=hdqn needs agent=hierarchical_q_network, got {type(agent).__name__}")
        least = batcher.num_envs * (agent.option_steps + num_steps + 1)
        if buffer_size < least:
            raise ConfigError(
                f"algo.buffer_size: got {buffer_size}, expected {least} or more: of each of {batcher.num_envs} "
                f"environments the steps of an option (agent.option_steps={agent.option_steps}), the first of which is "
                f"the manager's choice, and those of a piece (algo.num_steps={num_steps}), which replace others"
            )
        target = deepcopy(agent)
        optimizer = FlatAdam(agent, eps=adam_eps)
        target_parameters = flatten_parameters(target).detach()
        buffer = ReplayBuffer(
            batcher.specs,
            capacity=buffer_size,
            directory=buffer_directory,
            num_envs=batcher.num_envs,
            extra={OPTION: Spec((), torch.int64), NEW: Spec((), torch.bool)},
            hindsight=Hindsight(hindsight, achieves, goal=OPTION),
        )
        buffer.check(piece=num_steps)
        generator = torch.Generator().manual_seed(derive(run.seed, "replay"))
        num_envs = batcher.num_envs

        def exploring(progress: float) -> DictTensor:
            both = {"epsilon": at(epsilon, progress), "worker_epsilon": at(worker_epsilon, progress)}
            return DictTensor({name: torch.full((num_envs,), chance) for name, chance in both.items()})

        batcher.reset(exploring(0.0))
        compute = run.compute(loss, agent)
        run.track(agent=agent, target=target, optimizer=optimizer, batcher=batcher, buffer=buffer, draws=generator)

        while run.running():
            progress = run.env_steps / run.total_steps
            lr = at(learning_rate, progress)
            trajectories = batcher.collect(exploring(progress))
            buffer.add(trajectories)
            updates: list[dict[str, Tensor]] = []
            begun = run.ranks.sum(buffer.num_added) >= learning_starts
            drawn = (num_updates if begun else 0, batch_size, generator)
            both = zip(
                buffer.batches(*drawn, n_step=agent.option_steps, gamma=gamma, decision=NEW, device=run.device),
                buffer.batches(*drawn, gamma=worker_gamma, device=run.device),
                strict=True,
            )
            for choices, steps in both:
                terms = compute(agent, target, choices, steps, double=double)
                run.check_loss(terms["loss/manager"], choices, agent)
                run.check_loss(terms["loss/worker"], steps, agent)
                optimizer.zero_grad()
                terms["loss/total"].backward()
                run.average_gradients(agent, steps.num_steps)
                terms["grad_norm"] = optimizer.clip_grad_norm(max_grad_norm)
                optimizer.step(lr)
                target_parameters.lerp_(optimizer.parameters.detach(), tau)
                updates.append({name: term.detach() for name, term in terms.items()})

            batcher.publish(agent)
            explored = at(epsilon, progress)
            run.log(
                {**mean_terms(updates), "learning_rate": lr, "hdqn/epsilon": explored, "hdqn/buffer": buffer.num_added},
                env_steps=trajectories.num_steps,
            )

"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), the clipped form, discrete or continuous.

| symbol     | shape   | what it is                                                          |
|------------|---------|---------------------------------------------------------------------|
| B, T       |         | environments, steps of each a batch                                 |
| value      | [B, T]  | V(s_t) with the weights that collected the batch                    |
| next_value | [B, T]  | V of what followed: 0 after a termination, V(final) at a truncation |
| advantage  | [B, T]  | generalised advantage estimate                                      |
| return     | [B, T]  | advantage + value, what the value function learns                   |
| log_prob   | [B, T]  | log pi(a_t | s_t) with the weights that collected the batch         |
"""

from typing import Annotated

import torch
from torch import Tensor

from rlx.agent import (
    ActorCriticAgent,
    AgentMaker,
    is_stateful,
    log_prob_then,
    replay,
    replay_inputs,
    update_normalizers,
    values,
)
from rlx.algo.means import mean_or_zero, mean_terms
from rlx.algo.optimizer import FlatAdam
from rlx.algo.returns import explained_variance, gae, normalize
from rlx.algo.schedules import Scheduled, at
from rlx.batcher import BatcherMaker
from rlx.data import Trajectories
from rlx.errors import AgentError
from rlx.run import Run
from rlx.seeding import derive
from rlx.validate import Range


def loss(
    agent: ActorCriticAgent,
    batch: Trajectories,
    *,
    clip_coef: float,
    clip_vf: bool,
    ent_coef: float,
    vf_coef: float,
    normalize_advantage: bool,
    moments: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return PPO's loss on a minibatch, under `loss/total`, and what it is made of.

        ratio = pi(a | s) / pi_old(a | s)
        policy = -mean(min(ratio * A, clip(ratio, 1 - c, 1 + c) * A))                       (eq. 7)
        value = mean(max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)) / 2  (without clip_vf: the first term)
        total = policy + vf_coef * value - ent_coef * entropy                               (eq. 9)

    Where the agent normalises returns, values count in standard deviations of those.

    Args:
        agent: outputs `value`; has `log_prob` and `entropy`.
        batch: steps `advantage`, `return`, `value`, `log_prob` `[B, T]`, besides `env/` and `agent/`.
        clip_coef: c, usually 0.1 to 0.3.
        clip_vf: whether the value moves by c at most, as in the paper's code.
        ent_coef: usually 0 to 0.02.
        vf_coef: usually 0.5.
        normalize_advantage: whether advantages get mean 0 and standard deviation 1 in the minibatch.
        moments: standard deviation and mean of the advantages, 0-dimensional, where this is a part of a minibatch over
            several ranks; None for its own.

    Returns:
        0-dimensional tensors: `loss/total` (with gradients), `loss/policy`, `loss/value`, `loss/entropy`,
        `ppo/approx_kl` (Schulman's k3 estimator, nats) and `ppo/clip_fraction`.
    """
    steps = batch.steps
    outputs, taken = replay(agent, batch), steps.group("agent")
    mask = None if batch.is_full() else steps.mask()

    def valid(x: Tensor) -> Tensor:
        return x if mask is None else x[mask]

    log_prob = agent.log_prob(outputs, taken)
    with torch.enable_grad() if ent_coef > 0 else torch.no_grad():
        entropy = mean_or_zero(valid(agent.entropy(outputs)))
    advantage = valid(steps["advantage"])
    if normalize_advantage:
        advantage = normalize(advantage, moments)

    log_ratio = valid(log_prob - steps["log_prob"])
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -mean_or_zero(torch.min(ratio * advantage, clipped * advantage))

    scale = agent.value_scale(outputs)
    value, target, old = (x / scale for x in (outputs["value"], steps["return"], steps["value"]))
    error = (value - target).square()
    if clip_vf:
        moved = old + (value - old).clamp(-clip_coef, clip_coef)
        error = torch.max(error, (moved - target).square())
    value_loss = 0.5 * mean_or_zero(valid(error))

    with torch.no_grad():
        approx_kl = mean_or_zero(ratio - 1 - log_ratio)  # http://joschu.net/blog/kl-approx.html
        clip_fraction = mean_or_zero(((ratio - 1).abs() > clip_coef).float())
    total = policy_loss + vf_coef * value_loss
    return {
        "loss/total": total - ent_coef * entropy if ent_coef > 0 else total,
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "loss/entropy": entropy,
        "ppo/approx_kl": approx_kl,
        "ppo/clip_fraction": clip_fraction,
    }


def train(
    run: Run,
    make_agent: AgentMaker,
    make_batcher: BatcherMaker,
    *,
    num_steps: Annotated[int, Range(1)],
    batch_size: Annotated[int, Range(2)],
    num_epochs: Annotated[int, Range(1)],
    learning_rate: Annotated[Scheduled, Range(0, 1, low_open=True)],
    adam_eps: Annotated[float, Range(0, 1, low_open=True)],
    gamma: Annotated[float, Range(0, 1)],
    gae_lambda: Annotated[float, Range(0, 1)],
    clip_coef: Annotated[Scheduled, Range(0, low_open=True)],
    clip_vf: bool,
    ent_coef: Annotated[Scheduled, Range(0)],
    vf_coef: Annotated[float, Range(0)],
    max_grad_norm: Annotated[float, Range(0, low_open=True)],
    normalize_advantage: bool,
    target_kl: Annotated[float, Range(0, low_open=True)] | None,
) -> None:
    """Train until `run.total_steps`.

    Args:
        run: where results go.
        make_agent: makes the actor-critic from specs.
        make_batcher: makes the batcher for `num_steps`.
        num_steps: steps of each environment a batch, usually 32 to 2048.
        batch_size: steps a minibatch, usually 32 to 4096; all of them where a batch has fewer.
        num_epochs: passes over each batch, usually 3 to 20.
        learning_rate: of Adam, usually 1e-4 to 1e-3; may move, as `rlx.algo.schedules` tells.
        adam_eps: Adam's epsilon; 1e-5 in the paper's code.
        gamma: discount, usually 0.98 to 0.999.
        gae_lambda: usually 0.8 to 0.98.
        clip_coef: see `loss`; may move.
        clip_vf: see `loss`.
        ent_coef: see `loss`; may move.
        vf_coef: see `loss`.
        max_grad_norm: norm at which the gradient is cut, usually 0.5.
        normalize_advantage: see `loss`.
        target_kl: end the batch's epochs once the approximate KL of an epoch is above this; None for never.
    """
    with make_batcher(num_steps=num_steps) as batcher:
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, ActorCriticAgent):
            raise AgentError(f"algo=ppo needs an agent with log_prob() and entropy(), got {type(agent).__name__}")
        optimizer = FlatAdam(agent, eps=adam_eps)
        generator = torch.Generator().manual_seed(derive(run.seed, "minibatches"))
        compute = run.compute(loss, agent, moving=("clip_coef",))
        run.track(agent=agent, optimizer=optimizer, batcher=batcher, minibatches=generator)

        while run.running():
            progress = run.env_steps / run.total_steps
            lr, clip, entropy_coef = (at(each, progress) for each in (learning_rate, clip_coef, ent_coef))

            trajectories = batcher.collect().to(run.device)
            batch = with_advantages(agent, trajectories, gamma=gamma, gae_lambda=gae_lambda)
            samples = batch if is_stateful(agent) else batch.split_steps()
            number = run.ranks.num_minibatches(samples, batch_size)
            updates: list[dict[str, Tensor]] = []
            epochs = 0
            for epochs in range(1, num_epochs + 1):  # noqa: B007  (how many there were is logged)
                epoch_start = len(updates)
                for minibatch in samples.minibatches(batch_size, generator, number):
                    moments = run.ranks.std_mean_of(minibatch.steps, "advantage") if normalize_advantage else None
                    terms = compute(
                        agent,
                        minibatch,
                        clip_coef=clip,
                        clip_vf=clip_vf,
                        ent_coef=entropy_coef,
                        vf_coef=vf_coef,
                        normalize_advantage=normalize_advantage,
                        moments=moments,
                    )
                    run.check_loss(terms["loss/total"], minibatch, agent)
                    optimizer.zero_grad()
                    terms["loss/total"].backward()
                    run.average_gradients(agent, minibatch.num_steps)
                    terms["grad_norm"] = optimizer.clip_grad_norm(max_grad_norm)
                    optimizer.step(lr)
                    updates.append({name: term.detach() for name, term in terms.items()})
                if target_kl is not None:
                    approx_kl = mean_terms(updates[epoch_start:])["ppo/approx_kl"]
                    if run.ranks.mean(approx_kl, samples.num_steps) > target_kl:
                        break

            update_normalizers(agent, trajectories, batch.steps["return"], run.ranks.gather)
            batcher.publish(agent)
            known, target = batch.steps.select("value", "return").flatten().values()
            run.log(
                {
                    **mean_terms(updates),
                    "explained_variance": explained_variance(known, target),
                    "learning_rate": lr,
                    "clip_coef": clip,
                    "ent_coef": entropy_coef,
                    "ppo/num_epochs": float(epochs),
                },
                env_steps=trajectories.num_steps,
            )


@torch.no_grad()
def with_advantages(
    agent: ActorCriticAgent, trajectories: Trajectories, *, gamma: float, gae_lambda: float
) -> Trajectories:
    """Return what the loss needs of the trajectories, with `advantage`, `return`, `value` and `log_prob` added.

    Each observation's value is computed once. The log-probabilities come from what was stored while acting.
    """
    steps = trajectories.steps
    value, next_value = values(agent, trajectories)
    advantage = gae(
        steps["next/reward"],
        value,
        next_value,
        steps["next/terminated"],
        steps["next/truncated"],
        gamma=gamma,
        gae_lambda=gae_lambda,
        mask=None if trajectories.is_full() else steps.mask(),
    )
    taken = steps.group("agent")
    added = {"advantage": advantage, "value": value, "log_prob": log_prob_then(agent, taken)}
    chosen = trajectories.select(*replay_inputs(agent), "agent")
    return chosen.with_steps(**added, **{"return": advantage + value})

"""REINFORCE (Williams 1992): the policy gradient from whole episodes, with or without a learned baseline.

| symbol | shape  | what it is                                                                            |
|--------|--------|---------------------------------------------------------------------------------------|
| B, T   |        | episodes of a batch, steps of the longest                                             |
| return | [B, T] | the discounted rewards from step t to the episode's end                               |
| value  | [B, T] | V(s_t), the baseline, learned from the returns                                        |
"""

from typing import Annotated

import torch
from torch import Tensor

from rlx.agent import ActorCriticAgent, AgentMaker, replay, replay_with_values, update_normalizers
from rlx.algo.optimizer import FlatAdam
from rlx.algo.returns import gae, normalize
from rlx.algo.schedules import Scheduled, at
from rlx.batcher import BatcherMaker, EpisodeBatcher
from rlx.data import Trajectories
from rlx.errors import AgentError, ConfigError
from rlx.run import Run, StdMean
from rlx.validate import Range


def loss(
    agent: ActorCriticAgent,
    episodes: Trajectories,
    *,
    gamma: float,
    baseline: bool,
    ent_coef: float,
    vf_coef: float,
    normalize_advantage: bool,
    std_mean: StdMean | None = None,
) -> dict[str, Tensor]:
    """Return REINFORCE's loss on whole episodes, under `loss/total`, and what it is made of.

        policy = -mean((G_t - b_t) * log pi(a_t | s_t)), G_t = r_t + gamma * r_{t+1} + ... to its end   (eq. 11)
        with a baseline: b_t = V(s_t), value = mean((V(s_t) - G_t)^2) / 2; without: b_t = 0
        total = policy + vf_coef * value - ent_coef * entropy

    With a baseline, an episode that a time limit cut goes on with the value of its final observation; without one
    nobody knows what would have followed, and it counts as nothing. The mean is that over all steps of the batch.

    Args:
        agent: outputs `value`; has `log_prob` and `entropy`.
        episodes: as `EpisodeBatcher` returns them.
        gamma: discount, usually 0.97 to 1.
        baseline: whether the value is learned, and subtracted from the returns.
        ent_coef: usually 0 to 0.02.
        vf_coef: usually 0.5; of no matter without a baseline.
        normalize_advantage: whether what the log-probabilities are weighed by gets mean 0 and standard deviation 1.
        std_mean: gives standard deviation and mean of the advantages of all ranks, where this is a part of a batch
            over several; None for the batch's own.

    Returns:
        0-dimensional tensors: `loss/total` (with gradients), `loss/policy`, `loss/entropy`, and `loss/value` with a
        baseline; and `return` `[B, T]`, without gradients.
    """
    steps, mask = episodes.steps, episodes.steps.mask()
    rewards = steps["next/reward"]
    if baseline:
        outputs, known, after = replay_with_values(agent, episodes)
    else:
        outputs, known, after = replay(agent, episodes), torch.zeros_like(rewards), torch.zeros_like(rewards)
    ends = (steps["next/terminated"], steps["next/truncated"])
    # The sum to the end is a generalised advantage estimate with lambda 1, of values that are 0 until a time limit.
    cut = after.masked_fill(~steps["next/truncated"], 0.0)
    returns = gae(rewards, torch.zeros_like(rewards), cut, *ends, gamma=gamma, gae_lambda=1.0, mask=mask)
    advantage = (returns - known)[mask]
    weight = advantage
    if normalize_advantage:
        weight = normalize(weight, None if std_mean is None else std_mean(weight))

    policy_loss = -(weight * agent.log_prob(outputs, steps.group("agent"))[mask]).mean()
    entropy = agent.entropy(outputs)[mask].mean()
    total = policy_loss - ent_coef * entropy
    terms = {"loss/policy": policy_loss, "loss/entropy": entropy}
    if baseline:
        terms["loss/value"] = 0.5 * ((outputs["value"] - returns) / agent.value_scale(outputs))[mask].square().mean()
        total = total + vf_coef * terms["loss/value"]
    return {"loss/total": total, **terms, "return": returns}


def train(
    run: Run,
    make_agent: AgentMaker,
    make_batcher: BatcherMaker,
    *,
    num_steps: Annotated[int, Range(1)],
    learning_rate: Annotated[Scheduled, Range(0, 1, low_open=True)],
    adam_eps: Annotated[float, Range(0, 1, low_open=True)],
    gamma: Annotated[float, Range(0, 1)],
    baseline: bool,
    ent_coef: Annotated[Scheduled, Range(0)],
    vf_coef: Annotated[float, Range(0)],
    max_grad_norm: Annotated[float, Range(0, low_open=True)],
    normalize_advantage: bool,
) -> None:
    """Train until `run.total_steps`: one update for each batch of episodes.

    Args:
        run: where results go.
        make_agent: makes the actor-critic from specs.
        make_batcher: makes a batcher of whole episodes.
        num_steps: length of the pieces in which they are collected, usually 32 to 256; decides nothing else.
        learning_rate: of Adam, usually 1e-3 to 1e-2; may move, as `rlx.algo.schedules` tells.
        adam_eps: Adam's epsilon.
        gamma: see `loss`.
        baseline: see `loss`.
        ent_coef: see `loss`; may move.
        vf_coef: see `loss`.
        max_grad_norm: norm at which the gradient is cut, usually 0.5 to 10.
        normalize_advantage: see `loss`.
    """
    with make_batcher(num_steps=num_steps) as batcher:
        if not isinstance(batcher, EpisodeBatcher):
            raise ConfigError("batcher: algo=reinforce learns from whole episodes; expected batcher=episodes")
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, ActorCriticAgent):
            raise AgentError(f"algo=reinforce needs an agent with log_prob() and entropy(), got {type(agent).__name__}")
        optimizer = FlatAdam(agent, eps=adam_eps)
        compute = run.compute(loss, agent, uncompiled_since="its episodes differ in number and length")
        run.track(agent=agent, optimizer=optimizer, batcher=batcher)

        while run.running():
            progress = run.env_steps / run.total_steps
            lr, entropy_coef = at(learning_rate, progress), at(ent_coef, progress)
            episodes = batcher.collect().to(run.device)
            terms = compute(
                agent,
                episodes,
                gamma=gamma,
                baseline=baseline,
                ent_coef=entropy_coef,
                vf_coef=vf_coef,
                normalize_advantage=normalize_advantage,
                std_mean=run.ranks.std_mean,
            )
            run.check_loss(terms["loss/total"], episodes, agent)
            optimizer.zero_grad()
            terms["loss/total"].backward()
            run.average_gradients(agent, episodes.num_steps)
            terms["grad_norm"] = optimizer.clip_grad_norm(max_grad_norm)
            optimizer.step(lr)

            update_normalizers(agent, episodes, terms.pop("return"), run.ranks.gather)
            batcher.publish(agent)
            logged = {name: term.detach() for name, term in terms.items()}
            run.log({**logged, "learning_rate": lr, "ent_coef": entropy_coef}, env_steps=episodes.num_steps)

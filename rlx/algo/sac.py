"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905): twin critics, automatic temperature, continuous actions.

| symbol    | shape     | what it is                                                                       |
|-----------|-----------|----------------------------------------------------------------------------------|
| N, T      |           | sequences of a batch and their steps; transitions are sequences of one step      |
| q         | [2, N, T] | Q(s_t, a_t) of both critics                                                      |
| next_value| [N, T]    | min of the target critics at s'_t and a new action, less temperature * log pi    |
| alpha     |           | the temperature: what a nat of entropy is worth                                  |
"""

from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from rlx.agent import (
    AgentMaker,
    Critics,
    SoftActorCriticAgent,
    burn_in,
    flatten_parameters,
    replay,
    replay_next,
    state_specs,
    update_normalizers,
)
from rlx.algo.hindsight import hindsight_of
from rlx.algo.means import mean_of_valid, mean_terms
from rlx.algo.optimizer import FlatAdam
from rlx.algo.returns import n_step_returns
from rlx.algo.schedules import Scheduled, at
from rlx.algo.sequences import sequences_of
from rlx.batcher import BatcherMaker
from rlx.data import DictTensor, ReplayBuffer, Trajectories
from rlx.errors import AgentError
from rlx.run import Run
from rlx.seeding import derive
from rlx.validate import Range


def loss(
    agent: SoftActorCriticAgent,
    target: Critics,
    batch: Trajectories,
    generator: torch.Generator,
    *,
    n_step: int,
    target_entropy: float,
) -> dict[str, Tensor]:
    """Return SAC's three losses and their sum, `loss/total`: no term sends gradients to what another one trains.

        y_t = r_t + gamma * (min_i Q_target_i(s', a') - alpha * log pi(a' | s')), nothing after a termination   (eq. 6)
        critic = mean(sum_i (Q_i(s_t, a_t) - y_t)^2) / 2                                                        (eq. 5)
        actor = mean(alpha * log pi(a | s_t) - min_i Q_i(s_t, a)), a newly drawn                                (eq. 9)
        temperature = -mean(log alpha * (log pi(a | s_t) + target_entropy))                  (eq. 18, in log alpha)

    Args:
        agent: outputs `mean` and `log_std`; has critics.
        target: critics of older weights.
        batch: steps `[N, T]` with `next/discount`.
        generator: source of the new actions.
        n_step: steps before the next value takes over; sequences of one step have theirs summed up already.
        target_entropy: nats that the policy's entropy is brought to, of actions in [-1, 1].

    Returns:
        0-dimensional: `loss/total` (with gradients), `loss/critic`, `loss/actor`, `loss/temperature`, and for the log
        `sac/temperature`, `sac/entropy` (nats, of one draw a step) and `sac/q`.
    """
    steps, mask = batch.steps, None if batch.is_full() else batch.steps.mask()

    def mean(x: Tensor) -> Tensor:
        return x.mean() if mask is None else mean_of_valid(x, mask)

    distribution, alpha = agent.distribution, agent.log_temperature.exp().detach()
    with torch.no_grad():
        following = replay_next(agent, batch)
        next_action, next_log_prob = distribution.sample(following["mean"], following["log_std"], generator)
        next_q = target.q(replay_next(target, batch)["features"], next_action).amin(0)
        given = (steps["next/terminated"], steps["next/truncated"], steps["next/discount"])
        next_value = next_q - alpha * next_log_prob
        wanted = n_step_returns(steps["next/reward"], next_value, *given, n_step=n_step, mask=mask)
    features = replay(agent.critics, batch)["features"]
    q = agent.critics.q(features, distribution.from_space(steps["agent/action"]))
    critic_loss = 0.5 * mean((q - wanted).square().sum(0))

    outputs = replay(agent, batch)
    action, log_prob = distribution.sample(outputs["mean"], outputs["log_std"], generator)
    actor_loss = mean(alpha * log_prob - agent.critics.q(features.detach(), action, frozen=True).amin(0))
    surprise = log_prob.detach()
    temperature_loss = -agent.log_temperature * mean(surprise + target_entropy)
    return {
        "loss/total": critic_loss + actor_loss + temperature_loss,
        "loss/critic": critic_loss,
        "loss/actor": actor_loss,
        "loss/temperature": temperature_loss,
        "sac/temperature": alpha,
        "sac/entropy": -mean(surprise),
        "sac/q": mean(q.detach()[0]),
    }


def train(
    run: Run,
    make_agent: AgentMaker,
    make_batcher: BatcherMaker,
    *,
    num_steps: Annotated[int, Range(1)],
    num_updates: Annotated[int, Range(1)],
    batch_size: Annotated[int, Range(1)],
    sequence_length: Annotated[int, Range(1)] | None,
    burn_in_steps: Annotated[int, Range(0)] | None,
    buffer_size: Annotated[int, Range(1)],
    buffer_directory: Path | None,
    learning_starts: Annotated[int, Range(0)],
    learning_rate: Annotated[Scheduled, Range(0, 1, low_open=True)],
    adam_eps: Annotated[float, Range(0, 1, low_open=True)],
    gamma: Annotated[float, Range(0, 1)],
    n_step: Annotated[int, Range(1)],
    hindsight: Annotated[float, Range(0, 1)] | None,
    tau: Annotated[float, Range(0, 1, low_open=True)],
    target_entropy: float | None,
    max_grad_norm: Annotated[float, Range(0, low_open=True)] | None,
) -> None:
    """Train until `run.total_steps`.

    Args:
        run: where results go.
        make_agent: makes the policy and its critics from specs.
        make_batcher: makes the batcher for `num_steps`.
        num_steps: steps of each environment between updates, usually 1 to 8.
        num_updates: updates then; usually one for each step of each environment.
        batch_size: transitions an update, usually 256; of a recurrent agent: sequences, usually 16 to 64.
        sequence_length: steps learned from in each sequence, for recurrent agents only, usually 20 to 80; None for 20.
        burn_in_steps: steps before those, likewise: see `rlx.agent.burn_in`. Usually 0 to 40; None for 10.
        buffer_size: steps kept, usually 1e5 to 1e6.
        buffer_directory: where they are kept on disk; None for in memory.
        learning_starts: steps of even actions before the first update, usually 100 to 10,000.
        learning_rate: of Adam, for policy, critics and temperature; usually 3e-4 to 1e-3; may move, see
            `rlx.algo.schedules`.
        adam_eps: Adam's epsilon.
        gamma: discount, usually 0.98 to 0.999.
        n_step: steps before the next value takes over, usually 1; entropy counts at the last one only.
        hindsight: part of the transitions that get another goal, one that was reached later in their episode, usually
            0.8; None for none. For environments that pursue goals; see `rlx.data.Hindsight`.
        tau: how far the target critics move at each update, usually 0.005.
        target_entropy: see `loss`; None for minus the number of action places.
        max_grad_norm: norm at which the gradient of all three losses is cut; None for never.
    """
    with make_batcher(num_steps=num_steps) as batcher, hindsight_of(hindsight, batcher) as relabel:
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, SoftActorCriticAgent):
            raise AgentError(f"algo=sac needs agent=soft_actor_critic, got {type(agent).__name__}")
        target = deepcopy(agent.critics)
        optimizer = FlatAdam(agent, eps=adam_eps)
        moving, followed = flatten_parameters(target).detach(), list(agent.critics.parameters())
        sequences = sequences_of(agent, sequence_length, burn_in_steps)
        length = sequences.length if sequences else None
        state = state_specs(agent) if sequences else None
        buffer = ReplayBuffer(
            batcher.specs,
            capacity=buffer_size,
            directory=buffer_directory,
            num_envs=batcher.num_envs,
            state=state,
            state_every=num_steps,
            hindsight=relabel,
        )
        buffer.check(piece=num_steps, n_step=n_step, sequence=length or 1)
        draws = torch.Generator().manual_seed(derive(run.seed, "replay"))
        noise = torch.Generator(run.device).manual_seed(derive(run.seed, "noise"))
        entropy = -float(agent.distribution.size) if target_entropy is None else target_entropy

        def random(on: bool) -> DictTensor:
            return DictTensor({"random": torch.full((batcher.num_envs,), on)})

        batcher.reset(random(learning_starts > 0))
        compute = run.compute(loss, agent, uncompiled_since="it draws from a generator of its own")
        run.track(
            agent=agent,
            target=target,
            optimizer=optimizer,
            batcher=batcher,
            buffer=buffer,
            draws=draws,
            noise=noise,
        )

        while run.running():
            lr = at(learning_rate, run.env_steps / run.total_steps)
            trajectories = batcher.collect(random(run.env_steps < learning_starts))
            buffer.add(trajectories)
            update_normalizers(agent, trajectories, gather=run.ranks.gather)
            update_normalizers(target, trajectories, gather=run.ranks.gather)
            updates: list[dict[str, Tensor]] = []
            begun = run.ranks.sum(buffer.num_added) >= learning_starts
            for batch in buffer.batches(
                num_updates if begun else 0,
                batch_size,
                draws,
                num_steps=length,
                n_step=n_step,
                gamma=gamma,
                device=run.device,
            ):
                if sequences:
                    batch = burn_in(agent, batch, sequences.burn_in)
                terms = compute(agent, target, batch, noise, n_step=n_step, target_entropy=entropy)
                run.check_loss(terms["loss/total"], batch, agent)
                optimizer.zero_grad()
                terms["loss/total"].backward()
                run.average_gradients(agent, batch.num_steps)
                if max_grad_norm is not None:
                    terms["grad_norm"] = optimizer.clip_grad_norm(max_grad_norm)
                optimizer.step(lr)
                with torch.no_grad():
                    moving.lerp_(torch.cat([parameter.reshape(-1) for parameter in followed]), tau)
                updates.append({name: term.detach() for name, term in terms.items()})

            batcher.publish(agent)
            terms = {**mean_terms(updates), "learning_rate": lr, "sac/buffer": buffer.num_added}
            run.log(terms, env_steps=trajectories.num_steps)

"""Deep Q-learning (Mnih et al. 2015): double (van Hasselt et al. 2016), n-step, prioritised, distributional, recurrent.

Which of these it is, its numbers say: `n_step`, `double`, `prioritized_alpha`; and the agent: dueling, quantiles
(QR-DQN, Dabney et al. 2018), recurrent (R2D2, Kapturowski et al. 2019: stored states and a burn-in).

| symbol     | shape     | what it is                                                                   |
|------------|-----------|------------------------------------------------------------------------------|
| N, T       |           | sequences of a batch and their steps; transitions are sequences of one step  |
| q          | [N, T, A] | Q(s_t, .), of the network that learns                                        |
| next_value | [N, T]    | max Q(s'_t, .) of the target network; with quantiles `[N, T, K]`             |
| target     | like that | the rewards of n steps, discounted, and the next value after them            |
"""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from rlx.agent import (
    AgentMaker,
    QAgent,
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
from rlx.algo.sequences import sequences_of, tell_priority
from rlx.batcher import BatcherMaker
from rlx.data import DictTensor, ReplayBuffer, Trajectories
from rlx.errors import AgentError
from rlx.run import Run
from rlx.seeding import derive
from rlx.validate import Range


@torch.no_grad()
def ahead(target: QAgent, batch: Trajectories) -> dict[str, Tensor]:
    """Return what the target network makes of what followed each step: fields of the batch's steps, for `loss`.

    Args:
        target: the network with older weights.
        batch: steps `[N, T]`, of as many updates as it stands still for.

    Returns:
        `target/q` `[N, T, A]`, and of a distributional network `target/quantiles` `[N, T, A, K]`.
    """
    outputs = replay_next(target, batch)
    return {f"target/{name}": outputs[name] for name in ("q", "quantiles") if name in outputs}


def loss(agent: QAgent, batch: Trajectories, *, n_step: int, double: bool) -> dict[str, Tensor]:
    """Return the loss of a batch from the replay buffer, under `loss/total`, and what it is made of.

        y_t = r_t + ... + gamma^n * Q_target(s', argmax_a Q(s', a)), nothing after a termination   (double, eq. 4)
        total = mean over steps of weight * huber(Q(s_t, a_t) - y_t)

    With quantiles, y_t is one for each quantile of the best action, and the Huber loss that of quantile regression
    (QR-DQN, eq. 10), summed over the quantiles and averaged over the targets.

    Args:
        agent: outputs `q`, and `quantiles` where it is distributional.
        batch: steps `[N, T]` with `next/discount` and the fields of `ahead`; `info["weight"]` `[N]` counts each
            sequence.
        n_step: steps before the next value takes over; sequences of one step have theirs summed up already.
        double: whether the network that learns chooses the next action, or the target network does.

    Returns:
        0-dimensional `loss/total` (with gradients) and `dqn/q`, the mean value of what was done; and `td_error`
        `[N, T]`, without gradients.
    """
    steps, mask = batch.steps, None if batch.is_full() else batch.steps.mask()
    action = steps["agent/action"].unsqueeze(-1)
    outputs = replay(agent, batch)
    with torch.no_grad():
        chooser = replay_next(agent, batch)["q"] if double else steps["target/q"]
        best = chooser.argmax(-1, keepdim=True)

    def returns_of(next_values: Tensor) -> Tensor:
        given = (steps["next/terminated"], steps["next/truncated"], steps["next/discount"])
        return n_step_returns(steps["next/reward"], next_values, *given, n_step=n_step, mask=mask)

    q = outputs["q"].gather(-1, action).squeeze(-1)
    if "quantiles" in outputs:
        predicted = _of_action(outputs["quantiles"], action)
        next_quantiles = _of_action(steps["target/quantiles"], best)
        wanted = torch.stack([returns_of(value) for value in next_quantiles.unbind(-1)], dim=-1)
        each = quantile_huber(predicted, wanted)
        td_error = wanted.mean(-1) - q.detach()
    else:
        wanted = returns_of(steps["target/q"].gather(-1, best).squeeze(-1))
        each = F.smooth_l1_loss(q, wanted, reduction="none")
        td_error = wanted - q.detach()
    each = each * batch.info["weight"].unsqueeze(1)
    return {
        "loss/total": each.mean() if mask is None else mean_of_valid(each, mask),
        "dqn/q": q.detach().mean() if mask is None else mean_of_valid(q.detach(), mask),
        "td_error": td_error if mask is None else td_error.masked_fill(~mask, 0.0),
    }


def priority(td_error: Tensor, lengths: Tensor) -> Tensor:
    """Return how urgent sequences are `[N]`: 0.9 times their greatest error plus 0.1 times their mean one (R2D2, 2.3).

    Args:
        td_error: `[N, T]`, padding 0.
        lengths: `[N]` int64.
    """
    error = td_error.abs()
    return 0.9 * error.amax(1) + 0.1 * error.sum(1) / lengths.clamp(min=1)


def quantile_huber(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return the quantile regression loss `[...]` of K predicted quantiles given samples of what they are of.

        sum_i mean_j |tau_i - 1{wanted_j < predicted_i}| * huber(wanted_j - predicted_i), tau_i = (i + 1/2) / K

    Args:
        predicted: `[..., K]`.
        wanted: `[..., J]`.
    """
    difference = wanted.unsqueeze(-2) - predicted.unsqueeze(-1)
    count = predicted.shape[-1]
    tau = (torch.arange(count, device=predicted.device, dtype=predicted.dtype) + 0.5).unsqueeze(-1) / count
    huber = F.huber_loss(
        wanted.unsqueeze(-2).expand_as(difference), predicted.unsqueeze(-1).expand_as(difference), reduction="none"
    )
    return ((tau - (difference.detach() < 0).to(tau.dtype)).abs() * huber).mean(-1).sum(-1)


def _stretches(number: int, done: int, interval: int | None) -> Iterator[int]:
    """Yield numbers of updates that add up to `number`, such that what moves every `interval` stands still in each."""
    while number > 0:
        stretch = number if interval is None else min(number, interval - done % interval)
        yield stretch
        number, done = number - stretch, done + stretch


def _of_action(quantiles: Tensor, action: Tensor) -> Tensor:
    """Return the quantiles `[..., K]` of the actions `[..., 1]` among those of all `[..., A, K]`."""
    index = action.unsqueeze(-1).expand(*action.shape, quantiles.shape[-1])
    return quantiles.gather(-2, index).squeeze(-2)


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
    double: bool,
    target_update_interval: Annotated[int, Range(1)],
    tau: Annotated[float, Range(0, 1, low_open=True)],
    epsilon: Annotated[Scheduled, Range(0, 1)],
    epsilon_spread: Annotated[float, Range(0)],
    prioritized_alpha: Annotated[float, Range(0, 1)] | None,
    prioritized_beta: Annotated[Scheduled, Range(0, 1)],
    max_grad_norm: Annotated[float, Range(0, low_open=True)],
) -> None:
    """Train until `run.total_steps`.

    Args:
        run: where results go.
        make_agent: makes the Q-network from specs.
        make_batcher: makes the batcher for `num_steps`.
        num_steps: steps of each environment between updates, usually 1 to 32.
        num_updates: updates then; about one for 1 to 8 steps of all environments is usual.
        batch_size: transitions an update (of a recurrent agent: sequences), usually 32 to 256.
        sequence_length: steps learned from in each sequence, for recurrent agents only, usually 20 to 80; None for 20.
        burn_in_steps: steps before those, likewise: see `rlx.agent.burn_in`. Usually 0 to 40; None for 10.
        buffer_size: steps kept, usually 1e4 to 1e6.
        buffer_directory: where they are kept on disk; None for in memory.
        learning_starts: steps before the first update, usually 1e3 to 1e5.
        learning_rate: of Adam, usually 5e-5 to 2e-3; may move, as `rlx.algo.schedules` tells.
        adam_eps: Adam's epsilon.
        gamma: discount, usually 0.97 to 0.999.
        n_step: see `loss`; usually 1 to 5.
        hindsight: part of the transitions that get another goal, one that was reached later in their episode, usually
            0.8; None for none. For environments that pursue goals; see `rlx.data.Hindsight`.
        double: see `loss`.
        target_update_interval: updates between two of the target network, usually 10 to 10,000; 1 with a small `tau`.
        tau: how far the target network then moves: 1 for all the way, or usually 0.001 to 0.01.
        epsilon: probability of a random action; usually falls from 1 to 0.01 or 0.1.
        epsilon_spread: how far environments differ: environment i of B explores with epsilon to the power of
            `1 + epsilon_spread * i / (B - 1)`; 7 in Ape-X (Horgan et al. 2018), 0 for all alike.
        prioritized_alpha: how far priorities count, usually 0.5 to 0.7; None for even draws.
        prioritized_beta: how far weights make up for that; usually rises from 0.4 to 1.
        max_grad_norm: norm at which the gradient is cut, usually 1 to 40.
    """
    with make_batcher(num_steps=num_steps) as batcher, hindsight_of(hindsight, batcher) as relabel:
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, QAgent):
            raise AgentError(f"algo=dqn needs a Q-network such as agent=q_network, got {type(agent).__name__}")
        target = deepcopy(agent)
        optimizer = FlatAdam(agent, eps=adam_eps)
        target_parameters = flatten_parameters(target).detach()
        sequences = sequences_of(agent, sequence_length, burn_in_steps)
        length = sequences.length if sequences else None
        buffer = ReplayBuffer(
            batcher.specs,
            capacity=buffer_size,
            directory=buffer_directory,
            num_envs=batcher.num_envs,
            state=state_specs(agent) if sequences else None,
            state_every=num_steps,
            alpha=prioritized_alpha,
            hindsight=relabel,
        )
        buffer.check(piece=num_steps, n_step=n_step, sequence=length or 1)
        generator = torch.Generator().manual_seed(derive(run.seed, "replay"))
        places = torch.linspace(0, 1, run.ranks.size * batcher.num_envs)  # of all ranks' environments
        powers = 1 + epsilon_spread * places.view(run.ranks.size, -1)[run.ranks.rank]
        counters = {"updates": 0}
        batcher.reset(DictTensor({"epsilon": at(epsilon, 0.0) ** powers}))
        # To ask the target network about many batches at once takes half as long as about each in its turn. That cannot
        # be where its answers depend on weights that move at each update: its own, or those of a burn-in.
        stands_still_for = None if sequences or target_update_interval == 1 else target_update_interval
        compute, look_ahead = run.compute(loss, agent), partial(run.compute(ahead, target), target)
        run.track(
            agent=agent,
            target=target,
            optimizer=optimizer,
            batcher=batcher,
            buffer=buffer,
            draws=generator,
            counters=counters,
        )

        while run.running():
            progress = run.env_steps / run.total_steps
            lr, beta, explored = (at(each, progress) for each in (learning_rate, prioritized_beta, epsilon))

            trajectories = batcher.collect(DictTensor({"epsilon": explored**powers}))
            buffer.add(trajectories)
            update_normalizers(agent, trajectories, gather=run.ranks.gather)
            update_normalizers(target, trajectories, gather=run.ranks.gather)
            updates: list[dict[str, Tensor]] = []
            begun = run.ranks.sum(buffer.num_added) >= learning_starts
            for number in _stretches(num_updates if begun else 0, counters["updates"], stands_still_for):
                for drawn in buffer.batches(
                    number,
                    batch_size,
                    generator,
                    num_steps=length,
                    n_step=n_step,
                    gamma=gamma,
                    beta=beta,
                    also=look_ahead if stands_still_for else None,
                    device=run.device,
                ):
                    batch = burn_in(agent, drawn, sequences.burn_in) if sequences else drawn
                    if not stands_still_for:
                        batch = batch.with_steps(**look_ahead(batch))
                    terms = compute(agent, batch, n_step=n_step, double=double)
                    run.check_loss(terms["loss/total"], batch, agent)
                    optimizer.zero_grad()
                    terms["loss/total"].backward()
                    run.average_gradients(agent, batch.num_steps)
                    terms["grad_norm"] = optimizer.clip_grad_norm(max_grad_norm)
                    optimizer.step(lr)
                    if prioritized_alpha is not None:
                        told = tell_priority(drawn, batch)
                        urgent = priority(terms["td_error"], batch.steps.lengths)
                        buffer.update_priorities(batch.info["slot"][told], urgent[told])
                    counters["updates"] += 1
                    if counters["updates"] % target_update_interval == 0:
                        target_parameters.lerp_(optimizer.parameters.detach(), tau)
                    updates.append({name: term.detach() for name, term in terms.items() if name != "td_error"})

            batcher.publish(agent)
            run.log(
                {**mean_terms(updates), "learning_rate": lr, "dqn/epsilon": explored, "dqn/buffer": buffer.num_added},
                env_steps=trajectories.num_steps,
            )

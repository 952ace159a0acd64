"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783), synchronous, with generalised advantage estimates.

One update a batch, with the weights that collected it: nothing to clip. Where workers run ahead, with older weights,
V-trace takes the place of these estimates (Espeholt et al. 2018, arXiv:1802.01561): that is IMPALA.

| symbol     | shape  | what it is                                                          |
|------------|--------|---------------------------------------------------------------------|
| B, T       |        | environments, steps of each a batch                                 |
| value      | [B, T] | V(s_t)                                                              |
| next_value | [B, T] | V of what followed: 0 after a termination, V(final) at a truncation |
| advantage  | [B, T] | generalised advantage estimate                                      |
"""

from typing import Annotated

from torch import Tensor

from rlx.agent import ActorCriticAgent, AgentMaker, log_prob_then, replay_with_values, update_normalizers
from rlx.algo.means import mean_or_zero
from rlx.algo.optimizer import FlatAdam
from rlx.algo.returns import explained_variance, gae, normalize
from rlx.algo.schedules import Scheduled, at
from rlx.batcher import BatcherMaker
from rlx.data import Trajectories
from rlx.errors import AgentError
from rlx.run import Run, StdMean
from rlx.validate import Range


def loss(
    agent: ActorCriticAgent,
    trajectories: Trajectories,
    *,
    gamma: float,
    gae_lambda: float,
    ent_coef: float,
    vf_coef: float,
    normalize_advantage: bool,
    vtrace: bool,
    std_mean: StdMean | None = None,
) -> dict[str, Tensor]:
    """Return A2C's loss on a batch, under `loss/total`, and what it is made of.

        policy = -mean(A_t * log pi(a_t | s_t)), value = mean((V(s_t) - (A_t + V_t))^2) / 2
        total = policy + vf_coef * value - ent_coef * entropy     (Mnih et al. 2016, section 4 and algorithm S3)

    A_t, and V_t in the value's target, are constants: no gradient goes through them. Where the agent normalises
    returns, values count in standard deviations of those.

    Args:
        agent: outputs `value`; has `log_prob` and `entropy`.
        trajectories: as a batcher returns them.
        gamma: discount, usually 0.97 to 0.999.
        gae_lambda: usually 0.9 to 1; 1 is the paper's sum of rewards to the piece's end.
        ent_coef: usually 0 to 0.02.
        vf_coef: usually 0.25 to 0.5.
        normalize_advantage: whether advantages get mean 0 and standard deviation 1 in the batch.
        vtrace: whether A_t is corrected for the policy that acted being another one; see `rlx.algo.returns.gae`.
        std_mean: gives standard deviation and mean of the advantages of all ranks, where this is a part of a batch
            over several; None for the batch's own.

    Returns:
        0-dimensional tensors: `loss/total` (with gradients), `loss/policy`, `loss/value`, `loss/entropy` and
        `explained_variance`, and with `vtrace` `a2c/ratio`, the mean importance ratio; and `return` `[B, T]`, what the
        value learned, without gradients.
    """
    steps = trajectories.steps
    mask = None if trajectories.is_full() else steps.mask()

    def valid(x: Tensor) -> Tensor:
        return x if mask is None else x[mask]

    outputs, value, next_value = replay_with_values(agent, trajectories)
    taken = steps.group("agent")
    log_prob = agent.log_prob(outputs, taken)
    ratio = (log_prob.detach() - log_prob_then(agent, taken)).exp() if vtrace else None
    ends = (steps["next/terminated"], steps["next/truncated"])
    advantage = gae(
        steps["next/reward"], value, next_value, *ends, gamma=gamma, gae_lambda=gae_lambda, mask=mask, ratio=ratio
    )
    returns = advantage + value
    weight = valid(advantage)
    if normalize_advantage:
        weight = normalize(weight, None if std_mean is None else std_mean(weight))

    policy_loss = -mean_or_zero(weight * valid(log_prob))
    value_loss = 0.5 * mean_or_zero(valid((outputs["value"] - returns) / agent.value_scale(outputs)).square())
    entropy = mean_or_zero(valid(agent.entropy(outputs)))
    return {
        "loss/total": policy_loss + vf_coef * value_loss - ent_coef * entropy,
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "loss/entropy": entropy,
        "explained_variance": explained_variance(valid(value), valid(returns)),
        **({} if ratio is None else {"a2c/ratio": valid(ratio).mean()}),
        "return": returns,
    }


def train(
    run: Run,
    make_agent: AgentMaker,
    make_batcher: BatcherMaker,
    *,
    num_steps: Annotated[int, Range(1)],
    learning_rate: Annotated[Scheduled, Range(0, 1, low_open=True)],
    adam_eps: Annotated[float, Range(0, 1, low_open=True)],
    gamma: Annotated[float, Range(0, 1)],
    gae_lambda: Annotated[float, Range(0, 1)],
    ent_coef: Annotated[Scheduled, Range(0)],
    vf_coef: Annotated[float, Range(0)],
    max_grad_norm: Annotated[float, Range(0, low_open=True)],
    normalize_advantage: bool,
    vtrace: bool | None,
) -> None:
    """Train until `run.total_steps`.

    Args:
        run: where results go.
        make_agent: makes the actor-critic from specs.
        make_batcher: makes the batcher for `num_steps`.
        num_steps: steps of each environment a batch, usually 5 to 32.
        learning_rate: of Adam, usually 3e-4 to 3e-3; may move, as `rlx.algo.schedules` tells.
        adam_eps: Adam's epsilon.
        gamma: see `loss`.
        gae_lambda: see `loss`.
        ent_coef: see `loss`; may move.
        vf_coef: see `loss`.
        max_grad_norm: norm at which the gradient is cut, usually 0.5.
        normalize_advantage: see `loss`.
        vtrace: see `loss`; None for where workers run ahead.
    """
    with make_batcher(num_steps=num_steps) as batcher:
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, ActorCriticAgent):
            raise AgentError(f"algo=a2c needs an agent with log_prob() and entropy(), got {type(agent).__name__}")
        optimizer = FlatAdam(agent, eps=adam_eps)
        compute = run.compute(loss, agent, uncompiled_since="each batch has another number of bootstrap values")
        run.track(agent=agent, optimizer=optimizer, batcher=batcher)

        while run.running():
            progress = run.env_steps / run.total_steps
            lr, entropy_coef = at(learning_rate, progress), at(ent_coef, progress)
            trajectories = batcher.collect().to(run.device)
            terms = compute(
                agent,
                trajectories,
                gamma=gamma,
                gae_lambda=gae_lambda,
                ent_coef=entropy_coef,
                vf_coef=vf_coef,
                normalize_advantage=normalize_advantage,
                vtrace=batcher.asynchronous if vtrace is None else vtrace,
                std_mean=run.ranks.std_mean,
            )
            run.check_loss(terms["loss/total"], trajectories, agent)
            optimizer.zero_grad()
            terms["loss/total"].backward()
            run.average_gradients(agent, trajectories.num_steps)
            terms["grad_norm"] = optimizer.clip_grad_norm(max_grad_norm)
            optimizer.step(lr)

            update_normalizers(agent, trajectories, terms.pop("return"), run.ranks.gather)
            batcher.publish(agent)
            logged = {name: term.detach() for name, term in terms.items()}
            run.log({**logged, "learning_rate": lr, "ent_coef": entropy_coef}, env_steps=trajectories.num_steps)

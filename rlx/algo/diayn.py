"""DIAYN, "diversity is all you need" (Eysenbach et al. 2019, arXiv:1802.06070): skills without any reward.

SAC learns to act so that a classifier can tell from where it gets which skill it plays. The task's reward is not used.

| symbol | shape | what it is                                                             |
|--------|-------|------------------------------------------------------------------------|
| N      |       | transitions of a batch                                                 |
| K      |       | skills, drawn evenly at the beginning of each episode, held to its end |
| z      | [N]   | the skill that was played, `agent_info["skill"]`                       |
| q(z|s) | [N, K]| the discriminator's belief which skill leads to s                      |
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from rlx.agent import AgentMaker, Critics, SoftActorCritic, flatten_parameters, update_normalizers
from rlx.agent.networks import Encoder, linear
from rlx.agent.normalizer import full_precision
from rlx.algo import sac
from rlx.algo.means import mean_terms
from rlx.algo.optimizer import FlatAdam
from rlx.algo.schedules import Scheduled, at
from rlx.batcher import BatcherMaker
from rlx.data import DictTensor, EnvSpecs, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.errors import AgentError
from rlx.run import Run
from rlx.seeding import derive
from rlx.validate import Range


class Discriminator(nn.Module):
    """Tells which skill leads to an observation: logits `[N, K]`."""

    def __init__(self, specs: EnvSpecs, num_skills: int, hidden_sizes: Sequence[int]) -> None:
        """Build dense layers with relu between them, orthogonally initialised.

        Args:
            specs: what the environment shows.
            num_skills: K.
            hidden_sizes: widths of the hidden layers.
        """
        super().__init__()
        self.encoder = Encoder(specs.observation)
        sizes = [self.encoder.num_features, *hidden_sizes]
        gain = math.sqrt(2)
        self.layers = nn.ModuleList([linear(n, width, gain) for n, width in zip(sizes, hidden_sizes, strict=False)])
        self.output = linear(sizes[-1], num_skills, 0.01)

    def forward(self, observation: DictTensor) -> Tensor:
        """Return the logits `[N, K]` of observations `[N]`."""
        hidden = self.encoder(observation)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return self.output(hidden)


def loss(
    agent: SoftActorCritic,
    target: Critics,
    discriminator: Discriminator,
    batch: Trajectories,
    generator: torch.Generator,
    *,
    target_entropy: float,
) -> dict[str, Tensor]:
    """Return SAC's losses for DIAYN's reward, and the discriminator's; `loss/total` is the sum of all.

        reward = log q(z | s') - log p(z), p(z) = 1 / K     (eq. 3)
        discriminator = -mean(log q(z | s'))

    Args:
        agent: plays skills.
        target: critics of older weights.
        discriminator: q.
        batch: transitions `[N, 1]` with `info["agent_info/skill"]`; their own rewards are not looked at.
        generator: source of SAC's new actions.
        target_entropy: see `rlx.algo.sac.loss`.

    Returns:
        What SAC's loss returns, and `loss/discriminator`, `diayn/reward` and `diayn/accuracy`, the part of the steps
        whose skill the discriminator finds: 1 / K by chance.
    """
    skill, steps = batch.info["agent_info/skill"], batch.steps
    logits = full_precision(discriminator(steps.at(0).group("next")))
    log_prob = logits.log_softmax(-1).gather(-1, skill.unsqueeze(-1)).squeeze(-1)
    reward = log_prob.detach() + math.log(logits.shape[-1])
    paid = steps.exclude("next/reward") | TemporalDictTensor({"next/reward": reward.unsqueeze(1)}, steps.lengths)
    rewarded = Trajectories(batch.info, paid, DictTensor.empty(0), num_steps=batch.num_steps)
    terms = sac.loss(agent, target, rewarded, generator, n_step=1, target_entropy=target_entropy)
    return terms | {
        "loss/total": terms["loss/total"] - log_prob.mean(),
        "loss/discriminator": -log_prob.mean(),
        "diayn/reward": reward.mean(),
        "diayn/accuracy": (logits.argmax(-1) == skill).float().mean(),
    }


def draw_skill(num_skills: int, row: int, generator: torch.Generator) -> Mapping[str, Tensor]:
    """Return the skill of a row's next episode, drawn evenly."""
    return {"skill": torch.randint(num_skills, (), generator=generator)}


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
    learning_starts: Annotated[int, Range(1)],
    learning_rate: Annotated[Scheduled, Range(0, 1, low_open=True)],
    adam_eps: Annotated[float, Range(0, 1, low_open=True)],
    gamma: Annotated[float, Range(0, 1)],
    tau: Annotated[float, Range(0, 1, low_open=True)],
    target_entropy: float | None,
    discriminator_hidden_sizes: Annotated[Sequence[int], Range(1)],
) -> None:
    """Train until `run.total_steps`.

    Args:
        run: where results go.
        make_agent: makes an agent with skills from specs.
        make_batcher: makes the batcher for `num_steps`.
        num_steps: steps of each environment between updates, usually 1 to 8.
        num_updates: updates then.
        batch_size: transitions an update, usually 256.
        buffer_size: steps kept, usually 1e5 to 1e6.
        buffer_directory: where they are kept on disk; None for in memory.
        learning_starts: steps before the first update, usually 100 to 10,000.
        learning_rate: of Adam, for all networks; usually 3e-4; may move, as `rlx.algo.schedules` tells.
        adam_eps: Adam's epsilon.
        gamma: discount, usually 0.99.
        tau: how far the target critics move at each update, usually 0.005.
        target_entropy: see `rlx.algo.sac.loss`; None for minus the number of action places.
        discriminator_hidden_sizes: widths of the discriminator's hidden layers.
    """
    with make_batcher(num_steps=num_steps) as batcher:
        agent = make_agent(batcher.specs).to(run.device)
        if not isinstance(agent, SoftActorCritic) or agent.encoder.num_skills < 2:
            raise AgentError(
                f"algo=diayn needs agent=skills with agent.num_skills of 2 or more, got {type(agent).__name__}"
            )
        num_skills = agent.encoder.num_skills
        discriminator = Discriminator(batcher.specs, num_skills, discriminator_hidden_sizes).to(run.device)
        target = deepcopy(agent.critics)
        everything = nn.ModuleList([agent, discriminator])
        optimizer = FlatAdam(everything, eps=adam_eps)
        moving, followed = flatten_parameters(target).detach(), list(agent.critics.parameters())
        skill = {"agent_info/skill": Spec((), torch.int64)}
        buffer = ReplayBuffer(
            batcher.specs, capacity=buffer_size, directory=buffer_directory, num_envs=batcher.num_envs, extra=skill
        )
        buffer.check(piece=num_steps)
        draws = torch.Generator().manual_seed(derive(run.seed, "replay"))
        noise = torch.Generator(run.device).manual_seed(derive(run.seed, "noise"))
        entropy = -float(agent.distribution.size) if target_entropy is None else target_entropy
        batcher.reset(partial(draw_skill, num_skills))
        compute = run.compute(loss, agent, uncompiled_since="it draws from a generator of its own")
        run.track(
            agent=agent,
            target=target,
            discriminator=discriminator,
            optimizer=optimizer,
            batcher=batcher,
            buffer=buffer,
            draws=draws,
            noise=noise,
        )

        while run.running():
            lr = at(learning_rate, run.env_steps / run.total_steps)
            trajectories = batcher.collect()
            buffer.add(trajectories)
            update_normalizers(agent, trajectories, gather=run.ranks.gather)
            update_normalizers(target, trajectories, gather=run.ranks.gather)
            updates: list[dict[str, Tensor]] = []
            begun = run.ranks.sum(buffer.num_added) >= learning_starts
            for batch in buffer.batches(num_updates if begun else 0, batch_size, draws, gamma=gamma, device=run.device):
                terms = compute(agent, target, discriminator, batch, noise, target_entropy=entropy)
                run.check_loss(terms["loss/total"], batch, agent)
                optimizer.zero_grad()
                terms["loss/total"].backward()
                run.average_gradients(everything, batch.num_steps)
                optimizer.step(lr)
                with torch.no_grad():
                    moving.lerp_(torch.cat([parameter.reshape(-1) for parameter in followed]), tau)
                updates.append({name: term.detach() for name, term in terms.items()})

            batcher.publish(agent)
            terms = {**mean_terms(updates), "learning_rate": lr, "sac/buffer": buffer.num_added}
            run.log(terms, env_steps=trajectories.num_steps)

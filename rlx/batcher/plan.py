"""The memory of a batcher, planned from what its agent puts out."""

from collections.abc import Mapping

import torch

from rlx.agent.agent import AgentMaker
from rlx.batcher.context import context_specs
from rlx.batcher.probe import probe_agent
from rlx.batcher.sampler import Info, draw_once
from rlx.batcher.slots import Layout
from rlx.batcher.weights import WeightsLayout
from rlx.data import EnvSpecs


def plan_memory(
    make_agent: AgentMaker, specs: EnvSpecs, given: Mapping[str, Info], *, num_envs: int, num_steps: int, travels: bool
) -> tuple[Layout, WeightsLayout]:
    """Ask an agent what it puts out, and lay out what pieces and weights take.

    Args:
        make_agent: makes the agent.
        specs: of the environments.
        given: `agent_info` and `env_info`.
        num_envs: of all workers.
        num_steps: steps of a piece, T.
        travels: whether the workers are other processes.

    Raises:
        AgentError: the agent's outputs do not fit the environments.
        UserError: a sampler cannot travel, or does not return tensors.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        agent = make_agent(specs).eval()  # as it acts
    actor = agent.actor()
    sampled, rows = draw_once(given, num_envs, travels=travels)
    outputs, state = probe_agent(actor, specs, rows["agent_info"].to("cpu"))
    weights = WeightsLayout.of(agent)
    layout = Layout.plan(
        num_steps,
        num_envs,
        specs,
        outputs,
        state,
        weight_bytes=weights.num_bytes,
        context=context_specs(actor, specs, outputs),
        history_length=actor.history_length,
        sampled=sampled,
    )
    return layout, weights

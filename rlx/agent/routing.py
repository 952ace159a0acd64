"""Rows of one batch to several agents, and what they put out back into the order of the rows."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rlx.agent.agent import Agent
from rlx.data import DictTensor
from rlx.errors import AgentError


class Router:
    """Runs each of several agents on its own rows. Holds no parameters.

    Attributes:
        agents: by name; a row's policy index counts them in this order.
        inputs: the fields that any of them reads.
    """

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        """Route to these agents."""
        self.agents = dict(agents)
        self.inputs = tuple(dict.fromkeys(name for agent in self.agents.values() for name in agent.inputs))

    def policies(self, agent_info: DictTensor, taken: DictTensor | None, device: torch.device) -> Tensor:
        """Return the index of each row's agent, `[B]` int64: as stored, as asked for, or dealt in turn."""
        if taken is not None and "policy" in taken:
            return taken["policy"]
        if "policy" in agent_info:
            return agent_info["policy"].long()
        return torch.arange(agent_info.batch_size, device=device) % len(self.agents)

    def split(self, policy: Tensor) -> Iterator[tuple[str, Agent, Tensor]]:
        """Yield each agent that has rows, with their indices `[N]` int64.

        Raises:
            AgentError: an index counts no agent.
        """
        found = 0
        for index, (name, agent) in enumerate(self.agents.items()):
            rows = (policy == index).nonzero().squeeze(1)
            if len(rows):
                found += len(rows)
                yield name, agent, rows
        if found != len(policy):
            wrong = policy[(policy < 0) | (policy >= len(self.agents))][0].item()
            raise AgentError(f"agent_info['policy']: got {wrong}, expected 0 to {len(self.agents) - 1}")

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return the states of all agents for all rows, `<name>/<key>`."""
        fields: dict[str, Tensor] = {}
        for name, agent in self.agents.items():
            fields |= agent.initial_state(agent_info, batch_size).add_prefix(name).to_dict()
        return DictTensor.trusted(fields, batch_size)

    def forward(
        self, observation: DictTensor, state: DictTensor, agent_info: DictTensor, taken: DictTensor | None
    ) -> tuple[DictTensor, DictTensor]:
        """Return the outputs with `policy`, and the state, new where it is that of the row's own agent."""
        device = next(iter(observation.values())).device
        size = observation.batch_size
        policy = self.policies(agent_info, taken, device)
        parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        fields = state.to_dict()
        for name, agent, rows in self.split(policy):
            its = None if taken is None else taken[rows]
            outputs, new_state = agent.forward(observation[rows], state.group(name)[rows], agent_info[rows], its)
            parts.append((rows, outputs.to_dict()))
            _write(fields, name, rows, new_state)
        return DictTensor.trusted(merged(parts) | {"policy": policy}, size), DictTensor.trusted(fields, size)

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Let each agent draw at its rows.

        Raises:
            AgentError: rows are dealt in turn, and some agents would get none.
        """
        policy, size = outputs["policy"], outputs.batch_size
        if agent_info.is_empty and size < len(self.agents):
            raise AgentError(
                f"{len(self.agents)} policies are dealt to {size} environments a worker, and some get none: "
                "give batcher.envs_per_worker at least as many, or agent_info['policy']"
            )
        parts = [
            (rows, agent.act(outputs[rows], agent_info[rows], generator).to_dict())
            for _, agent, rows in self.split(policy)
        ]
        return DictTensor.trusted(merged(parts) | {"policy": policy}, size)

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        """Let each agent write what was drawn into its state at its rows."""
        if state.is_empty:
            return state
        fields = state.to_dict()
        for name, agent, rows in self.split(taken["policy"]):
            _write(fields, name, rows, agent.remember(state.group(name)[rows], taken[rows]))
        return DictTensor.trusted(fields, state.batch_size)


def _write(fields: dict[str, Tensor], name: str, rows: Tensor, state: DictTensor) -> None:
    for key, value in state.items():
        fields[f"{name}/{key}"] = fields[f"{name}/{key}"].index_put((rows,), value)


def merged(parts: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the fields of all parts in the order of the rows, differentiable.

    Args:
        parts: the indices of some rows, and fields `[N, ...]` for them; together, all rows once.

    Raises:
        AgentError: the fields differ from part to part.
    """
    if not parts:
        return {}
    first = parts[0][1]
    for _, fields in parts:
        if fields.keys() != first.keys():
            raise AgentError(f"policies in one agent put out different fields: {list(first)} and {list(fields)}")
    if len(parts) == 1:
        return dict(first)
    place = torch.cat([rows for rows, _ in parts]).argsort()
    return {key: torch.cat([fields[key] for _, fields in parts])[place] for key in first}

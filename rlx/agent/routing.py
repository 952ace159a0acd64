"""Rows of one batch to several agents, and what they put out back into the order of the rows.

Where any of the agents reads its history, the state also has `policy` `[B]` int64: whose the row was at the step
before, -1 where an episode begins. An agent that reads its history knows only the steps that it took itself, without a
break: a row that is given to it inside an episode begins for it then. So its history ends where `policy` changes, while
acting and while learning.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rlx.agent.agent import Agent, reset_state
from rlx.agent.told import indices
from rlx.data import DictTensor, TemporalDictTensor
from rlx.errors import AgentError


class Router:
    """Runs each of several agents on its own rows. Holds no parameters.

    Attributes:
        agents: by name; a row's policy index counts them in this order.
        inputs: the fields that any of them reads.
        history_length: the most steps that any of them looks back.
    """

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        """Route to these agents."""
        self.agents = dict(agents)
        self.inputs = tuple(dict.fromkeys(name for agent in self.agents.values() for name in agent.inputs))
        self.history_length = max((agent.history_length for agent in self.agents.values()), default=0)

    def policies(self, agent_info: DictTensor, taken: DictTensor | None, device: torch.device) -> Tensor:
        """Return the index of each row's agent, `[B]` int64: as stored, as asked for, or dealt in turn."""
        if taken is not None and "policy" in taken:
            return taken["policy"]
        asked = indices(agent_info, "policy")
        return asked if asked is not None else torch.arange(agent_info.batch_size, device=device) % len(self.agents)

    def split(self, policy: Tensor) -> Iterator[tuple[str, Agent, Tensor]]:
        """Yield each agent that has rows, with their indices `[N]` int64; of no rows at all, the first agent with none.

        Raises:
            AgentError: an index counts no agent.
        """
        if not len(policy):  # what is put out has its form all the same
            yield *next(iter(self.agents.items())), policy
            return
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
        if self.history_length:
            own = (parameter for agent in self.agents.values() for parameter in agent.parameters())
            device = next((value.device for value in (*fields.values(), *own)), None)  # actors have no parameters
            fields["policy"] = torch.full((batch_size,), -1, device=device)
        return DictTensor.trusted(fields, batch_size)

    def recall(self, context: TemporalDictTensor, state: DictTensor, agent_info: DictTensor) -> DictTensor:
        """Return `state` with what each agent derives, for all rows, from the steps before that were its own."""
        fields = state.to_dict()
        for index, (name, agent) in enumerate(self.agents.items()):
            if agent.history_length:
                own = self._own_steps(context, index, state["policy"] == index, agent.history_length)
                fields |= agent.recall(own, state.group(name), agent_info).add_prefix(name).to_dict()
        return DictTensor.trusted(fields, state.batch_size)

    def began(
        self, name: str, rows: Tensor, state: DictTensor, agent_info: DictTensor, context: TemporalDictTensor
    ) -> tuple[DictTensor, TemporalDictTensor]:
        """Return with what an agent goes on at its rows: its state `[N]`, and its own steps before.

        Args:
            name: which agent.
            rows: `[N]` int64.
            state: `[B]`, after the steps before.
            agent_info: `[N]`.
            context: `[B, C]`.
        """
        agent, index = self.agents[name], list(self.agents).index(name)
        its = state.group(name)[rows]
        if not agent.history_length:
            return its, context[rows]
        goes_on = state["policy"][rows] == index
        its = reset_state(agent, its, ~goes_on, agent_info)
        return its, self._own_steps(context[rows], index, goes_on, agent.history_length)

    @staticmethod
    def _own_steps(context: TemporalDictTensor, index: int, goes_on: Tensor, history_length: int) -> TemporalDictTensor:
        """Return the last steps `[B, <= history_length]` that an agent took without a break, of rows that go on."""
        if "agent/policy" not in context:
            return TemporalDictTensor.trusted({}, torch.zeros_like(context.lengths), history_length)
        others = (context["agent/policy"] != index) & context.mask()
        time = torch.arange(context.max_length, device=others.device)
        begun = torch.where(others, time + 1, 0).amax(1)
        counts = (context.lengths - begun).clamp(max=history_length) * goes_on
        size = min(history_length, context.max_length)
        place = ((context.lengths - counts).unsqueeze(1) + time[:size]).clamp(max=context.max_length - 1)
        rows = torch.arange(len(counts), device=others.device).unsqueeze(1)
        return TemporalDictTensor.trusted({key: context[key][rows, place] for key in context}, counts, size)

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
            own_state, info = state.group(name)[rows], agent_info[rows]
            if agent.history_length:
                own_state = reset_state(agent, own_state, state["policy"][rows] != policy[rows], info)
            outputs, new_state = agent.forward(observation[rows], own_state, info, its)
            parts.append((rows, outputs.to_dict()))
            _write(fields, name, rows, new_state)
        if self.history_length:
            fields["policy"] = policy
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
    size = len(next(iter(fields.values()))) if fields else 0
    for key, value in state.items():
        before = fields.get(f"{name}/{key}")
        if before is None:  # derived from a history, and never recalled: an agent's first step
            before = value.new_zeros(size, *value.shape[1:])
        fields[f"{name}/{key}"] = before.index_put((rows,), value)


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

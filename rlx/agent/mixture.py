"""Several policies in one agent: each row of a batch belongs to one of them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlx.agent.agent import ActorCriticAgent, Agent, AgentMaker, at_start, over_sequences, step_through
from rlx.agent.normalizer import ReturnNormalizer
from rlx.agent.routing import Router, merged
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor
from rlx.data.trajectories import empty_context
from rlx.errors import AgentError, did_you_mean
from rlx.validate import validate

Named = DictTensor | TemporalDictTensor


class MixtureAgent(ActorCriticAgent):
    """Members with parameters of their own (a population, a league, a meta-learner's inner policies).

    Row b belongs to member `agent_info["policy"][b]` (int64, the members counted from 0 in their order). Where that is
    not given, rows are dealt in turn: row b of each worker to member b modulo their number; have at least as many
    environments a worker. Whose a row was is kept as `agent/policy`, and that is what learning goes by, in any
    minibatch: a member's gradient comes from its own rows only.

    Outputs: those of the members, in the order of the rows, and `policy` `[B]` int64. State: those of all members, as
    `<member>/<key>`; a member's part changes at its own rows only. A row that is given to another member within an
    episode finds that one's state as it left it; a member that reads its history begins anew there, see `Router`.
    """

    def __init__(self, specs: EnvSpecs, *, members: Mapping[str, AgentMaker | Mapping[str, Any]]) -> None:
        """Make the members and compare what they put out.

        Args:
            specs: what the environment shows and takes.
            members: for each name, what makes that member from specs; or, as in YAML, its keywords and a `_target_`,
                which has to be an agent of `rlx.agent`.

        Raises:
            AgentError: there is no member, one is not to be made so, or their outputs differ.
            ConfigError: a member's keyword is wrong.
        """
        super().__init__()
        if not members:
            raise AgentError("agent.members: got none, expected at least one")
        for name in members:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise AgentError(f"agent.members: {name!r} can be no member's name, try '{name}_policy'")
        made = {name: member_maker(name, member)(specs) for name, member in members.items()}
        check_alike(made, specs)
        self.members = nn.ModuleDict(made)
        self.router = Router(made)
        self.inputs, self.history_length = self.router.inputs, self.router.history_length
        self._specs = specs
        self._scaled = any(isinstance(module, ReturnNormalizer) for module in self.modules())

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return the states of all members for all rows."""
        return self.router.initial_state(agent_info, batch_size)

    def recall(self, context: TemporalDictTensor, state: DictTensor, agent_info: DictTensor) -> DictTensor:
        """Return `state` with what each member derives from its own steps before."""
        return self.router.recall(context, state, agent_info)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return each member's outputs and new state at its rows."""
        return self.router.forward(observation, state, agent_info, taken)

    def forward_sequence(
        self,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return the outputs `[B, T]`: each member does its sequences in its own way.

        Step by step, where a sequence passes from one member to another, or a member reads its history.
        """
        if self.history_length:
            return super().forward_sequence(observation, state, agent_info, taken)
        return self.forward_history(empty_context(observation), observation, state, agent_info, taken)

    def forward_history(
        self,
        context: TemporalDictTensor,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return what `forward_sequence` does, for sequences that go on from `context`."""
        size, length = observation.leading_shape
        policy = None if not size * length else self._of_sequences(observation, agent_info, taken)
        if policy is None:
            recalled = self.recall(context, state, at_start(agent_info))
            return step_through(self, observation, recalled, agent_info, taken)
        parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        for name, member, rows in self.router.split(policy):
            info, its = agent_info[rows], None if taken is None else taken[rows]
            own_state, own_steps = self.router.began(name, rows, state, at_start(info), context)
            outputs = over_sequences(member, own_steps, observation[rows], own_state, info, its)
            parts.append((rows, outputs.to_dict()))
        fields = merged(parts) | {"policy": policy.unsqueeze(1).expand(size, length)}
        return TemporalDictTensor.trusted(fields, observation.lengths, length)

    def _of_sequences(
        self,
        observation: TemporalDictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None,
    ) -> Tensor | None:
        """Return whose each sequence is, `[B]` int64; None where one passes from a member to another."""
        if taken is None or "policy" not in taken:
            known = isinstance(agent_info, DictTensor)
            return self.router.policies(agent_info, None, observation.device) if known else None
        # Padding may hold anything, and a sequence may be all padding.
        steps = taken["policy"].clamp(0, len(self.members) - 1)
        changes = (steps != steps[:, :1]) & observation.mask()
        return None if bool(changes.any()) else steps[:, 0]

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Let each member draw at its rows.

        Raises:
            AgentError: rows are to be dealt, and there are fewer than members.
        """
        return self.router.act(outputs, agent_info, generator)

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        """Let each member write into its state at its rows."""
        return self.router.remember(state, taken)

    def log_prob(self, outputs: Named, taken: Named) -> Tensor:
        """Return each member's log-probability of what was `taken` at its steps, `[...]`."""
        return self._each(taken["policy"], lambda member, rows: member.log_prob(outputs[rows], taken[rows]))

    def entropy(self, outputs: Named) -> Tensor:
        """Return each member's entropy at its steps, in nats, `[...]`."""
        return self._each(outputs["policy"], lambda member, rows: member.entropy(outputs[rows]))

    def value_scale(self, outputs: Named) -> Tensor | float:
        """Return what an error of each member's value counts in at its steps, `[...]`."""
        if not self._scaled:
            return 1.0
        return self._each(outputs["policy"], lambda member, rows: torch.as_tensor(member.value_scale(outputs[rows])))

    def seen_by(self, steps: TemporalDictTensor) -> list[tuple[nn.Module, Tensor | None]]:
        """Return each member with its own steps, `[B, T]` bool; see `update_normalizers`."""
        return [(member, steps["agent/policy"] == index) for index, member in enumerate(self.router.agents.values())]

    def _each(self, policy: Tensor, function: Callable[[ActorCriticAgent, Tensor], Tensor]) -> Tensor:
        """Return `function` of each member, over the rows that are its own at some step, at the steps that are."""
        result = torch.zeros(policy.shape, device=policy.device)
        for index, (name, member) in enumerate(self.router.agents.items()):
            own = policy == index
            rows = (own if own.dim() == 1 else own.any(1)).nonzero().squeeze(1)
            if len(rows):
                if not isinstance(member, ActorCriticAgent):
                    raise AgentError(f"agent.members.{name}: {type(member).__name__} has no log_prob() and entropy()")
                result = result.index_put((rows,), torch.where(own[rows], function(member, rows), result[rows]))
        return result

    def actor(self) -> Agent:
        """Return the members' actors, where they are alike; otherwise this agent."""
        actors = {name: member.actor() for name, member in self.router.agents.items()}
        try:
            check_alike(actors, self._specs, next((value.device for value in self.parameters()), "cpu"))
        except AgentError:  # one leaves out what another keeps
            return self
        return _Actor(actors)


class _Actor(Agent):
    """The members' actors, on the same parameters."""

    def __init__(self, actors: Mapping[str, Agent]) -> None:
        super().__init__()
        self._router = Router(actors)
        self.inputs, self.history_length = self._router.inputs, self._router.history_length

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        return self._router.initial_state(agent_info, batch_size)

    def recall(self, context: TemporalDictTensor, state: DictTensor, agent_info: DictTensor) -> DictTensor:
        return self._router.recall(context, state, agent_info)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        return self._router.forward(observation, state, agent_info, taken)

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return self._router.act(outputs, agent_info, generator)

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        return self._router.remember(state, taken)


def member_maker(name: str, member: AgentMaker | Mapping[str, Any]) -> AgentMaker:
    """Return what makes a member: `member` itself, or the agent of `rlx.agent` that its `_target_` names.

    Only those: the configuration of a checkpoint may come from anywhere, and must not name code to import.

    Raises:
        AgentError: it names something else.
        ConfigError: a keyword is wrong.
    """
    if not isinstance(member, Mapping):
        if callable(member):
            return member
        got, without = f"agent.members.{name}: got {member!r}", f"~agent.members.{name}"
        raise AgentError(f"{got}, expected an agent's keys and its _target_; to do without: {without}")
    import rlx.agent

    target = str(member.get("_target_"))
    abstract = ("ActorCriticAgent", "RecurrentActorCritic")
    kinds = {name: getattr(rlx.agent, name) for name in rlx.agent.__all__ if name not in abstract}
    fit = [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, ActorCriticAgent)]
    known = [f"rlx.agent.{name}" for name in fit]
    if target not in known:
        raise AgentError(
            f"agent.members.{name}._target_: got {target!r}, expected one of {', '.join(known)}."
            f"{did_you_mean(target, known)} For others, write a function that returns a MixtureAgent of their makers"
        )
    kind = kinds[target.removeprefix("rlx.agent.")]
    keywords = validate(kind, member, f"agent.members.{name}", given=("specs",))
    return partial(kind, **{key: value for key, value in keywords.items() if not key.startswith("_")})


def check_alike(agents: Mapping[str, Agent], specs: EnvSpecs, device: torch.device | str = "cpu") -> None:
    """Ask each agent once, on observations of zeros on their `device`, and compare what they put out.

    Raises:
        AgentError: outputs, or what `act` returns, differ in keys, shapes or dtypes; shows both.
    """
    seen = {key: spec.zeros(1, device=device) for key, spec in specs.observation.items()}
    seen |= {f"prev_{key}": spec.zeros(1, device=device) for key, spec in specs.action.items()}
    seen |= {"prev_reward": torch.zeros(1, device=device), "is_first": torch.ones(1, dtype=torch.bool, device=device)}
    nothing = DictTensor.empty(1)
    found: dict[str, tuple[dict[str, Spec], dict[str, Spec]]] = {}
    for name, agent in agents.items():
        with torch.no_grad():
            outputs, _ = agent.forward(DictTensor(seen), agent.initial_state(nothing, 1), nothing)
            drawn = agent.act(outputs, nothing, torch.Generator(device).manual_seed(0))
        found[name] = outputs.specs(), drawn.specs()
    first, *others = found
    for other in others:
        for what, one, two in zip(("forward()", "act()"), found[first], found[other], strict=True):
            if one != two:
                raise AgentError(
                    f"agent.members: all must put out the same, but {what} of {first!r} gives {_listed(one)}; "
                    f"of {other!r} {_listed(two)}"
                )


def _listed(specs: Mapping[str, Spec]) -> str:
    return ", ".join(f"{key} {str(spec.dtype).removeprefix('torch.')} {[*spec.shape]}" for key, spec in specs.items())

"""The Agent contract: what the rollout loop and the losses expect of a policy."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from rlx.agent.normalizer import ReturnNormalizer
from rlx.data import DictTensor, EnvSpecs, MissingFieldError, Spec, TemporalDictTensor
from rlx.errors import AgentError


class Agent(nn.Module):
    """A policy: given what it sees and its state, what it puts out and its next state.

    Acting is `forward`, then `act` (and `remember`, where a draw lasts beyond its step). Learning is `forward` alone,
    over stored steps. An agent knows no environment and no worker; it is built from `EnvSpecs`. All batches have one
    row an environment.

    Attributes:
        inputs: the fields of the `env/` group that `forward` reads: `obs` (a nested space's `obs/...` included), and
            any of `prev_action` (as the action), `prev_reward` (float32) and `is_first` (bool).
        history_length: how many earlier steps of its episode decide, with the state, what a step puts out; 0 for most.
            Each piece then comes with up to so many steps before it, its `context`; see `recall`. An agent of several
            layers that each look back counts the steps that reach it through all of them.
    """

    inputs: tuple[str, ...] = ("obs",)
    history_length: int = 0

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return the state in which `batch_size` episodes begin; empty (the default) for a stateless agent.

        Args:
            agent_info: `[B]`, which kind of policy each row is; empty where none was given.
            batch_size: the number of rows, B.
        """
        return DictTensor.empty(batch_size)

    def recall(self, context: TemporalDictTensor, state: DictTensor, agent_info: DictTensor) -> DictTensor:
        """Return `state` with the fields that are derived from the steps before it, such as a key-value cache.

        For agents with a `history_length`. What `initial_state` returns is the truth: stored with each piece, and reset
        where an episode begins. Fields that are added here are neither: they are worked out by this call, with the
        weights of now, before an agent's first step and whenever its weights have changed; from there `forward` keeps
        them up. So the true fields have to tell how much of the derived ones is of the row's own episode.

        Args:
            context: `[B, C]`, up to `history_length` steps before the next one, of the episodes that go on: the groups
                `env/` (the fields named by `inputs`) and `agent/`. No fields where no row has any.
            state: `[B]`, the state after those steps; it may hold derived fields of older weights.
            agent_info: `[B]`.
        """
        return state

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the outputs for one step of each row, and the new state. Differentiable; draws nothing for the action.

        Args:
            observation: `[B]`, the `env/` group: the fields named by `inputs`.
            state: `[B]`, as `initial_state` or the last call returned it.
            agent_info: `[B]`.
            taken: `[B]`, when learning: the stored `agent/` group, which forces internal choices such as options.

        Returns:
            The outputs `[B]` (what `act` and the losses need, such as `logits` and `value`) and the state `[B]`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Draw the action. `["action"]` goes to the environment; everything returned is kept under `agent/`.

        Args:
            outputs: `[B]`, from `forward`.
            agent_info: `[B]`; `deterministic` (bool), where present, asks for the mode instead of a draw.
            generator: the only source of randomness.
        """
        raise NotImplementedError(f"{type(self).__name__} has no act()")

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        """Return the state with what `act` drew for later steps (an option) written into it; by default, as it is.

        While acting, it follows `act`. While learning, `forward` itself has to return what it gives for `taken`.

        Args:
            state: `[B]`, the new state that `forward` returned.
            taken: `[B]`, what `act` returned.
        """
        return state

    def begin_piece(self, num_steps: int, agent_info: DictTensor, generator: torch.Generator) -> None:
        """Make ready for the steps of a piece; by default, do nothing.

        Called before each piece, perhaps for more steps than it will have. What an agent draws here for all of them,
        its `act_into` need not draw at every step. What is left at the next call must not be used: a run that is
        resumed begins here.

        Args:
            num_steps: calls of `act_into` that follow, at most.
            agent_info: `[B]`. What it holds may change from step to step, its keys do not.
            generator: the only source of randomness.
        """

    def act_into(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        generator: torch.Generator,
        out: Mapping[str, Tensor],
    ) -> DictTensor:
        """Do `forward`, `act` and `remember`, write what `act` returns into memory, and return the new state.

        What the rollout loop calls at every step. Override it only to save time: small policies pay more for the
        tensors in between than for their arithmetic.

        Args:
            observation: `[B]`, as for `forward`.
            state: `[B]`.
            agent_info: `[B]`.
            generator: the only source of randomness.
            out: `[B, ...]`, one for each key that `act` returns: overwritten.
        """
        outputs, state = self.forward(observation, state, agent_info)
        taken = self.act(outputs, agent_info, generator)
        for key, memory in out.items():
            memory.copy_(taken[key])
        return self.remember(state, taken)

    def actor(self) -> "Agent":
        """Return the agent that workers run: this one, or a view of the same parameters without what acting can spare.

        Its outputs must equal those of `forward`, as far as they go. A critic is a typical thing to leave out.
        """
        return self

    def forward_sequence(
        self,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return the outputs `[B, T]` of whole sequences, in time order, resetting the state where `is_first`.

        Override it where a sequence can be done in fewer calls (a fused GRU, a transformer).

        Args:
            observation: `[B, T]`, the `env/` group.
            state: `[B]`, the state each sequence begins with.
            agent_info: `[B]`; `[B, T]` where a sampler draws it for each episode.
            taken: `[B, T]`, the stored `agent/` group.
        """
        return step_through(self, observation, state, agent_info, taken)

    def forward_history(
        self,
        context: TemporalDictTensor,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return what `forward_sequence` does, for sequences that go on from `context`: with a `history_length`.

        Override it where context and sequence can be done in one call (a masked transformer).

        Args:
            context: `[B, C]`, as for `recall`.
            observation: `[B, T]`, the `env/` group.
            state: `[B]`, the state each sequence began with, without what `recall` adds.
            agent_info: `[B]`; `[B, T]` where a sampler draws it for each episode.
            taken: `[B, T]`, the stored `agent/` group.
        """
        recalled = self.recall(context, state, at_start(agent_info))
        return self.forward_sequence(observation, recalled, agent_info, taken)


class AgentMaker(Protocol):
    """How a batcher makes its agents: `make_agent(specs)`, picklable, the same parameters' shapes each time."""

    def __call__(self, specs: EnvSpecs) -> Agent:
        """Return a new agent for environments of these specs."""
        ...


class ActorCriticAgent(Agent):
    """What actor-critic losses need of an agent beyond the contract: `outputs["value"]` `[B]`, and these two.

    Attributes:
        return_normalizer: what brings returns to mean 0 and variance 1 for the critic; None, or not there, for
            nothing.
    """

    return_normalizer: ReturnNormalizer | None  # no value here: it would hide the module of that name

    def value_scale(self, outputs: DictTensor | TemporalDictTensor) -> Tensor | float:
        """Return what an error of the value counts in: the standard deviation of returns, or 1.

        Args:
            outputs: the agent's, `[...]`; where it is one number for each step, these are the steps.
        """
        normalizer = getattr(self, "return_normalizer", None)
        return 1.0 if normalizer is None else normalizer.scale

    def expand_value(self, value: Tensor) -> Tensor:
        """Return values `[N]` from what the critic's network puts out."""
        normalizer = getattr(self, "return_normalizer", None)
        return value if normalizer is None else normalizer.expand(value)

    def log_prob(self, outputs: DictTensor | TemporalDictTensor, taken: DictTensor | TemporalDictTensor) -> Tensor:
        """Return the log-probability under `outputs` of what was `taken` (a stored `agent/` group), `[...]`."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob()")

    def entropy(self, outputs: DictTensor | TemporalDictTensor) -> Tensor:
        """Return the policy's entropy in nats, `[...]`."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy()")


def log_prob_then(agent: ActorCriticAgent, taken: DictTensor | TemporalDictTensor) -> Tensor:
    """Return the log-probability of what was `taken` with the weights that acted, `[...]`; no network is run.

    Raises:
        AgentError: `act` did not keep what `log_prob` reads of the outputs.
    """
    try:
        return agent.log_prob(taken, taken)
    except MissingFieldError as error:
        name = type(agent).__name__
        raise AgentError(
            f"{name}.log_prob() of what was stored while acting: {error} {name}.act() has to return, beside the "
            "action, all that log_prob() reads of the outputs"
        ) from error


def at_start(agent_info: DictTensor | TemporalDictTensor) -> DictTensor:
    """Return the `agent_info` `[B]` with which sequences begin, of what they have, `[B]` or `[B, T]`."""
    if isinstance(agent_info, DictTensor):
        return agent_info
    return agent_info.at(0) if agent_info.max_length else DictTensor.empty(agent_info.batch_size)


def over_sequences(
    agent: Agent,
    context: TemporalDictTensor,
    observation: TemporalDictTensor,
    state: DictTensor,
    agent_info: DictTensor | TemporalDictTensor,
    taken: TemporalDictTensor | None,
) -> TemporalDictTensor:
    """Return an agent's outputs `[B, T]`: at once where it has a way that knows its `forward`, else step by step.

    Args:
        agent: any agent with a state.
        context: `[B, C]`, see `Agent.forward_history`.
        observation: `[B, T]`, the `env/` group.
        state: `[B]`, the state each sequence begins with.
        agent_info: `[B]`, or `[B, T]` where it changes from episode to episode.
        taken: `[B, T]`, the stored `agent/` group.
    """
    if agent.history_length and _is_of_one_piece(agent, "forward_history"):
        return agent.forward_history(context, observation, state, agent_info, taken)
    if agent.history_length:
        state = agent.recall(context, state, at_start(agent_info))
    run = agent.forward_sequence if _is_of_one_piece(agent, "forward_sequence") else partial(step_through, agent)
    return run(observation, state, agent_info, taken)


def _is_of_one_piece(agent: Agent, at_once: str) -> bool:
    """Return whether the method that does whole sequences `at_once` knows the agent's `forward`.

    A subclass that overrides `forward` alone would otherwise act in one way and learn in another.
    """
    order = type(agent).__mro__
    return _owner(order, at_once) <= _owner(order, "forward")


def _owner(order: Sequence[type], method: str) -> int:
    return next(place for place, kind in enumerate(order) if method in vars(kind))


def step_through(
    agent: Agent,
    observation: TemporalDictTensor,
    state: DictTensor,
    agent_info: DictTensor | TemporalDictTensor,
    taken: TemporalDictTensor | None,
) -> TemporalDictTensor:
    """Return an agent's outputs `[B, T]`, one call of `forward` a step, resetting its state where `is_first`.

    Args:
        agent: any agent.
        observation: `[B, T]`, the `env/` group.
        state: `[B]`, the state each sequence begins with.
        agent_info: `[B]`, or `[B, T]` where it changes from episode to episode.
        taken: `[B, T]`, the stored `agent/` group.
    """
    steps: list[DictTensor] = []
    for t in range(observation.max_length):
        seen = observation.at(t)
        info = agent_info if isinstance(agent_info, DictTensor) else agent_info.at(t)
        state = reset_state(agent, state, seen["is_first"], info)
        outputs, state = agent.forward(seen, state, info, None if taken is None else taken.at(t))
        steps.append(outputs)
    if not steps:
        return TemporalDictTensor({}, observation.lengths)
    fields = {key: torch.stack([step[key] for step in steps], dim=1) for key in steps[0]}
    return TemporalDictTensor.trusted(fields, observation.lengths, observation.max_length)


def reset_state(agent: Agent, state: DictTensor, is_first: Tensor, agent_info: DictTensor) -> DictTensor:
    """Return `state` with the rows that begin an episode replaced by the agent's initial state.

    The only place where states are reset: acting, replay and evaluation all come through here.

    Args:
        agent: the agent whose state it is.
        state: `[B]`.
        is_first: `[B]` bool.
        agent_info: `[B]`.
    """
    if state.is_empty or not may_be_any(is_first):
        return state
    initial = agent.initial_state(agent_info, state.batch_size)
    if not agent.history_length:
        return DictTensor.where(is_first, initial, state)
    derived = state.exclude(*initial)
    return DictTensor.where(is_first, initial, state.select(*initial)) | derived


def may_be_any(rows: Tensor) -> bool:
    """Return whether any of `rows` `[B]` bool may be true: on the CPU whether it is; elsewhere to ask means to wait."""
    return not rows.is_cpu or bool(rows.any())


def is_stateful(agent: Agent, agent_info: DictTensor | None = None) -> bool:
    """Return whether what the agent puts out depends on earlier steps: by a state, or by its history."""
    if agent.history_length:
        return True
    info = agent_info[:1] if agent_info is not None else DictTensor.empty(1)
    return not agent.initial_state(info, 1).is_empty


def state_specs(agent: Agent) -> dict[str, Spec]:
    """Return what the agent's state is made of, a row; nothing for a stateless agent."""
    state = agent.initial_state(DictTensor.empty(1), 1)
    return {key: Spec(tuple(value.shape[1:]), value.dtype) for key, value in state.items()}

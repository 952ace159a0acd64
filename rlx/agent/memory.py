"""What agents that look back share: what they see and remember of it; and the policy and critic of actor-critics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import ActorCriticAgent, Agent
from rlx.agent.heads import ActionHead
from rlx.agent.masking import ActionMasking
from rlx.agent.networks import Activation, Encoder, TwinMLP, linear
from rlx.agent.normalizer import ReturnNormalizer
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor


class MemoryAgent(Agent):
    """An agent over a memory of any kind, `memorise`, that puts out `fields`; both are a subclass's matter."""

    masking: ActionMasking
    encoder: Encoder

    def _make_inputs(
        self, specs: EnvSpecs, *, prev_action: bool, prev_reward: bool, normalize_observation: bool
    ) -> None:
        """Make the encoder of what the agent sees.

        Args:
            specs: what the environment shows and takes.
            prev_action: whether the agent sees the action before (zero at an episode's first step).
            prev_reward: whether the agent sees the reward before (zero at an episode's first step).
            normalize_observation: whether the observation is brought to mean 0 and variance 1.

        Raises:
            SpecError: the environment shows which actions are allowed in a form that does not fit them.
        """
        self.masking = ActionMasking(specs)
        seen = dict(specs.observation)
        if prev_action:
            seen |= {f"prev_{key}": spec for key, spec in specs.action.items()}
        if prev_reward:
            seen["prev_reward"] = Spec((), torch.float32)
        self.inputs = ("obs", *["prev_action"] * prev_action, *["prev_reward"] * prev_reward)
        self.encoder = Encoder(seen, normalize=normalize_observation)

    def memorise(self, seen: Tensor, state: DictTensor) -> tuple[Tensor, DictTensor]:
        """Return the memory's output `[B, H]` and the new state after one step.

        Args:
            seen: `[B, E]`, what the encoder made of the observation.
            state: `[B]`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no memorise()")

    def fields(self, seen: Tensor, hidden: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the outputs `[N, ...]`.

        Args:
            seen: `[N, E]`, what the encoder made of the observation.
            hidden: `[N, H]`, the memory's output then.
            mask: `[N, n]`, which actions are allowed; None where the environment does not show it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fields()")

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the outputs, and the new state."""
        seen = self.encoder(observation)
        hidden, new_state = self.memorise(seen, state)
        fields = self.fields(seen, hidden, self.masking.of(observation))
        return DictTensor.trusted(fields, observation.batch_size), new_state


class MemoryActorCritic(MemoryAgent, ActorCriticAgent):
    """An actor-critic over a memory of any kind; a kind of memory is a subclass.

    The policy is linear in what the memory puts out. The critic is a perceptron over what the agent sees and that, and
    sends no gradient into the memory: errors of the value, many times the policy's signal, would drown it. Outputs as
    those of `ActorCritic`: `value` `[B]` and the fields of the action's distributions, masked where the environment
    shows which actions are allowed.
    """

    def _make_outputs(
        self,
        specs: EnvSpecs,
        memory_size: int,
        *,
        critic_hidden_sizes: Sequence[int],
        activation: Activation,
        log_std_init: float,
        normalize_return: bool,
    ) -> None:
        """Make the policy and the critic, orthogonally initialised with gains of 0.01 and 1, biases zero.

        Args:
            specs: what the environment shows and takes.
            memory_size: width of the memory's output, H.
            critic_hidden_sizes: widths of the critic's hidden layers.
            activation: applied after each of them.
            log_std_init: initial log of the standard deviation of continuous actions, as a part of half the range.
            normalize_return: whether the critic learns returns in standard deviations from their mean.
        """
        self.return_normalizer = ReturnNormalizer() if normalize_return else None
        self.head = ActionHead(specs.action, log_std_init=log_std_init)
        self.policy = linear(memory_size, self.head.num_parameters, 0.01)
        self.critic = TwinMLP(
            self.encoder.num_features + memory_size,
            (1,),
            hidden_sizes=critic_hidden_sizes,
            activation=activation,
            output_gains=(1.0,),
        )

    def value(self, seen: Tensor, hidden: Tensor) -> Tensor:
        """Return the value `[N]` of what the encoder gave `[N, E]` and the memory's output then `[N, H]`."""
        return self.expand_value(self.critic(torch.cat([seen, hidden.detach()], dim=-1))[0][:, 0])

    def fields(self, seen: Tensor, hidden: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the distributions' fields and `value` `[N]`; see `MemoryAgent.fields`."""
        fields = self.head.fields(self.masking.apply(self.policy(hidden), mask))
        fields["value"] = self.value(seen, hidden)
        return fields

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Draw one action a row; rows whose `agent_info["deterministic"]` is true take the mode."""
        return DictTensor.trusted(self.head.sample(outputs, wants_mode(agent_info), generator), outputs.batch_size)

    def log_prob(self, outputs: DictTensor | TemporalDictTensor, taken: DictTensor | TemporalDictTensor) -> Tensor:
        """Return the log-probability of `taken` (a stored `agent/` group) under `outputs`, `[...]`."""
        return self.head.log_prob(outputs, taken)

    def entropy(self, outputs: DictTensor | TemporalDictTensor) -> Tensor:
        """Return the entropy of the policy in nats, `[...]`."""
        return self.head.entropy(outputs)

    def actor(self) -> Agent:
        """Return the policy and its memory alone."""
        return _Actor(self)


class _Actor(Agent):
    """The policy of an actor-critic with a memory, on the same parameters, without the critic."""

    def __init__(self, agent: MemoryActorCritic) -> None:
        super().__init__()
        self._agent = [agent]  # in a list, so that the parameters stay the agent's alone
        self.inputs, self.history_length = agent.inputs, agent.history_length

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        return self._agent[0].initial_state(agent_info, batch_size)

    def recall(self, context: TemporalDictTensor, state: DictTensor, agent_info: DictTensor) -> DictTensor:
        return self._agent[0].recall(context, state, agent_info)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        agent = self._agent[0]
        hidden, new_state = agent.memorise(agent.encoder(observation), state)
        parameters = agent.masking.apply(agent.policy(hidden), agent.masking.of(observation))
        return DictTensor.trusted(agent.head.fields(parameters), observation.batch_size), new_state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return self._agent[0].act(outputs, agent_info, generator)

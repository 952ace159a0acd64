"""Actor-critics with a memory: a GRU or an LSTM over what the agent sees."""

from collections.abc import Sequence
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import ActorCriticAgent, Agent
from rlx.agent.heads import ActionHead
from rlx.agent.networks import ACTIVATIONS, Activation, Encoder, TwinMLP
from rlx.agent.stretches import cut_at_resets
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor
from rlx.errors import AgentError, did_you_mean
from rlx.validate import Range


class RecurrentActorCritic(ActorCriticAgent):
    """What `GRUActorCritic` and `LSTMActorCritic` share: all but the recurrent cell.

    What the agent sees (the observation, and the previous action and reward where they are asked for) passes dense
    layers, then the cell; the policy is linear in its output. The critic is a perceptron over what the agent sees and
    the memory's output, and sends no gradient into the memory: errors of the value, many times the policy's signal,
    would drown it. Outputs as those of `ActorCritic`: `value` `[B]` and the fields of the action's distributions. The
    state is zero where an episode begins.

    Attributes:
        state_keys: the state's fields, `[B, H]` each; the first one is also the cell's output.
    """

    state_keys: tuple[str, ...] = ("hidden",)

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        state_size: Annotated[int, Range(1)],
        critic_hidden_sizes: Annotated[Sequence[int], Range(1)],
        prev_action: bool,
        prev_reward: bool,
        log_std_init: Annotated[float, Range(-5, 2)],
    ) -> None:
        """Build the networks, orthogonally initialised, biases zero: gain 0.01 for the policy, 1 for value and memory.

        Args:
            specs: what the environment shows and takes.
            hidden_sizes: widths of the dense layers before the cell, usually one of 64 to 256; may be empty.
            activation: applied after each dense layer.
            state_size: width of the memory, H, usually 64 to 512.
            critic_hidden_sizes: widths of the critic's hidden layers, usually two of 64 to 256.
            prev_action: whether the agent sees the action before (zero at an episode's first step).
            prev_reward: whether the agent sees the reward before (zero at an episode's first step).
            log_std_init: initial log of the standard deviation of continuous actions, as a part of half the action
                range; usually -1 to 0.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise AgentError(
                f"agent.activation: got {activation!r}, expected one of {', '.join(ACTIVATIONS)}."
                f"{did_you_mean(activation, ACTIVATIONS)}"
            )
        seen = dict(specs.observation)
        if prev_action:
            seen |= {f"prev_{key}": spec for key, spec in specs.action.items()}
        if prev_reward:
            seen["prev_reward"] = Spec((), torch.float32)
        self.inputs = ("obs", *["prev_action"] * prev_action, *["prev_reward"] * prev_reward)
        self.encoder = Encoder(seen)
        self.activation, gain = ACTIVATIONS[activation]
        sizes = [self.encoder.num_features, *hidden_sizes]
        self.layers = nn.ModuleList(
            [_linear(size, following, gain) for size, following in zip(sizes, hidden_sizes, strict=False)]
        )
        self.state_size = state_size
        self.memory = self.make_memory(sizes[-1], state_size)
        for name, parameter in self.memory.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                for gate in cast("tuple[Tensor, ...]", parameter.detach().split(state_size)):
                    nn.init.orthogonal_(gate)
        self.head = ActionHead(specs.action, log_std_init=log_std_init)
        self.policy = _linear(state_size, self.head.num_parameters, 0.01)
        self.critic = TwinMLP(
            self.encoder.num_features + state_size,
            (1,),
            hidden_sizes=critic_hidden_sizes,
            activation=activation,
            output_gains=(1.0,),
        )

    def make_memory(self, input_size: int, state_size: int) -> nn.RNNBase:
        """Return the recurrent network of one layer."""
        raise NotImplementedError(f"{type(self).__name__} has no make_memory()")

    def step(self, features: Tensor, state: DictTensor) -> tuple[Tensor, ...]:
        """Return the new state's fields `[B, H]`, one cell step after features `[B, I]`."""
        raise NotImplementedError(f"{type(self).__name__} has no step()")

    def run(self, features: Tensor | PackedSequence, state: DictTensor) -> Tensor | PackedSequence:
        """Return the memory's outputs for whole sequences: `[B, T, H]` for `[B, T, I]`, or packed for packed."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return a state of zeros, `[B, H]` a key."""
        weight = self.policy.weight
        fields = {key: weight.new_zeros(batch_size, self.state_size) for key in self.state_keys}
        return DictTensor.trusted(fields, batch_size)

    def features(self, seen: Tensor) -> Tensor:
        """Return what goes into the memory, `[N, I]`, from what the encoder made of an observation, `[N, E]`."""
        for layer in self.layers:
            seen = self.activation(layer(seen))
        return seen

    def value(self, seen: Tensor, hidden: Tensor) -> Tensor:
        """Return the value `[N]` of what the encoder gave `[N, E]` and the memory's output then `[N, H]`."""
        return self.critic(torch.cat([seen, hidden.detach()], dim=-1))[0][:, 0]

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the distributions' fields and `value` `[B]`, and the new state."""
        seen = self.encoder(observation)
        new_state = self.step(self.features(seen), state)
        fields = self.head.fields(self.policy(new_state[0]))
        fields["value"] = self.value(seen, new_state[0])
        size = observation.batch_size
        named = dict(zip(self.state_keys, new_state, strict=True))
        return DictTensor.trusted(fields, size), DictTensor.trusted(named, size)

    def forward_sequence(
        self,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return the outputs `[B, T]` of whole sequences by one call of the fused network, however many resets."""
        size, length = observation.leading_shape
        if not size * length:
            return super().forward_sequence(observation, state, agent_info, taken)
        is_first = observation["is_first"]
        given = {key: observation[key].flatten(0, 1) for key in self.encoder.specs}
        seen = self.encoder(DictTensor.trusted(given, size * length))
        features = self.features(seen)
        initial = self.initial_state(agent_info, size)
        stretches = cut_at_resets(is_first, observation.mask())
        if stretches is None:
            begun = DictTensor.where(is_first[:, 0], initial, state)
            hidden = cast("Tensor", self.run(features.view(size, length, -1), begun)).reshape(size * length, -1)
        else:
            begun = DictTensor.where(stretches.begins_episode, initial[stretches.row], state[stretches.row])
            packed = self.run(PackedSequence(features[stretches.place], stretches.counts), begun)
            outputs = cast("PackedSequence", packed).data
            hidden = outputs.new_zeros(size * length, self.state_size).index_copy(0, stretches.place, outputs)
        fields = self.head.fields(self.policy(hidden))
        fields["value"] = self.value(seen, hidden)
        in_time = {key: field.view(size, length, *field.shape[1:]) for key, field in fields.items()}
        return TemporalDictTensor.trusted(in_time, observation.lengths, length)

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


class GRUActorCritic(RecurrentActorCritic):
    """An actor-critic over a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078). State: `hidden` `[B, H]`."""

    def make_memory(self, input_size: int, state_size: int) -> nn.RNNBase:
        """Return the GRU."""
        return nn.GRU(input_size, state_size, batch_first=True)

    def step(self, features: Tensor, state: DictTensor) -> tuple[Tensor, ...]:
        """Return the new `hidden`."""
        return (torch.gru_cell(features, state["hidden"], *self.memory.all_weights[0]),)

    def run(self, features: Tensor | PackedSequence, state: DictTensor) -> Tensor | PackedSequence:
        """Return `hidden` at every step."""
        return self.memory(features, state["hidden"].unsqueeze(0))[0]


class LSTMActorCritic(RecurrentActorCritic):
    """An actor-critic over a long short-term memory (Hochreiter and Schmidhuber 1997).

    State: `hidden` and `cell`, `[B, H]` each.
    """

    state_keys = ("hidden", "cell")

    def make_memory(self, input_size: int, state_size: int) -> nn.RNNBase:
        """Return the LSTM."""
        return nn.LSTM(input_size, state_size, batch_first=True)

    def step(self, features: Tensor, state: DictTensor) -> tuple[Tensor, ...]:
        """Return the new `hidden` and `cell`."""
        return torch.lstm_cell(features, (state["hidden"], state["cell"]), *self.memory.all_weights[0])

    def run(self, features: Tensor | PackedSequence, state: DictTensor) -> Tensor | PackedSequence:
        """Return `hidden` at every step."""
        return self.memory(features, (state["hidden"].unsqueeze(0), state["cell"].unsqueeze(0)))[0]


class _Actor(Agent):
    """The policy of a recurrent actor-critic, on the same parameters, without the critic."""

    def __init__(self, agent: RecurrentActorCritic) -> None:
        super().__init__()
        self._agent = [agent]  # in a list, so that the parameters stay the agent's alone
        self.inputs = agent.inputs

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        return self._agent[0].initial_state(agent_info, batch_size)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        agent, size = self._agent[0], observation.batch_size
        new_state = agent.step(agent.features(agent.encoder(observation)), state)
        fields = agent.head.fields(agent.policy(new_state[0]))
        named = dict(zip(agent.state_keys, new_state, strict=True))
        return DictTensor.trusted(fields, size), DictTensor.trusted(named, size)

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return self._agent[0].act(outputs, agent_info, generator)


def _linear(num_inputs: int, num_outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer

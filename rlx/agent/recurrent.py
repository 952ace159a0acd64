"""Actor-critics with a memory: a GRU or an LSTM over what the agent sees."""

from collections.abc import Sequence
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rlx.agent.memory import MemoryActorCritic
from rlx.agent.networks import Activation, linear
from rlx.agent.stretches import cut_at_resets
from rlx.data import DictTensor, EnvSpecs, TemporalDictTensor
from rlx.validate import Range


class RecurrentActorCritic(MemoryActorCritic):
    """What `GRUActorCritic` and `LSTMActorCritic` share: all but the recurrent cell.

    What the agent sees (the observation, and the previous action and reward where they are asked for) passes dense
    layers, then the cell; policy and critic are those of `MemoryActorCritic`. The state is zero where an episode
    begins.

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
        gain = self._make_inputs(specs, activation=activation, prev_action=prev_action, prev_reward=prev_reward)
        sizes = [self.encoder.num_features, *hidden_sizes]
        self.layers = nn.ModuleList(
            [linear(size, following, gain) for size, following in zip(sizes, hidden_sizes, strict=False)]
        )
        self.state_size = state_size
        self.memory = self.make_memory(sizes[-1], state_size)
        for name, parameter in self.memory.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                for gate in cast("tuple[Tensor, ...]", parameter.detach().split(state_size)):
                    nn.init.orthogonal_(gate)
        self._make_outputs(
            specs,
            state_size,
            critic_hidden_sizes=critic_hidden_sizes,
            activation=activation,
            log_std_init=log_std_init,
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

    def memorise(self, seen: Tensor, state: DictTensor) -> tuple[Tensor, DictTensor]:
        """Return the cell's output `[B, H]` and the new state after one step."""
        new_state = self.step(self.features(seen), state)
        named = dict(zip(self.state_keys, new_state, strict=True))
        return new_state[0], DictTensor.trusted(named, state.batch_size)

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
        mask = self.masking.of(observation)
        fields = self.fields(seen, hidden, None if mask is None else mask.flatten(0, 1))
        in_time = {key: field.view(size, length, *field.shape[1:]) for key, field in fields.items()}
        return TemporalDictTensor.trusted(in_time, observation.lengths, length)


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

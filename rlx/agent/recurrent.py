"""Agents with a memory, a GRU or an LSTM over what they see: actor-critics and Q-networks."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from rlx.agent.memory import MemoryActorCritic, MemoryAgent
from rlx.agent.networks import Activation
from rlx.agent.q_network import QAgent, QHead, number_of_actions
from rlx.agent.recurrence import Cell, Recurrence
from rlx.data import DictTensor, EnvSpecs, TemporalDictTensor
from rlx.validate import Range


class RecurrentAgent(MemoryAgent):
    """An agent whose memory is a `Recurrence`; what it puts out is a subclass's matter.

    What the agent sees (the observation, and the previous action and reward where they are asked for) passes dense
    layers, then the cell. The state is zero where an episode begins.

    Attributes:
        memory: dense layers and the cell. Its `state_keys` are the state's fields, `[B, H]` each.
    """

    memory: Recurrence

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return a state of zeros, `[B, H]` a key."""
        return self.memory.initial_state(batch_size)

    def memorise(self, seen: Tensor, state: DictTensor) -> tuple[Tensor, DictTensor]:
        """Return the cell's output `[B, H]` and the new state after one step."""
        return self.memory(seen, state)

    def forward_sequence(
        self,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return the outputs `[B, T]` of whole sequences by one call of the fused network, however many resets."""
        size, length = observation.leading_shape
        if not size * length:
            return super().forward_sequence(observation, state, agent_info, taken)
        given = {key: observation[key].flatten(0, 1) for key in self.encoder.specs}
        seen = self.encoder(DictTensor.trusted(given, size * length))
        hidden = self.memory.sequence(seen, observation["is_first"], observation.mask(), state)
        mask = self.masking.of(observation)
        fields = self.fields(seen, hidden, None if mask is None else mask.flatten(0, 1))
        in_time = {key: field.view(size, length, *field.shape[1:]) for key, field in fields.items()}
        return TemporalDictTensor.trusted(in_time, observation.lengths, length)


class RecurrentActorCritic(RecurrentAgent, MemoryActorCritic):
    """What `GRUActorCritic` and `LSTMActorCritic` share: policy and critic are those of `MemoryActorCritic`."""

    cell: Cell

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
        normalize_observation: bool = False,
        normalize_return: bool = False,
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
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.
            normalize_return: whether the critic learns returns in standard deviations from their mean.
        """
        super().__init__()
        self._make_inputs(
            specs, prev_action=prev_action, prev_reward=prev_reward, normalize_observation=normalize_observation
        )
        self.memory = Recurrence(
            self.encoder.num_features,
            hidden_sizes=hidden_sizes,
            activation=activation,
            state_size=state_size,
            cell=self.cell,
        )
        self._make_outputs(
            specs,
            state_size,
            critic_hidden_sizes=critic_hidden_sizes,
            activation=activation,
            log_std_init=log_std_init,
            normalize_return=normalize_return,
        )


class GRUActorCritic(RecurrentActorCritic):
    """An actor-critic over a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078). State: `hidden` `[B, H]`."""

    cell = "gru"


class LSTMActorCritic(RecurrentActorCritic):
    """An actor-critic over a long short-term memory (Hochreiter and Schmidhuber 1997).

    State: `hidden` and `cell`, `[B, H]` each.
    """

    cell = "lstm"


class RecurrentQNetwork(RecurrentAgent, QAgent):
    """A Q-network over a memory, as in R2D2 (Kapturowski et al. 2019). State: `hidden`, of an LSTM also `cell`."""

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        cell: Cell,
        state_size: Annotated[int, Range(1)],
        head_size: Annotated[int, Range(1)],
        prev_action: bool,
        prev_reward: bool,
        dueling: bool,
        num_quantiles: Annotated[int, Range(0)],
        normalize_observation: bool = False,
    ) -> None:
        """Build the network, orthogonally initialised, biases zero.

        Args:
            specs: what the environment shows and takes: one action out of n.
            hidden_sizes: widths of the dense layers before the cell, usually one of 64 to 256; may be empty.
            activation: applied after each dense layer, usually relu.
            cell: which kind of recurrent network.
            state_size: width of the memory, H, usually 64 to 512.
            head_size: width of the hidden layer after it; where it is dueling, that of each of the two streams.
            prev_action: whether the agent sees the action before (zero at an episode's first step).
            prev_reward: whether the agent sees the reward before (zero at an episode's first step).
            dueling: whether a state's value and its actions' advantages are learned apart.
            num_quantiles: quantiles of the return that are learned, usually 32 to 200; 0 for the expected return alone.
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.

        Raises:
            AgentError: the action is not one out of n.
        """
        super().__init__()
        num_actions = number_of_actions(specs, "a Q-network")
        self._make_inputs(
            specs, prev_action=prev_action, prev_reward=prev_reward, normalize_observation=normalize_observation
        )
        self.memory = Recurrence(
            self.encoder.num_features,
            hidden_sizes=hidden_sizes,
            activation=activation,
            state_size=state_size,
            cell=cell,
        )
        self.head = QHead(
            state_size,
            num_actions,
            hidden_size=head_size,
            activation=activation,
            dueling=dueling,
            num_quantiles=num_quantiles,
        )

    def fields(self, seen: Tensor, hidden: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return `q` `[N, n]` (and `quantiles`) of the memory's output `[N, H]`."""
        outputs = self.head(hidden)
        outputs["q"] = self.masking.apply(outputs["q"], mask)
        return outputs

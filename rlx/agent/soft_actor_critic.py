"""The ready-made agents of SAC: a squashed Gaussian policy and twin critics of actions, with a memory or without."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import Agent
from rlx.agent.networks import Activation, Encoder, TwinMLP, activation_of, linear
from rlx.agent.normalizer import full_precision
from rlx.agent.recurrence import Cell, Recurrence
from rlx.agent.recurrent import RecurrentAgent
from rlx.agent.squashed_gaussian import SquashedGaussian
from rlx.agent.told import flags, indices
from rlx.data import DictTensor, EnvSpecs, TemporalDictTensor
from rlx.errors import AgentError
from rlx.validate import Range


class SkillEncoder(nn.Module):
    """What is seen as one vector, followed by the skill that is played, one-hot encoded, where there are skills.

    Attributes:
        num_features: length of the vector, F.
    """

    def __init__(self, specs: EnvSpecs, num_skills: int, *, normalize: bool) -> None:
        """Build the encoder; `num_skills` is 0 for none; see `Encoder` for `normalize`."""
        super().__init__()
        self.observation = Encoder(specs.observation, normalize=normalize)
        self.num_skills = num_skills
        self.num_features = self.observation.num_features + num_skills

    def forward(self, observation: DictTensor, agent_info: DictTensor) -> Tensor:
        """Return the vectors `[B, F]`; the skill is `agent_info["skill"]` `[B]` int64, and 0 where nobody says."""
        seen = self.observation(observation)
        if not self.num_skills:
            return seen
        skill = indices(agent_info, "skill")
        if skill is None:
            skill = torch.zeros(observation.batch_size, dtype=torch.int64, device=seen.device)
        try:
            played = F.one_hot(skill, self.num_skills)
        except RuntimeError:  # on the CPU, where torch looks
            got = " to ".join(map(str, sorted({int(skill.min()), int(skill.max())})))
            raise AgentError(f"agent_info['skill']: got {got}, expected 0 to {self.num_skills - 1}") from None
        return torch.cat([seen, played.to(seen.dtype)], dim=-1)


class Critics(Agent):
    """Two critics of actions as one batched network; what they know besides the action is a subclass's matter.

    An agent of its own, so that what it remembers, if anything, is replayed like an agent's. Outputs: `features`
    `[B, F]`, what the critics know besides the action.

    Attributes:
        network: from F features and n action places to a value, twice.
    """

    network: TwinMLP

    def _make_network(
        self, num_features: int, num_actions: int, hidden_sizes: Sequence[int], activation: Activation
    ) -> None:
        self.network = TwinMLP(
            num_features + num_actions,
            (1, 1),
            hidden_sizes=hidden_sizes,
            activation=activation,
            output_gains=(1.0, 1.0),
        )

    def q(self, features: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """Return both critics' values `[2, ...]` of actions.

        Args:
            features: `[..., F]`.
            action: `[..., n]`, in [-1, 1].
            frozen: whether gradients go to the action alone.
        """
        seen = torch.cat([features, action], dim=-1)
        first, second = self.network(seen.flatten(0, -2), frozen=frozen)
        return full_precision(torch.stack([first, second])).view(2, *action.shape[:-1])


class DenseCritics(Critics):
    """Critics that know what is seen, and the skill that is played."""

    def __init__(
        self,
        specs: EnvSpecs,
        num_actions: int,
        *,
        hidden_sizes: Sequence[int],
        activation: Activation,
        num_skills: int,
        normalize_observation: bool,
    ) -> None:
        """Build the networks; arguments as those of `SoftActorCritic`."""
        super().__init__()
        self.encoder = SkillEncoder(specs, num_skills, normalize=normalize_observation)
        self._make_network(self.encoder.num_features, num_actions, hidden_sizes, activation)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `features` `[B, F]`, and the empty state."""
        return DictTensor.trusted({"features": self.encoder(observation, agent_info)}, observation.batch_size), state


class RecurrentCritics(RecurrentAgent, Critics):
    """Critics that know what is seen and what a memory holds of all before; they train the memory."""

    def __init__(
        self,
        specs: EnvSpecs,
        num_actions: int,
        *,
        memory_hidden_sizes: Sequence[int],
        cell: Cell,
        state_size: int,
        hidden_sizes: Sequence[int],
        activation: Activation,
        prev_action: bool,
        prev_reward: bool,
        normalize_observation: bool,
    ) -> None:
        """Build the networks; arguments as those of `RecurrentSoftActorCritic`."""
        super().__init__()
        self._make_inputs(
            specs, prev_action=prev_action, prev_reward=prev_reward, normalize_observation=normalize_observation
        )
        self.memory = Recurrence(
            self.encoder.num_features,
            hidden_sizes=memory_hidden_sizes,
            activation=activation,
            state_size=state_size,
            cell=cell,
        )
        self._make_network(self.encoder.num_features + state_size, num_actions, hidden_sizes, activation)

    def fields(self, seen: Tensor, hidden: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return `features` `[N, E + H]`."""
        return {"features": torch.cat([seen, hidden], dim=-1)}


class SoftActorCriticAgent(Agent):
    """What SAC's loss needs of an agent: a stochastic policy for continuous actions, its critics, its temperature.

    Outputs: `mean` and `log_std` `[B, n]` of the normal numbers that are squashed into the actions' bounds. Stored:
    `action` as the environment gets it.

    Attributes:
        distribution: squashes them.
        critics: what values actions.
        log_temperature: log of the weight of the entropy, 0-dimensional.
    """

    distribution: SquashedGaussian
    critics: Critics
    log_temperature: nn.Parameter

    def _make_policy(
        self, num_features: int, hidden_sizes: Sequence[int], activation: Activation, temperature_init: float
    ) -> None:
        self.activation, gain = activation_of(activation)
        sizes = [num_features, *hidden_sizes]
        self.layers = nn.ModuleList(
            [linear(size, width, gain) for size, width in zip(sizes, hidden_sizes, strict=False)]
        )
        self.policy = linear(sizes[-1], 2 * self.distribution.size, 0.01)
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature_init)).log())

    def _policy_fields(self, features: Tensor) -> dict[str, Tensor]:
        """Return `mean` and `log_std` `[N, n]` for features `[N, F]`."""
        for layer in self.layers:
            features = self.activation(layer(features))
        mean, log_std = self.distribution.split(self.policy(features))
        return {"mean": mean, "log_std": log_std}

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Draw an action; rows whose `agent_info["deterministic"]` is true take tanh of the mean.

        Rows whose `agent_info["random"]` is true draw evenly from the box: for the first steps of a run.
        """
        action = self.distribution.draw(outputs["mean"], outputs["log_std"], generator)
        deterministic = wants_mode(agent_info)
        if deterministic is not None:
            action = torch.where(deterministic.unsqueeze(-1), outputs["mean"].tanh(), action)
        random = flags(agent_info, "random")
        if random is not None:
            even = torch.empty_like(action).uniform_(-1, 1, generator=generator)
            action = torch.where(random.unsqueeze(-1), even, action)
        return DictTensor.trusted({"action": self.distribution.to_space(action)}, outputs.batch_size)


class SoftActorCritic(SoftActorCriticAgent):
    """A stateless policy over dense layers, with critics of that kind."""

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        temperature_init: Annotated[float, Range(0, low_open=True)],
        num_skills: Annotated[int, Range(0)],
        normalize_observation: bool = False,
    ) -> None:
        """Build the networks, orthogonally initialised, biases zero.

        Args:
            specs: what the environment shows and takes: one continuous action with finite bounds.
            hidden_sizes: widths of the hidden layers of the policy and of each critic, usually two of 256.
            activation: applied after each hidden layer, usually relu.
            temperature_init: weight of the entropy at first, usually 0.1 to 1.
            num_skills: how many skills it can play, by `agent_info["skill"]`, usually 4 to 50; 0 for a policy without.
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.

        Raises:
            AgentError: the action is something else.
        """
        super().__init__()
        self.distribution = SquashedGaussian(specs)
        self.encoder = SkillEncoder(specs, num_skills, normalize=normalize_observation)
        self._make_policy(self.encoder.num_features, hidden_sizes, activation, temperature_init)
        self.critics = DenseCritics(
            specs,
            self.distribution.size,
            hidden_sizes=hidden_sizes,
            activation=activation,
            num_skills=num_skills,
            normalize_observation=normalize_observation,
        )

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `mean` and `log_std` `[B, n]`, and the empty state."""
        fields = self._policy_fields(self.encoder(observation, agent_info))
        return DictTensor.trusted(fields, observation.batch_size), state


class RecurrentSoftActorCritic(SoftActorCriticAgent):
    """A policy and critics over one memory, which the critics alone train (as SAC from pixels trains its encoder).

    State: `hidden` `[B, H]`, of an LSTM also `cell`.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        memory_hidden_sizes: Annotated[Sequence[int], Range(1)],
        cell: Cell,
        state_size: Annotated[int, Range(1)],
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        temperature_init: Annotated[float, Range(0, low_open=True)],
        prev_action: bool,
        prev_reward: bool,
        normalize_observation: bool = False,
    ) -> None:
        """Build the networks, orthogonally initialised, biases zero.

        Args:
            specs: what the environment shows and takes: one continuous action with finite bounds.
            memory_hidden_sizes: widths of the dense layers before the cell, usually one of 64 to 256; may be empty.
            cell: which kind of recurrent network.
            state_size: width of the memory, H, usually 64 to 256.
            hidden_sizes: widths of the hidden layers of the policy and of each critic, usually two of 256.
            activation: applied after each dense layer, usually relu.
            temperature_init: weight of the entropy at first, usually 0.1 to 1.
            prev_action: whether the agent sees the action before (zero at an episode's first step).
            prev_reward: whether the agent sees the reward before (zero at an episode's first step).
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.

        Raises:
            AgentError: the action is something else.
        """
        super().__init__()
        self.distribution = SquashedGaussian(specs)
        critics = RecurrentCritics(
            specs,
            self.distribution.size,
            memory_hidden_sizes=memory_hidden_sizes,
            cell=cell,
            state_size=state_size,
            hidden_sizes=hidden_sizes,
            activation=activation,
            prev_action=prev_action,
            prev_reward=prev_reward,
            normalize_observation=normalize_observation,
        )
        self.critics, self.inputs = critics, critics.inputs
        self._make_policy(critics.encoder.num_features + state_size, hidden_sizes, activation, temperature_init)

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return a state of zeros, `[B, H]` a key."""
        return self.critics.initial_state(agent_info, batch_size)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `mean` and `log_std` `[B, n]`, and the new state."""
        known, new_state = self.critics.forward(observation, state, agent_info)
        fields = self._policy_fields(known["features"].detach())
        return DictTensor.trusted(fields, observation.batch_size), new_state

    def forward_sequence(
        self,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return `mean` and `log_std` `[B, T, n]` of whole sequences by one call of the memory."""
        size, length = observation.leading_shape
        known = self.critics.forward_sequence(observation, state, agent_info)
        fields = self._policy_fields(known["features"].detach().flatten(0, 1))
        in_time = {key: field.view(size, length, -1) for key, field in fields.items()}
        return TemporalDictTensor.trusted(in_time, observation.lengths, length)

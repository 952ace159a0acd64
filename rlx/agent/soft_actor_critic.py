"""The ready-made agent of SAC: a squashed Gaussian policy and twin critics of actions."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import Agent
from rlx.agent.networks import Activation, Encoder, TwinMLP, activation_of, linear
from rlx.agent.squashed_gaussian import SquashedGaussian
from rlx.data import DictTensor, EnvSpecs
from rlx.validate import Range


class SkillEncoder(nn.Module):
    """What is seen as one vector, followed by the skill that is played, one-hot encoded, where there are skills.

    Attributes:
        num_features: length of the vector, F.
    """

    def __init__(self, specs: EnvSpecs, num_skills: int) -> None:
        """Build the encoder; `num_skills` is 0 for none."""
        super().__init__()
        self.observation = Encoder(specs.observation)
        self.num_skills = num_skills
        self.num_features = self.observation.num_features + num_skills

    def forward(self, observation: DictTensor, agent_info: DictTensor) -> Tensor:
        """Return the vectors `[B, F]`; the skill is `agent_info["skill"]` `[B]` int64, and 0 where nobody says."""
        seen = self.observation(observation)
        if not self.num_skills:
            return seen
        size = observation.batch_size
        skill = (
            agent_info["skill"] if "skill" in agent_info else torch.zeros(size, dtype=torch.int64, device=seen.device)
        )
        return torch.cat([seen, F.one_hot(skill, self.num_skills).to(seen.dtype)], dim=-1)


class Critics(Agent):
    """Two critics of actions as one batched network.

    An agent of its own, so that what it remembers, if anything, is replayed like an agent's. Outputs: `features`
    `[B, F]`, what the critics know besides the action.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        num_actions: int,
        *,
        hidden_sizes: Sequence[int],
        activation: Activation,
        num_skills: int,
    ) -> None:
        """Build the networks; arguments as those of `SoftActorCritic`."""
        super().__init__()
        self.encoder = SkillEncoder(specs, num_skills)
        self.network = TwinMLP(
            self.encoder.num_features + num_actions,
            (1, 1),
            hidden_sizes=hidden_sizes,
            activation=activation,
            output_gains=(1.0, 1.0),
        )

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `features` `[B, F]`, and the empty state."""
        return DictTensor.trusted({"features": self.encoder(observation, agent_info)}, observation.batch_size), state

    def q(self, features: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """Return both critics' values `[2, ...]` of actions.

        Args:
            features: `[..., F]`.
            action: `[..., n]`, in [-1, 1].
            frozen: whether gradients go to the action alone.
        """
        seen = torch.cat([features, action], dim=-1)
        first, second = self.network(seen.flatten(0, -2), frozen=frozen)
        return torch.stack([first, second]).view(2, *action.shape[:-1])


class SoftActorCritic(Agent):
    """A stateless stochastic policy for continuous actions, with its critics and its temperature.

    Outputs: `mean` and `log_std` `[B, n]` of the normal numbers that are squashed into the actions' bounds. Stored:
    `action` as the environment gets it.

    Attributes:
        critics: what values actions.
        log_temperature: log of the weight of the entropy, 0-dimensional.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        temperature_init: Annotated[float, Range(0, low_open=True)],
        num_skills: Annotated[int, Range(0)],
    ) -> None:
        """Build the networks, orthogonally initialised, biases zero.

        Args:
            specs: what the environment shows and takes: one continuous action with finite bounds.
            hidden_sizes: widths of the hidden layers of the policy and of each critic, usually two of 256.
            activation: applied after each hidden layer, usually relu.
            temperature_init: weight of the entropy at first, usually 0.1 to 1.
            num_skills: how many skills it can play, by `agent_info["skill"]`, usually 4 to 50; 0 for a policy without.

        Raises:
            AgentError: the action is something else.
        """
        super().__init__()
        self.distribution = SquashedGaussian(specs)
        self.encoder = SkillEncoder(specs, num_skills)
        self.activation, gain = activation_of(activation)
        sizes = [self.encoder.num_features, *hidden_sizes]
        self.layers = nn.ModuleList(
            [linear(size, width, gain) for size, width in zip(sizes, hidden_sizes, strict=False)]
        )
        self.policy = linear(sizes[-1], 2 * self.distribution.size, 0.01)
        self.critics = Critics(
            specs, self.distribution.size, hidden_sizes=hidden_sizes, activation=activation, num_skills=num_skills
        )
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature_init)).log())

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `mean` and `log_std` `[B, n]`, and the empty state."""
        hidden = self.encoder(observation, agent_info)
        for layer in self.layers:
            hidden = self.activation(layer(hidden))
        mean, log_std = self.distribution.split(self.policy(hidden))
        return DictTensor.trusted({"mean": mean, "log_std": log_std}, observation.batch_size), state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Draw an action; rows whose `agent_info["deterministic"]` is true take tanh of the mean.

        Rows whose `agent_info["random"]` is true draw evenly from the box: for the first steps of a run.
        """
        action, _ = self.distribution.sample(outputs["mean"], outputs["log_std"], generator)
        deterministic = wants_mode(agent_info)
        if deterministic is not None:
            action = torch.where(deterministic.unsqueeze(-1), outputs["mean"].tanh(), action)
        if "random" in agent_info:
            even = torch.empty_like(action).uniform_(-1, 1, generator=generator)
            action = torch.where(agent_info["random"].unsqueeze(-1), even, action)
        return DictTensor.trusted({"action": self.distribution.to_space(action)}, outputs.batch_size)

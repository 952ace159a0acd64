"""The ready-made actor-critic: any mix of discrete and continuous actions over multi-layer perceptrons."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from rlx.agent.agent import ActorCriticAgent, Agent
from rlx.agent.distribution import Categorical
from rlx.agent.heads import ActionHead
from rlx.agent.masking import ActionMasking, apply_mask_
from rlx.agent.networks import Activation, Encoder, TwinMLP
from rlx.agent.normalizer import ReturnNormalizer
from rlx.agent.told import flags
from rlx.data import DictTensor, EnvSpecs, TemporalDictTensor
from rlx.validate import Range


class ActorCritic(ActorCriticAgent):
    """A stateless policy and its value function, two perceptrons of one shape run as one batched network.

    Outputs: `value` `[B]`, and for each action key the fields of its distribution: `logits` (discrete, multi-discrete,
    multi-binary), or `mean` and `log_std` (continuous; `log_std` is a free parameter, the same in every state).
    Where the environment shows which actions are allowed, `logits` are masked at the others; see `rlx.agent.masking`.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        log_std_init: Annotated[float, Range(-5, 2)],
        normalize_observation: bool = False,
        normalize_return: bool = False,
    ) -> None:
        """Build the networks, orthogonally initialised: gain sqrt(2) inside, 0.01 for the policy, 1 for the value.

        Args:
            specs: what the environment shows and takes.
            hidden_sizes: widths of the hidden layers, usually two of 64 to 256.
            activation: applied after each hidden layer.
            log_std_init: initial log of the standard deviation of continuous actions, as a part of half the action
                range; usually -1 to 0.
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.
            normalize_return: whether the critic learns returns in standard deviations from their mean.

        Raises:
            SpecError: the environment shows which actions are allowed in a form that does not fit them.
        """
        super().__init__()
        self.masking = ActionMasking(specs)
        head = ActionHead(specs.action, log_std_init=log_std_init)
        self.encoder = Encoder(specs.observation, normalize=normalize_observation)
        self.return_normalizer = ReturnNormalizer() if normalize_return else None
        self.network = TwinMLP(
            self.encoder.num_features,
            (head.num_parameters, 1),
            hidden_sizes=hidden_sizes,
            activation=activation,
            output_gains=(0.01, 1.0),
        )
        self.head = head

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the distributions' fields and `value` `[B]`, and the empty state."""
        parameters, value = self.network(self.encoder(observation))
        fields = self.head.fields(self.masking.apply(parameters, self.masking.of(observation)))
        fields["value"] = self.expand_value(value[:, 0])
        return DictTensor.trusted(fields, observation.batch_size), state

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
        """Return the policy alone: acting has no use for the value."""
        return _Actor(self)


def wants_mode(agent_info: DictTensor) -> Tensor | None:
    """Return `agent_info["deterministic"]`, `[B]` bool: the rows that take the mode; None where nobody asks for it."""
    return flags(agent_info, "deterministic")


class _Actor(Agent):
    """The policy of an `ActorCritic`, on the same parameters; for a single discrete action, with nothing in between."""

    def __init__(self, agent: ActorCritic) -> None:
        super().__init__()
        self._agent = [agent]  # in a list, so that the parameters stay the agent's alone
        self._policy = agent.network.single(0)
        self._encoder, self._plain = agent.encoder.forward, agent.encoder.is_plain
        only = agent.head.distributions[0]
        self._only = only if len(agent.head.distributions) == 1 and isinstance(only, Categorical) else None
        self._mask_key = agent.masking.key
        self._draws = torch.empty(0)
        self._races: list[Tensor] = []  # its views, a step each
        self._coming: Iterator[Tensor] = iter(())  # those of the piece's steps to come
        self._may_want_mode = True

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        agent = self._agent[0]
        parameters = self._policy(self._encoder(observation))
        fields = agent.head.fields(agent.masking.apply(parameters, agent.masking.of(observation)))
        return DictTensor.trusted(fields, observation.batch_size), state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return self._agent[0].act(outputs, agent_info, generator)

    def act_into(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        generator: torch.Generator,
        out: Mapping[str, Tensor],
    ) -> DictTensor:
        only = self._only
        if only is None:
            return super().act_into(observation, state, agent_info, generator, out)
        logits = out["logits"]
        self._policy(observation["obs"] if self._plain else self._encoder(observation), logits)
        if self._mask_key is not None:
            apply_mask_(logits, observation[self._mask_key])
        race = next(self._coming, None)
        if race is None:
            self.begin_piece(1, agent_info, generator)
            race = next(self._coming)
        only.decide(logits, wants_mode(agent_info) if self._may_want_mode else None, race, out["action"])
        return state

    def begin_piece(self, num_steps: int, agent_info: DictTensor, generator: torch.Generator) -> None:
        """Draw what all steps need: for one step, the generator takes as long as a layer of a small network."""
        if self._only is None:
            return
        shape = (num_steps, agent_info.batch_size, self._only.num_parameters)
        if self._draws.shape != shape:
            with torch.inference_mode(False):
                self._draws = torch.empty(shape, device=next(self._agent[0].parameters()).device)
                self._races = list(self._draws.unbind(0))
        self._only.race(self._draws, generator)
        self._coming = iter(self._races)
        self._may_want_mode = not agent_info.is_empty

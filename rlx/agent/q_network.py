"""Action values: the head that all Q-networks share, and the one over dense layers."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import Agent, may_be_any
from rlx.agent.distribution import MASKED
from rlx.agent.masking import ActionMasking, draw_allowed
from rlx.agent.networks import Activation, Encoder, activation_of, linear
from rlx.agent.normalizer import full_precision
from rlx.agent.told import chances
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError
from rlx.validate import Range


class QAgent(Agent):
    """An agent that values each of n actions and takes the best, or with probability epsilon any.

    Outputs: `q` `[B, n]`, masked where the environment shows which actions are allowed; where it is distributional,
    also `quantiles` `[B, n, K]`, whose mean `q` is, of all actions.
    """

    head: "QHead"

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Take the action of the greatest value; rows explore by `agent_info["epsilon"]` `[B]`, none without it.

        Rows whose `agent_info["deterministic"]` is true never explore.
        """
        q = outputs["q"]
        action = explore(q.argmax(-1), q, agent_info, generator)
        return DictTensor.trusted({"action": action}, outputs.batch_size)


def explore(
    best: Tensor, q: Tensor, agent_info: DictTensor, generator: torch.Generator, key: str = "epsilon"
) -> Tensor:
    """Return the best actions `[B]`, with probability `agent_info[key]` replaced by any allowed one.

    Args:
        best: `[B]` int64.
        q: `[B, n]`, masked where an action is not allowed.
        agent_info: `[B]`; rows whose `deterministic` is true never explore.
        generator: source of the draws.
        key: of the probabilities; where it is not there, nothing is replaced.

    Raises:
        AgentError: they are no probabilities.
    """
    deterministic = wants_mode(agent_info)
    if deterministic is not None and not torch.compiler.is_compiling() and not may_be_any(~deterministic):
        return best  # without a look at the probabilities: `rlx eval` tells who gives one in vain
    epsilon = chances(agent_info, key)
    if epsilon is None:
        return best
    explores = torch.rand(best.shape, generator=generator, device=best.device) < epsilon
    if deterministic is not None:
        explores &= ~deterministic
    if not bool(explores.any()):
        return best
    return torch.where(explores, draw_allowed(q > 0.5 * MASKED, generator), best)


class QHead(nn.Module):
    """From features to the values of n actions, plain or dueling (Wang et al. 2016, arXiv:1511.06581, eq. 9).

    Dueling: `q = value + advantage - mean of the advantages`, from two streams with a hidden layer each, which run as
    one. Distributional: so for each of K quantiles (Dabney et al. 2018, arXiv:1710.10044).
    """

    def __init__(
        self,
        num_inputs: int,
        num_actions: int,
        *,
        hidden_size: int,
        activation: Activation,
        dueling: bool,
        num_quantiles: int,
    ) -> None:
        """Build the layers, orthogonally initialised.

        Args:
            num_inputs: features, F.
            num_actions: n.
            hidden_size: width of the hidden layer, of each stream.
            activation: applied after the hidden layer.
            dueling: whether there are two streams.
            num_quantiles: K; 0 for expected values alone.
        """
        super().__init__()
        self.num_actions, self.num_quantiles, self.dueling = num_actions, num_quantiles, dueling
        self.activation, gain = activation_of(activation)
        per_action = max(1, num_quantiles)
        self.hidden = linear(num_inputs, hidden_size * (2 if dueling else 1), gain)
        self.advantage = linear(hidden_size, num_actions * per_action, 1.0)
        self.value = linear(hidden_size, per_action, 1.0) if dueling else None

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return `q` `[N, n]`, and `quantiles` `[N, n, K]` where there are any, for features `[N, F]`."""
        hidden = self.activation(self.hidden(features))
        shape = -1, self.num_actions, self.num_quantiles or 1
        if self.value is None:
            q = full_precision(self.advantage(hidden)).view(shape)
        else:
            for_value, for_advantage = hidden.chunk(2, dim=-1)
            advantage = full_precision(self.advantage(for_advantage)).view(shape)
            q = self.value(for_value).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)
        return {"q": q.mean(-1), "quantiles": q} if self.num_quantiles else {"q": q.squeeze(-1)}


class QNetwork(QAgent):
    """A stateless Q-network over dense layers."""

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        dueling: bool,
        num_quantiles: Annotated[int, Range(0)],
        normalize_observation: bool = False,
    ) -> None:
        """Build the network, orthogonally initialised.

        Args:
            specs: what the environment shows and takes: one action out of n.
            hidden_sizes: widths of the hidden layers, usually two of 64 to 256; where it is dueling, the last one is
                that of each of the two streams.
            activation: applied after each hidden layer, usually relu.
            dueling: whether a state's value and its actions' advantages are learned apart.
            num_quantiles: quantiles of the return that are learned, usually 32 to 200; 0 for the expected return alone.
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.

        Raises:
            AgentError: the action is not one out of n.
        """
        super().__init__()
        self.encoder = Encoder(specs.observation, normalize=normalize_observation)
        num_actions = number_of_actions(specs, "a Q-network")
        self.masking = ActionMasking(specs)
        self.activation, gain = activation_of(activation)
        *inner, last = hidden_sizes or [self.encoder.num_features]
        sizes = [self.encoder.num_features, *inner]
        self.layers = nn.ModuleList([linear(size, width, gain) for size, width in zip(sizes, inner, strict=False)])
        self.head = QHead(
            sizes[-1],
            num_actions,
            hidden_size=last,
            activation=activation,
            dueling=dueling,
            num_quantiles=num_quantiles,
        )

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `q` `[B, n]` (and `quantiles`), and the empty state."""
        features = self.encoder(observation)
        for layer in self.layers:
            features = self.activation(layer(features))
        outputs = self.head(features)
        outputs["q"] = self.masking.apply(outputs["q"], self.masking.of(observation))
        return DictTensor.trusted(outputs, observation.batch_size), state

    def actor(self) -> Agent:
        """Return what picks the same actions from advantages alone, layer after layer with nothing in between."""
        return _Actor(self)


class _Actor(Agent):
    """Picks a `QNetwork`'s actions, on the same parameters."""

    def __init__(self, agent: QNetwork) -> None:
        super().__init__()
        self._agent = [agent]  # in a list, so that the parameters stay the agent's alone
        head = agent.head
        layers = [layer for layer in (*agent.layers, head.hidden, head.advantage) if isinstance(layer, nn.Linear)]
        self._layers = [(layer.weight.detach(), layer.bias.detach()) for layer in layers]
        if head.dueling:  # the second stream: the value is the same for all actions
            weight, bias = self._layers[-2]
            half = len(weight) // 2
            self._layers[-2] = (weight[half:], bias[half:])

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        return DictTensor.trusted({"advantage": self._advantage(observation)}, observation.batch_size), state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        advantage = outputs["advantage"]
        action = explore(advantage.argmax(-1), advantage, agent_info, generator)
        return DictTensor.trusted({"action": action}, outputs.batch_size)

    def act_into(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        generator: torch.Generator,
        out: Mapping[str, Tensor],
    ) -> DictTensor:
        advantage = self._advantage(observation)
        out["action"].copy_(explore(advantage.argmax(-1), advantage, agent_info, generator))
        return state

    def _advantage(self, observation: DictTensor) -> Tensor:
        """Return what tells the actions apart, `[B, n]`, masked: the value added to it would round differences off."""
        agent = self._agent[0]
        features, activate = agent.encoder.forward(observation), agent.activation
        *inner, last = self._layers
        for layer in inner:
            features = activate(F.linear(features, *layer))
        advantage: Tensor = F.linear(features, *last)
        if agent.head.num_quantiles:
            advantage = advantage.view(-1, agent.head.num_actions, agent.head.num_quantiles).mean(-1)
        return agent.masking.apply(advantage, agent.masking.of(observation))


def number_of_actions(specs: EnvSpecs, who: str) -> int:
    """Return n of an action space of one action out of n.

    Raises:
        AgentError: it is another space; says which algorithms fit.
    """
    only = specs.action.get("action")
    if only is None or only.kind != "discrete":
        shown = ", ".join(f"{key} ({_describe(spec)})" for key, spec in specs.action.items())
        fits = (
            "algo=sac, ppo or a2c" if all(s.kind == "continuous" for s in specs.action.values()) else "algo=ppo or a2c"
        )
        raise AgentError(
            f"{who} chooses one of n actions (Discrete); the environment takes {shown}. {fits} can do that"
        )
    return only.nvec[0]


def _describe(spec: Spec) -> str:
    return f"{spec.kind} {list(spec.shape)}"

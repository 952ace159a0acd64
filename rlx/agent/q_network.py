"""Action values: the head that all Q-networks share, and the one over dense layers."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import Agent
from rlx.agent.distribution import MASKED
from rlx.agent.masking import apply_mask, draw_allowed
from rlx.agent.networks import Activation, Encoder, activation_of, linear
from rlx.data import DictTensor, EnvSpecs, Spec, find_mask
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
        action = q.argmax(-1)
        if "epsilon" in agent_info:
            chance = torch.rand(len(action), generator=generator, device=q.device)
            explores = chance < agent_info["epsilon"]
            deterministic = wants_mode(agent_info)
            if deterministic is not None:
                explores &= ~deterministic
            action = torch.where(explores, draw_allowed(q > 0.5 * MASKED, generator), action)
        return DictTensor.trusted({"action": action}, outputs.batch_size)


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
        if self.value is None:
            q = self.advantage(hidden).unflatten(-1, (self.num_actions, -1))
        else:
            for_value, for_advantage = hidden.chunk(2, dim=-1)
            advantage = self.advantage(for_advantage).unflatten(-1, (self.num_actions, -1))
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
    ) -> None:
        """Build the network, orthogonally initialised.

        Args:
            specs: what the environment shows and takes: one action out of n.
            hidden_sizes: widths of the hidden layers, usually two of 64 to 256; where it is dueling, the last one is
                that of each of the two streams.
            activation: applied after each hidden layer, usually relu.
            dueling: whether a state's value and its actions' advantages are learned apart.
            num_quantiles: quantiles of the return that are learned, usually 32 to 200; 0 for the expected return alone.

        Raises:
            AgentError: the action is not one out of n.
        """
        super().__init__()
        self.encoder = Encoder(specs.observation)
        num_actions = number_of_actions(specs, "a Q-network")
        self.mask_key = find_mask(specs)
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
        if self.mask_key is not None:
            outputs["q"] = apply_mask(outputs["q"], observation[self.mask_key])
        return DictTensor.trusted(outputs, observation.batch_size), state


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

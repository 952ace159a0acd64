"""Agents that look at images: an actor-critic and a Q-network over convolutions."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import ActorCriticAgent
from rlx.agent.heads import ActionHead
from rlx.agent.masking import ActionMasking, features
from rlx.agent.networks import Activation, Encoder, activation_of, linear, module_names
from rlx.agent.q_network import QAgent, QHead, number_of_actions
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor
from rlx.errors import AgentError
from rlx.validate import Range

_MOST_CHANNELS_LAST = 4  # grey, grey and alpha, RGB, RGBA


class Convolutions(nn.Module):
    """Turns the observation group into one float vector a row: convolutions over the images, beside what else there is.

    Attributes:
        num_features: length of the vector.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        filters: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        activation: Activation,
    ) -> None:
        """Build the layers, orthogonally initialised, biases zero.

        Args:
            specs: what the environment shows; a uint8 array of two to four dimensions is an image.
            filters: of each convolution, usually 16 to 64.
            kernel_sizes: height and width of each convolution's filters, in pixels.
            strides: pixels between two places of each convolution's filters.
            activation: applied after each layer, usually relu.

        Raises:
            AgentError: nothing that the environment shows is an image, or the convolutions do not fit it.
        """
        super().__init__()
        if not len(filters) == len(kernel_sizes) == len(strides):
            raise AgentError(
                "agent.filters, kernel_sizes and strides: expected as many numbers in each, "
                f"got {len(filters)}, {len(kernel_sizes)} and {len(strides)}"
            )
        images = {key: spec for key, spec in specs.observation.items() if is_image(spec)}
        if not images:
            shown = ", ".join(f"{key} {spec.dtype} {list(spec.shape)}" for key, spec in specs.observation.items())
            raise AgentError(
                "an agent with convolutions looks at images, uint8 arrays of two to four dimensions; the environment "
                f"shows {shown}. agent=actor_critic and agent=q_network take numbers"
            )
        self.activation, gain = activation_of(activation)
        self.convolutions = nn.ModuleDict()
        self._names = module_names(images)
        self.num_features = 0
        for key, spec in images.items():
            channels, height, width = image_size(spec)
            layers: list[nn.Conv2d] = []
            for out, kernel, stride in zip(filters, kernel_sizes, strides, strict=True):
                height, width = ((side - kernel) // stride + 1 for side in (height, width))
                if min(height, width) < 1:
                    raise AgentError(
                        f"agent.kernel_sizes: '{key}' of {list(spec.shape)} is too small for filters "
                        f"{list(kernel_sizes)} at strides {list(strides)}"
                    )
                layers.append(_convolution(channels, out, kernel, stride, gain))
                channels = out
            self.convolutions[self._names[key]] = nn.ModuleList(layers)
            self.num_features += channels * height * width
        rest = {key: spec for key, spec in features(specs.observation).items() if key not in images}
        self.encoder = Encoder(rest) if rest else None
        self.num_features += 0 if self.encoder is None else self.encoder.num_features
        self._images = tuple(images.items())
        self._rest = tuple(rest)

    def forward(self, observation: DictTensor) -> Tensor:
        """Return the features `[B, num_features]` of `observation` `[B]`."""
        pieces = [self._look(observation[key], key, spec) for key, spec in self._images]
        if self.encoder is not None:
            pieces.append(self.encoder(observation.select(*self._rest)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def _look(self, image: Tensor, key: str, spec: Spec) -> Tensor:
        """Return the features `[B, F]` of images `[B, *shape]`."""
        seen = channels_first(image, spec).to(torch.float32, memory_format=_memory_format(image)) / 255.0
        layers = self.convolutions[self._names[key]]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            seen = self.activation(layer(seen))
        return seen.flatten(1)


class ConvActorCritic(ActorCriticAgent):
    """A stateless policy and its value function, linear over one convolutional network (Mnih et al. 2015).

    With the shipped numbers the network is that of DQN's paper, as PPO uses it for Atari: 32 filters of 8 x 8 at a
    stride of 4, 64 of 4 x 4 at 2, 64 of 3 x 3 at 1, and a dense layer of 512. What the environment shows besides images
    joins them before the dense layer. Outputs: `value` `[B]` and the fields of the action's distributions.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        filters: Annotated[Sequence[int], Range(1)],
        kernel_sizes: Annotated[Sequence[int], Range(1)],
        strides: Annotated[Sequence[int], Range(1)],
        hidden_size: Annotated[int, Range(1)],
        activation: Activation,
        log_std_init: Annotated[float, Range(-5, 2)],
    ) -> None:
        """Build the network, orthogonally initialised: gain sqrt(2) inside, 0.01 for the policy, 1 for the value.

        Args:
            specs: what the environment shows and takes; a uint8 array of two to four dimensions is an image.
            filters: of each convolution, usually 16 to 64.
            kernel_sizes: height and width of each convolution's filters, in pixels.
            strides: pixels between two places of each convolution's filters.
            hidden_size: width of the dense layer, usually 256 or 512.
            activation: applied after each layer, usually relu.
            log_std_init: initial log of the standard deviation of continuous actions, as a part of half the action
                range; usually -1 to 0.

        Raises:
            AgentError: nothing that the environment shows is an image, or the convolutions do not fit it.
            SpecError: the environment shows which actions are allowed in a form that does not fit them.
        """
        super().__init__()
        self.masking = ActionMasking(specs)
        self.body = Convolutions(
            specs, filters=filters, kernel_sizes=kernel_sizes, strides=strides, activation=activation
        )
        self.activation, gain = activation_of(activation)
        self.hidden = linear(self.body.num_features, hidden_size, gain)
        self.head = ActionHead(specs.action, log_std_init=log_std_init)
        self.policy = linear(hidden_size, self.head.num_parameters, 0.01)
        self.critic = linear(hidden_size, 1, 1.0)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the distributions' fields and `value` `[B]`, and the empty state."""
        hidden = self.activation(self.hidden(self.body(observation)))
        fields = self.head.fields(self.masking.apply(self.policy(hidden), self.masking.of(observation)))
        fields["value"] = self.critic(hidden)[:, 0]
        return DictTensor.trusted(fields, observation.batch_size), state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Draw one action a row; rows whose `agent_info["deterministic"]` is true take the mode."""
        fields = self.head.sample(outputs, wants_mode(agent_info), generator)
        return DictTensor.trusted(fields, outputs.batch_size)

    def log_prob(self, outputs: DictTensor | TemporalDictTensor, taken: DictTensor | TemporalDictTensor) -> Tensor:
        """Return the log-probability of `taken` (a stored `agent/` group) under `outputs`, `[...]`."""
        return self.head.log_prob(outputs, taken)

    def entropy(self, outputs: DictTensor | TemporalDictTensor) -> Tensor:
        """Return the entropy of the policy in nats, `[...]`."""
        return self.head.entropy(outputs)


class ConvQNetwork(QAgent):
    """A stateless Q-network over images: with the shipped numbers that of DQN's paper (Mnih et al. 2015), dueling."""

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        filters: Annotated[Sequence[int], Range(1)],
        kernel_sizes: Annotated[Sequence[int], Range(1)],
        strides: Annotated[Sequence[int], Range(1)],
        hidden_size: Annotated[int, Range(1)],
        activation: Activation,
        dueling: bool,
        num_quantiles: Annotated[int, Range(0)],
    ) -> None:
        """Build the network, orthogonally initialised.

        Args:
            specs: what the environment shows, an image among it, and takes: one action out of n.
            filters: of each convolution, usually 16 to 64.
            kernel_sizes: height and width of each convolution's filters, in pixels.
            strides: pixels between two places of each convolution's filters.
            hidden_size: width of the dense layer, usually 512; where it is dueling, that of each of the two streams.
            activation: applied after each layer, usually relu.
            dueling: whether a state's value and its actions' advantages are learned apart.
            num_quantiles: quantiles of the return that are learned, usually 32 to 200; 0 for the expected return alone.

        Raises:
            AgentError: the action is not one out of n, nothing that the environment shows is an image, or the
                convolutions do not fit it.
        """
        super().__init__()
        num_actions = number_of_actions(specs, "a Q-network")
        self.masking = ActionMasking(specs)
        self.body = Convolutions(
            specs, filters=filters, kernel_sizes=kernel_sizes, strides=strides, activation=activation
        )
        self.head = QHead(
            self.body.num_features,
            num_actions,
            hidden_size=hidden_size,
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
        outputs = self.head(self.body(observation))
        outputs["q"] = self.masking.apply(outputs["q"], self.masking.of(observation))
        return DictTensor.trusted(outputs, observation.batch_size), state


def is_image(spec: Spec) -> bool:
    """Return whether this is an image: a uint8 array of two to four dimensions."""
    return spec.dtype == torch.uint8 and spec.kind not in ("discrete", "multi_discrete") and 2 <= len(spec.shape) <= 4


def image_size(spec: Spec) -> tuple[int, int, int]:
    """Return channels, height and width of an image, whatever the order of its axes.

    `[H, W]` is grey; `[H, W, C]` has its channels last where these are four at most and fewer than the first axis has,
    otherwise `[C, H, W]`; of four axes the first is a stack of such images, whose channels add up.
    """
    *stack, first, height, width = (1, 1, *spec.shape)[-4:]
    count = stack[0] if len(spec.shape) == 4 else 1
    if _channels_last(spec):
        return count * width, first, height
    return count * first, height, width


def channels_first(image: Tensor, spec: Spec) -> Tensor:
    """Return images `[B, *shape]` as `[B, C, H, W]`; see `image_size`."""
    if _channels_last(spec):
        image = image.movedim(-1, -3)
    return image.reshape(image.shape[0], *image_size(spec))


def _channels_last(spec: Spec) -> bool:
    return len(spec.shape) >= 3 and spec.shape[-1] <= _MOST_CHANNELS_LAST and spec.shape[-1] < spec.shape[-3]


def _memory_format(image: Tensor) -> torch.memory_format:
    """Return how pixels should lie: on a CPU the gradients of float32 convolutions cost a third less, channels last."""
    learns = torch.is_grad_enabled() and image.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return torch.channels_last if learns else torch.preserve_format


def _convolution(channels: int, filters: int, kernel_size: int, stride: int, gain: float) -> nn.Conv2d:
    layer = nn.Conv2d(channels, filters, kernel_size, stride)
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

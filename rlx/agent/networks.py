"""Networks that the ready-made agents are made of."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.agent.masking import features
from rlx.agent.normalizer import ObservationNormalizer
from rlx.data import MASK_KEY, DictTensor, Spec
from rlx.errors import AgentError, SpecError, did_you_mean

Activation = Literal["tanh", "relu", "elu", "silu"]

# What is applied between layers, and the gain that keeps the variance of activations through it. All but SiLU, whose
# gradient needs its input, write over what they are given: a layer's output is new memory, and large batches are a
# matter of memory that is in the cache.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "tanh": (torch.tanh_, math.sqrt(2)),  # PPO's published gain for tanh, not 5/3 (Andrychowicz et al. 2021)
    "relu": (torch.relu_, math.sqrt(2)),
    "elu": (partial(F.elu, inplace=True), 1.0),
    "silu": (F.silu, 1.0),
}


def activation_of(name: str) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return the function of this name, which may write over its argument, and the gain of layers before it.

    Raises:
        AgentError: there is none.
    """
    if name not in ACTIVATIONS:
        known, hint = ", ".join(ACTIVATIONS), did_you_mean(name, ACTIVATIONS)
        raise AgentError(f"agent.activation: got {name!r}, expected one of {known}.{hint}")
    return ACTIVATIONS[name]


class Encoder(nn.Module):
    """Turns the observation group into one float vector a row.

    Numbers are flattened, uint8 images scaled to [0, 1], discrete values one-hot encoded, and all keys concatenated in
    the order of the specs. The mask of allowed actions, where there is one, is left out.

    Attributes:
        specs: what goes in.
        num_features: length of the vector.
        is_plain: whether the observation is such a vector already.
    """

    def __init__(self, specs: dict[str, Spec], *, normalize: bool = False) -> None:
        """Build the encoder.

        Args:
            specs: `{"obs": Spec}` or `{"obs/<key>": Spec, ...}`.
            normalize: whether floating-point fields of the observation are brought to mean 0 and variance 1.

        Raises:
            AgentError: nothing is left besides the mask.
        """
        super().__init__()
        self.specs = specs = features(specs)
        if not specs:
            raise AgentError(
                f"the environment shows '{MASK_KEY}' alone, which says what is allowed and is no observation; "
                "expected another key beside it, constant if need be"
            )
        self.num_features = sum(
            sum(spec.nvec) if spec.kind in ("discrete", "multi_discrete") else spec.numel for spec in specs.values()
        )
        moving = [key for key, spec in specs.items() if key.split("/")[0] == "obs" and _is_number(spec)] * normalize
        self.normalizers = nn.ModuleList([ObservationNormalizer(key, specs[key].shape) for key in moving])
        self._places = {key: place for place, key in enumerate(moving)}
        only = specs.get("obs")  # a nested space's keys are `obs/<key>`, even where there is one only
        vector = only is not None and len(specs) == 1 and only.dtype == torch.float32 and len(only.shape) == 1
        self.is_plain = vector and not moving

    def forward(self, observation: DictTensor) -> Tensor:
        """Return the features `[B, num_features]` float32 of `observation` `[B]`."""
        if self.is_plain:
            return observation["obs"]
        pieces = [_encode(self._normal(observation[key], key), key, spec) for key, spec in self.specs.items()]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def _normal(self, value: Tensor, key: str) -> Tensor:
        place = self._places.get(key)
        if place is None:
            return value
        normalizer = self.normalizers[place]
        assert isinstance(normalizer, ObservationNormalizer)
        return normalizer.normalize(value)


def _is_number(spec: Spec) -> bool:
    return spec.dtype.is_floating_point and spec.kind not in ("discrete", "multi_discrete")


def _encode(value: Tensor, key: str, spec: Spec) -> Tensor:
    if spec.kind in ("discrete", "multi_discrete"):
        columns = value.reshape(value.shape[0], spec.numel).unbind(-1)
        ones = [_one_hot(column, key, n).float() for column, n in zip(columns, spec.nvec, strict=True)]
        return ones[0] if len(ones) == 1 else torch.cat(ones, dim=-1)
    if spec.dtype == torch.uint8:
        return value.reshape(value.shape[0], spec.numel).float() / 255.0
    return value.reshape(value.shape[0], spec.numel).float()  # of no rows, -1 would mean nothing


def _one_hot(column: Tensor, key: str, count: int) -> Tensor:
    try:
        return F.one_hot(column, count)
    except RuntimeError:  # on the CPU, where torch looks
        wrong = column[(column < 0) | (column >= count)]
        if not len(wrong):
            raise
        raise SpecError(f"the observation '{key}' shows {int(wrong[0])}; expected 0 to {count - 1}") from None


class TwinMLP(nn.Module):
    """K multi-layer perceptrons of one shape, run as one: each layer is a single batched product.

    An actor and its critic, or two critics, cost the calls of one network. Weights are `[K, inputs, outputs]`, biases
    `[K, 1, outputs]`. Networks with fewer outputs than the widest keep their spare columns at zero, unused.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: Sequence[int],
        *,
        hidden_sizes: Sequence[int],
        activation: Activation,
        output_gains: Sequence[float],
        generator: torch.Generator | None = None,
    ) -> None:
        """Build the networks, orthogonally initialised (Saxe et al. 2014), biases zero.

        Args:
            num_inputs: length of the input vector.
            num_outputs: the outputs of each of the K networks.
            hidden_sizes: widths of the hidden layers, usually 64 to 512 each.
            activation: applied after each hidden layer.
            output_gains: orthogonal gain of each network's last layer; PPO: 0.01 for the policy, 1 for the value.
            generator: source of the initial weights; None for torch's global one.
        """
        super().__init__()
        self.num_outputs = tuple(num_outputs)
        self.activation, gain = activation_of(activation)
        sizes = [num_inputs, *hidden_sizes, max(num_outputs)]
        weights: list[nn.Parameter] = []
        biases: list[nn.Parameter] = []
        for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
            weight = torch.zeros(len(self.num_outputs), rows, columns)
            last = layer == len(sizes) - 2
            for k, outputs in enumerate(self.num_outputs):
                width = outputs if last else columns
                nn.init.orthogonal_(weight[k, :, :width], output_gains[k] if last else gain, generator=generator)
            weights.append(nn.Parameter(weight))
            biases.append(nn.Parameter(torch.zeros(len(self.num_outputs), 1, columns)))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def forward(self, features: Tensor, *, frozen: bool = False) -> tuple[Tensor, ...]:
        """Return each network's outputs, `[B, num_outputs[k]]`, for `features` `[B, num_inputs]`.

        Where it is `frozen`, gradients go to the features alone.
        """
        hidden = features.expand(len(self.num_outputs), -1, -1)
        layers = [
            (w.detach(), b.detach()) if frozen else (w, b) for w, b in zip(self.weights, self.biases, strict=True)
        ]
        *inner, (last_weight, last_bias) = layers
        for weight, bias in inner:
            hidden = self.activation(torch.baddbmm(bias, hidden, weight))
        if last_weight.shape[2] == 1:  # forward and backward, a third of what a batched product takes for one column
            outputs = torch.add(last_bias, (hidden * last_weight.transpose(1, 2)).sum(-1, keepdim=True)).unbind(0)
        else:
            outputs = torch.baddbmm(last_bias, hidden, last_weight).unbind(0)
        return tuple(output[:, :width] for output, width in zip(outputs, self.num_outputs, strict=True))

    def single(self, k: int) -> "Single":
        """Return network `k` alone, as a function on the same memory: the cheapest forward pass there is.

        It follows later in-place changes of the parameters (an optimiser step, loaded weights), and has no gradients.
        """
        width = self.num_outputs[k]
        layers = [
            (weight.detach()[k], bias.detach()[k, 0]) for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        *inner, (last_weight, last_bias) = layers
        last_weight, last_bias = last_weight[:, :width], last_bias[:width]
        activate, addmm = self.activation, torch.addmm

        def run(features: Tensor, out: Tensor | None = None) -> Tensor:
            for weight, bias in inner:
                features = activate(addmm(bias, features, weight))
            return addmm(last_bias, features, last_weight, out=out)

        return run


class Single(Protocol):
    """One network of a `TwinMLP`: `[B, num_inputs]` to `[B, num_outputs[k]]`, written into `out` where it is given."""

    def __call__(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the outputs."""
        ...


def module_names(keys: Iterable[str]) -> dict[str, str]:
    """Return for each key a name under which a module can hold what belongs to it; no two keys have the same."""
    names: dict[str, str] = {}
    for place, key in enumerate(keys):
        name = key.replace("/", "_").replace(".", "_") or "action"
        while name in names.values():  # `cam/left` beside `cam_left`
            name = f"{name}_{place}"
        names[key] = name
    return names


def linear(num_inputs: int, num_outputs: int, gain: float) -> nn.Linear:
    """Return a dense layer, orthogonally initialised with this gain, biases zero."""
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer

"""A normal distribution squashed into a bounded box, through which gradients pass: what SAC draws from."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.data import EnvSpecs
from rlx.errors import AgentError

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LOG_STD_RANGE = (-5.0, 2.0)
"""Least and greatest log standard deviation; outputs are squashed into it, so that their gradient never dies."""


class SquashedGaussian(nn.Module):
    """tanh of independent normal numbers (Haarnoja et al. 2018, arXiv:1812.05905, appendix C), for bounded boxes.

    What it calls an action lies in [-1, 1] at each place; `to_space` and `from_space` map that to the box and back.

    Attributes:
        size: the number of places, n.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, specs: EnvSpecs) -> None:
        """Build the distribution over the environment's actions.

        Raises:
            AgentError: they are no single box that is bounded at every place; says which algorithms fit.
        """
        super().__init__()
        spec = specs.action.get("action")
        low = torch.tensor(spec.low if spec is not None else (), dtype=torch.float32)
        high = torch.tensor(spec.high if spec is not None else (), dtype=torch.float32)
        bounded = bool(len(low)) and bool((high - low).isfinite().all())
        if spec is None or spec.kind != "continuous" or not spec.dtype.is_floating_point or not bounded:
            shown = ", ".join(f"{key} ({each.kind} {list(each.shape)})" for key, each in specs.action.items())
            discrete = all(each.kind == "discrete" for each in specs.action.values())
            fits = "algo=dqn, ppo or a2c" if discrete else "algo=ppo or a2c"
            raise AgentError(
                "a squashed Gaussian draws from one continuous box with finite bounds; the environment takes "
                f"{shown}. {fits} can do that"
            )
        self.spec, self.size = spec, spec.numel
        # No parameters: they follow from the environment, and are in no checkpoint.
        self.register_buffer("center", (low + high) / 2, persistent=False)
        self.register_buffer("half_range", (high - low) / 2, persistent=False)

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, `[..., n]` each, of a network's outputs `[..., 2 n]`."""
        mean, raw = parameters.chunk(2, dim=-1)
        least, most = LOG_STD_RANGE
        return mean, least + 0.5 * (most - least) * (torch.tanh(raw) + 1)

    def sample(self, mean: Tensor, log_std: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return actions `[..., n]`, differentiable by reparametrisation, and their exact log-probabilities `[...]`.

            u = mean + exp(log_std) * noise, a = tanh(u), log p(a) = log N(u) - sum log(1 - tanh(u)^2)   (eq. 26)

        The logarithm's argument is never formed: `log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))`.

        Args:
            mean: `[..., n]`.
            log_std: `[..., n]`.
            generator: source of the draw.
        """
        noise = torch.empty_like(mean).normal_(generator=generator)
        u = mean + log_std.exp() * noise
        log_prob = -(0.5 * noise.square() + log_std + _HALF_LOG_2PI) - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(-1)

    def draw(self, mean: Tensor, log_std: Tensor, generator: torch.Generator) -> Tensor:
        """Return the actions `[..., n]` that `sample` returns, alone: acting needs no log-probability."""
        return torch.tanh(mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator))

    def to_space(self, action: Tensor) -> Tensor:
        """Return actions of the box, `[B, *shape]`, from those in [-1, 1], `[B, n]`."""
        return torch.addcmul(self.center, self.half_range, action).to(self.spec.dtype).view(-1, *self.spec.shape)

    def from_space(self, action: Tensor) -> Tensor:
        """Return actions in [-1, 1], `[..., n]` float32, from those of the box, `[..., *shape]`."""
        inner, action = len(self.spec.shape), action.to(self.center.dtype)
        flat = action.unsqueeze(-1) if not inner else action if inner == 1 else action.flatten(action.dim() - inner)
        return (flat - self.center) / self.half_range.masked_fill(self.half_range == 0, 1.0)  # fixed places: always 0

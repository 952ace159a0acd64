"""Action distributions: from a network's outputs to actions, log-probabilities and entropies.

Each stands for one key of the action space. It reads and writes fields of the agent's outputs, so that what was stored
while acting (`logits`, or `mean` and `log_std`) gives the exact log-probability later, without another forward pass.
No `torch.distributions` object is built: one costs more than a small policy's forward pass.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rlx.data import Spec
from rlx.errors import AgentError


class Fields(Protocol):
    """Named tensors: a DictTensor, a TemporalDictTensor or a plain dict."""

    def __getitem__(self, key: str, /) -> Tensor:
        """Return the tensor of this name."""
        ...


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

MASKED = -1e9
"""The logit of what is not allowed: it never wins, its probability is 0 exactly, and p log(p) is 0, not NaN as of -inf.
"""
_ABSENT = 2 * MASKED  # of places that there are not: below all that there are, allowed or not


class Distribution(ABC):
    """The distribution of one action key.

    Attributes:
        num_parameters: how many network outputs it reads.
        suffix: what follows `action`, `logits`, ... in its field names: empty, or `/<key>` in a nested action space.
    """

    num_parameters: int

    def __init__(self, spec: Spec, suffix: str) -> None:
        """Build the distribution of actions of `spec`."""
        self.spec = spec
        self.suffix = suffix

    @abstractmethod
    def outputs(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the named fields that describe the distribution, from network outputs `[B, num_parameters]`."""

    @abstractmethod
    def sample(self, outputs: Fields, deterministic: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Return an action `[B, ...]` and the fields to keep for `log_prob`.

        Args:
            outputs: the fields of `outputs()`, `[B, ...]`.
            deterministic: `[B]` bool, rows that take the mode; None for none.
            generator: source of the draw.
        """

    @abstractmethod
    def log_prob(self, outputs: Fields, taken: Fields) -> Tensor:
        """Return the log-probability `[...]` of the fields that `sample` gave, under `outputs`."""

    @abstractmethod
    def entropy(self, outputs: Fields) -> Tensor:
        """Return the entropy in nats, `[...]`."""


class Categorical(Distribution):
    """One of n actions. Fields: `logits` `[..., n]`; `action` `[...]` int64."""

    def __init__(self, spec: Spec, suffix: str) -> None:
        """Build the distribution over the `spec.nvec[0]` actions."""
        super().__init__(spec, suffix)
        self.num_parameters = spec.nvec[0]
        self._logits, self._action = f"logits{suffix}", f"action{suffix}"

    def outputs(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return `logits` `[B, n]`."""
        return {self._logits: parameters}

    def sample(self, outputs: Fields, deterministic: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `action` and the `logits`."""
        logits = outputs[self._logits]
        race = self.race(torch.empty_like(logits), generator)
        return {self._action: self.decide(logits, deterministic, race), self._logits: logits}

    @staticmethod
    def race(out: Tensor, generator: torch.Generator) -> Tensor:
        """Draw log E, E ~ Exp(1), for each action, `[..., n]`: how long it takes to come in. Written into `out`."""
        return out.exponential_(generator=generator).log_()

    def decide(self, logits: Tensor, deterministic: Tensor | None, race: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the winner of the exponential race, argmin(log E - logits), which is the Gumbel-max trick.

        Args:
            logits: `[B, n]`.
            deterministic: `[B]` bool, rows that take the mode; None for none.
            race: `[B, n]`, from `race`; overwritten.
            out: `[B]` int64, where to write the actions; None for new memory.
        """
        if deterministic is not None:
            race.masked_fill_(deterministic.unsqueeze(-1), 0.0)
        return torch.argmin(race.sub_(logits), -1, out=out)

    def log_prob(self, outputs: Fields, taken: Fields) -> Tensor:
        """Return log softmax(logits)[action]."""
        log_probs = outputs[self._logits].log_softmax(-1)
        return log_probs.gather(-1, taken[self._action].unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Fields) -> Tensor:
        """Return -sum p log p."""
        log_probs = outputs[self._logits].log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


class MultiCategorical(Distribution):
    """Several independent choices, of `nvec` values.

    Fields: `logits` `[..., sum(nvec)]`; `action` `[..., *shape]` int64.
    """

    def __init__(self, spec: Spec, suffix: str) -> None:
        """Build the product of categorical distributions over `spec.nvec`."""
        super().__init__(spec, suffix)
        self.num_parameters = sum(spec.nvec)
        self._logits, self._action = f"logits{suffix}", f"action{suffix}"
        widest = max(spec.nvec)
        counts, places = torch.tensor(spec.nvec).unsqueeze(-1), torch.arange(widest)
        self._absent = places >= counts  # [K, widest]
        self._place = (places.minimum(counts - 1) + counts.cumsum(0) - counts).flatten()  # [K * widest], in the logits

    def outputs(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return `logits` `[B, sum(nvec)]`, the choices one after the other."""
        return {self._logits: parameters}

    def _padded(self, outputs: Fields) -> Tensor:
        logits = outputs[self._logits]
        if logits.device != self._place.device:
            self._place, self._absent = self._place.to(logits.device), self._absent.to(logits.device)
        each = logits.index_select(-1, self._place).view(*logits.shape[:-1], *self._absent.shape)
        return each.masked_fill(self._absent, _ABSENT)

    def sample(self, outputs: Fields, deterministic: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw each choice by the exponential race."""
        padded = self._padded(outputs)
        noise = torch.empty_like(padded).exponential_(generator=generator).log_()
        if deterministic is not None:
            noise.masked_fill_(deterministic[:, None, None], 0.0)
        action = (padded - noise).argmax(-1).reshape(-1, *self.spec.shape)
        return {self._action: action, self._logits: outputs[self._logits]}

    def log_prob(self, outputs: Fields, taken: Fields) -> Tensor:
        """Return the sum of the choices' log-probabilities."""
        log_probs = self._padded(outputs).log_softmax(-1)
        action = taken[self._action].reshape(*log_probs.shape[:-1], 1)
        return log_probs.gather(-1, action).squeeze(-1).sum(-1)

    def entropy(self, outputs: Fields) -> Tensor:
        """Return the sum of the choices' entropies."""
        log_probs = self._padded(outputs).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum((-2, -1))


class Bernoulli(Distribution):
    """Independent zeros and ones. Fields: `logits` `[..., n]`; `action` `[..., *shape]` of the space's dtype."""

    def __init__(self, spec: Spec, suffix: str) -> None:
        """Build the product of `spec.numel` Bernoulli distributions."""
        super().__init__(spec, suffix)
        self.num_parameters = spec.numel
        self._logits, self._action = f"logits{suffix}", f"action{suffix}"

    def outputs(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return `logits` `[B, n]`, of a one at each place."""
        return {self._logits: parameters}

    def sample(self, outputs: Fields, deterministic: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw each place."""
        logits = outputs[self._logits]
        threshold = torch.rand(logits.shape, generator=generator, device=logits.device)
        if deterministic is not None:
            threshold.masked_fill_(deterministic.unsqueeze(-1), 0.5)
        action = (logits.sigmoid() > threshold).to(self.spec.dtype).reshape(-1, *self.spec.shape)
        return {self._action: action, self._logits: logits}

    def log_prob(self, outputs: Fields, taken: Fields) -> Tensor:
        """Return the sum of the places' log-probabilities."""
        logits = outputs[self._logits]
        action = taken[self._action].reshape(logits.shape).to(logits.dtype)
        return -F.binary_cross_entropy_with_logits(logits, action, reduction="none").sum(-1)

    def entropy(self, outputs: Fields) -> Tensor:
        """Return the sum of the places' entropies."""
        logits = outputs[self._logits]
        return (F.softplus(logits) - logits * logits.sigmoid()).sum(-1)


class DiagonalGaussian(Distribution):
    """Independent normal numbers, mapped to the space's bounds.

    A draw `raw_action` of 0 is the middle of a bounded space and +-1 its ends; beyond them the environment gets the
    end, while the log-probability stays that of the draw. Unbounded places pass as they are. Fields: `mean`, `log_std`,
    `raw_action` `[..., n]`; `action` `[..., *shape]`.
    """

    def __init__(self, spec: Spec, suffix: str) -> None:
        """Build the distribution over the box of `spec`."""
        super().__init__(spec, suffix)
        self.num_parameters = spec.numel
        self._mean, self._log_std, self._raw = f"mean{suffix}", f"log_std{suffix}", f"raw_action{suffix}"
        self._action = f"action{suffix}"
        low = torch.tensor(spec.low or [-math.inf] * spec.numel, dtype=torch.float32)
        high = torch.tensor(spec.high or [math.inf] * spec.numel, dtype=torch.float32)
        bounded = (high - low).isfinite()  # not where they are the greatest numbers that there are, either
        self._center = torch.where(bounded, (low + high) / 2, 0.0)
        self._half_range = torch.where(bounded, (high - low) / 2, 1.0)
        if not spec.dtype.is_floating_point and spec.dtype is not torch.bool:  # beyond its limits one would start again
            limits = torch.iinfo(spec.dtype)
            most = torch.nextafter(torch.tensor(float(limits.max)), torch.zeros(()))  # rounded, it is still the limit
            low, high = low.clamp(min=float(limits.min)), high.minimum(most)
        self._low, self._high = low, high

    def outputs(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return `mean` `[B, n]`; the agent adds `log_std`, a parameter of its own."""
        return {self._mean: parameters}

    def sample(self, outputs: Fields, deterministic: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw mean + std * noise, and map it to the space."""
        mean, log_std = outputs[self._mean], outputs[self._log_std]
        noise = torch.empty_like(mean).normal_(generator=generator)
        if deterministic is not None:
            noise.masked_fill_(deterministic.unsqueeze(-1), 0.0)
        raw = torch.addcmul(mean, log_std.exp(), noise)
        return {self._action: self._to_space(raw), self._raw: raw, self._mean: mean, self._log_std: log_std}

    def _to_space(self, raw: Tensor) -> Tensor:
        if raw.device != self._center.device:
            self._center, self._half_range = self._center.to(raw.device), self._half_range.to(raw.device)
            self._low, self._high = self._low.to(raw.device), self._high.to(raw.device)
        action = torch.addcmul(self._center, self._half_range, raw).clamp_(self._low, self._high)
        if not self.spec.dtype.is_floating_point:
            action = action.round_()
        return action.to(self.spec.dtype).reshape(-1, *self.spec.shape)

    def log_prob(self, outputs: Fields, taken: Fields) -> Tensor:
        """Return the sum over places of log N(raw_action; mean, exp(log_std))."""
        log_std = outputs[self._log_std]
        z = (taken[self._raw] - outputs[self._mean]) * torch.exp(-log_std)
        return -(0.5 * z.square() + log_std + _HALF_LOG_2PI).sum(-1)

    def entropy(self, outputs: Fields) -> Tensor:
        """Return the sum over places of log_std + log(2 pi e) / 2."""
        return (outputs[self._log_std] + (0.5 + _HALF_LOG_2PI)).sum(-1)


KINDS: dict[str, type[Distribution]] = {
    "continuous": DiagonalGaussian,
    "discrete": Categorical,
    "multi_discrete": MultiCategorical,
    "multi_binary": Bernoulli,
}


def make_distributions(action_specs: Mapping[str, Spec]) -> list[Distribution]:
    """Return one distribution for each key of an action space.

    Args:
        action_specs: `{"action": Spec}` or `{"action/<key>": Spec, ...}`.

    Raises:
        AgentError: there is no action to take, or a part of it has no place.
    """
    empty = next((f" ('{key}' has shape {spec.shape})" for key, spec in action_specs.items() if not spec.numel), "")
    if empty or not action_specs:
        raise AgentError(f"the environment's action space is empty{empty}: there is nothing to decide")
    return [KINDS[spec.kind](spec, key.removeprefix("action")) for key, spec in action_specs.items()]

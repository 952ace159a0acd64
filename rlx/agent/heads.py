"""From a network's last layer to the policy: the distributions of all action keys, with the parameters of their own."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rlx.agent.distribution import DiagonalGaussian, Fields, make_distributions
from rlx.agent.networks import module_names
from rlx.data import Spec


class ActionHead(nn.Module):
    """The distributions of an action space, and the log standard deviations of its continuous keys.

    Attributes:
        num_parameters: how many network outputs it reads, P.
    """

    def __init__(
        self, action_specs: Mapping[str, Spec], *, log_std_init: float, num_policies: int | None = None
    ) -> None:
        """Build the distributions.

        Args:
            action_specs: `{"action": Spec}` or `{"action/<key>": Spec, ...}`.
            log_std_init: initial log of the standard deviation of continuous actions, as a part of half the action
                range.
            num_policies: how many policies each have their own standard deviations; None for one.
        """
        super().__init__()
        self.distributions = make_distributions(action_specs)
        self._splits = [distribution.num_parameters for distribution in self.distributions]
        self.num_parameters = sum(self._splits)
        self._names = module_names(distribution.suffix for distribution in self.distributions)
        policies = () if num_policies is None else (num_policies,)
        self.log_std = nn.ParameterDict(
            {
                self._names[distribution.suffix]: nn.Parameter(
                    torch.full((*policies, distribution.num_parameters), float(log_std_init))
                )
                for distribution in self.distributions
                if isinstance(distribution, DiagonalGaussian)
            }
        )

    def fields(self, parameters: Tensor, policy: Tensor | None = None) -> dict[str, Tensor]:
        """Return the distributions' fields `[..., *]` from network outputs `[..., P]`.

        Args:
            parameters: `[..., P]` float32.
            policy: `[...]` int64, whose standard deviations they are, where there are several policies.
        """
        pieces: Sequence[Tensor] = (parameters,)
        if len(self._splits) > 1:
            pieces = cast("tuple[Tensor, ...]", parameters.split(self._splits, dim=-1))
        fields: dict[str, Tensor] = {}
        for distribution, piece in zip(self.distributions, pieces, strict=True):
            fields.update(distribution.outputs(piece))
            if isinstance(distribution, DiagonalGaussian):
                log_std = self.log_std[self._names[distribution.suffix]]
                fields[f"log_std{distribution.suffix}"] = (
                    log_std.expand_as(piece) if policy is None else log_std[policy]
                )
        return fields

    def sample(self, outputs: Fields, deterministic: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Return an action a row, and the fields that its log-probability needs.

        Args:
            outputs: the fields of `fields()`, `[B, ...]`.
            deterministic: `[B]` bool, rows that take the mode; None for none.
            generator: source of the draw.
        """
        fields: dict[str, Tensor] = {}
        for distribution in self.distributions:
            fields.update(distribution.sample(outputs, deterministic, generator))
        return fields

    def log_prob(self, outputs: Fields, taken: Fields) -> Tensor:
        """Return the log-probability `[...]` of the action in `taken` under `outputs`."""
        first, *rest = (distribution.log_prob(outputs, taken) for distribution in self.distributions)
        return sum(rest, start=first)

    def entropy(self, outputs: Fields) -> Tensor:
        """Return the entropy in nats, `[...]`."""
        first, *rest = (distribution.entropy(outputs) for distribution in self.distributions)
        return sum(rest, start=first)

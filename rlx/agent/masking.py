"""Actions that are not allowed now: left out of what the network sees, and never taken.

A task tells them by the field `obs/action_mask` (see `rlx.data.find_mask`). For a policy of logits, or a network of
values of actions, the whole of it is:

    key = find_mask(specs)                                   # None where the environment shows no mask
    logits = apply_mask(logits, observation[key])            # before anything is drawn, compared or kept
    action = draw_allowed(observation[key], generator)       # where epsilon asks for any action
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from rlx.agent.distribution import MASKED, Fields
from rlx.data import MASK_KEY, EnvSpecs, Spec, find_mask, masked_action


def apply_mask(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the logits, or the values of actions, with `MASKED` where an action is forbidden. Differentiable.

    The gradient of what is forbidden is 0. Where nothing is allowed (after an episode's end) all come out alike, so
    that a maximum is finite: times 0 it is 0.

    Args:
        logits: `[..., n]`.
        mask: `[..., n]`, bool or integers: 0 is forbidden; broadcast against `logits`.
    """
    return logits.masked_fill(mask == 0, _masked(logits))


def apply_mask_(logits: Tensor, mask: Tensor) -> Tensor:
    """Do what `apply_mask` does in the memory of `logits`, and return it; for acting, where no gradient is wanted."""
    return logits.masked_fill_(mask == 0, _masked(logits))


def draw_allowed(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Return one of the allowed actions, each as likely as the others, `[...]` int64.

    Args:
        mask: `[..., n]`, bool or integers: 0 is forbidden.
        generator: source of the draw.
    """
    return apply_mask_(torch.rand(mask.shape, generator=generator, device=mask.device), mask).argmax(-1)


def features(observation: Mapping[str, Spec]) -> dict[str, Spec]:
    """Return what a network sees of an observation: all but the mask.

    Args:
        observation: `EnvSpecs.observation`.
    """
    return {key: spec for key, spec in observation.items() if key != MASK_KEY}


class ActionMasking:
    """Puts the mask that a step's observation carries on a policy's network outputs; nothing, where there is none.

    Attributes:
        key: the field of the mask, or None.
    """

    def __init__(self, specs: EnvSpecs) -> None:
        """Find the mask, and which of the network's outputs it is for.

        Args:
            specs: what the environment shows and takes.

        Raises:
            SpecError: the mask does not fit the actions.
        """
        self.key = find_mask(specs)
        self._before = self._after = 0  # outputs of the action's other keys, in front of and behind the masked one's
        if self.key is None:
            return
        masked, seen = masked_action(specs.action), False
        for key, spec in specs.action.items():
            if key == masked:
                seen = True
            elif seen:
                self._after += spec.numel
            else:
                self._before += spec.numel

    def of(self, observation: Fields) -> Tensor | None:
        """Return the mask `[..., n]` that an observation carries, or None."""
        return None if self.key is None else observation[self.key]

    def apply(self, parameters: Tensor, mask: Tensor | None) -> Tensor:
        """Return a policy's network outputs with those of forbidden actions masked.

        Args:
            parameters: `[..., P]`, what `ActionHead.fields` takes.
            mask: `[..., n]`, from `of`; with fewer dimensions, those missing stand before the last: `[B, n]` for the
                outputs `[B, O, P]` of O policies.
        """
        if mask is None:
            return parameters
        if self._before or self._after:
            mask = F.pad(mask, (self._before, self._after), value=1)
        while mask.dim() < parameters.dim():
            mask = mask.unsqueeze(-2)
        return apply_mask(parameters, mask)


def _masked(logits: Tensor) -> float:
    return MASKED if logits.dtype is torch.float32 else max(MASKED, torch.finfo(logits.dtype).min)

"""A gated recurrent unit over packed sequences on a CPU, with its gradient written out.

Autograd records some fifteen operations of a few rows at every step, and pays for each of them again on the way back.
Here the way back is four calls a step: all that does not depend on later steps is worked out for all steps at once.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.errors import AgentError


def runs_here(cell: nn.Module, features: Tensor) -> bool:
    """Return whether `run_gru` is the way to run `cell` on `features`: a GRU on a CPU, in one precision."""
    return isinstance(cell, nn.GRU) and features.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def run_gru(cell: nn.Module, features: Tensor, initial: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the hidden states `[N, H]` of sequences in packed order, differentiable once; those of `torch.nn.GRU`.

    A gradient that is to be differentiated itself, by `create_graph=True`, raises an AgentError.

        r, z = sigmoid(x W_ir + h W_hr), sigmoid(x W_iz + h W_hz)                      (biases left out)
        n = tanh(x W_in + r * (h W_hn)), h' = (1 - z) * n + z * h

    Args:
        cell: one layer, one direction, with biases.
        features: `[N, I]`, all first steps, then all second steps, and so on; longer sequences first.
        initial: `[S, H]`, the state before each sequence.
        counts: how many sequences have a first, second, ... step; never more than before.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = cast("list[list[Tensor]]", cell.all_weights)[0]
    gates = F.linear(features, weight_ih, bias_ih)
    return cast("Tensor", _Steps.apply(gates, initial, weight_hh, bias_hh, list(counts)))


class _Steps(torch.autograd.Function):
    """The part of a GRU that goes from step to step; what comes from its inputs is worked out before."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gates: Tensor, initial: Tensor, weight: Tensor, bias: Tensor, counts: list[int]
    ) -> Tensor:
        total, size = gates.shape[0], initial.shape[1]
        before, after = (gates.new_empty(total, size) for _ in range(2))
        from_state, reset_update = gates.new_empty(total, 3 * size), gates.new_empty(total, 2 * size)
        new = gates.new_empty(total, size)
        views = (gates[:, : 2 * size], gates[:, 2 * size :], before, after, from_state, reset_update, new)
        hidden, transposed = initial, weight.t()
        pieces = (cast("tuple[Tensor, ...]", view.split(counts)) for view in views)
        for count, both, inner, old, out, recurrent, gate, fresh in zip(counts, *pieces, strict=True):
            old.copy_(hidden[:count])
            torch.addmm(bias, old, transposed, out=recurrent)
            torch.add(both, recurrent[:, : 2 * size], out=gate).sigmoid_()
            torch.addcmul(inner, gate[:, :size], recurrent[:, 2 * size :], out=fresh).tanh_()
            hidden = torch.lerp(fresh, old, gate[:, size:], out=out)
        ctx.save_for_backward(weight, before, reset_update, new, from_state[:, 2 * size :])
        ctx.counts, ctx.num_sequences = counts, initial.shape[0]
        return after

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # what was saved is no part of a graph: gradients of it would be wrong, not missing
            raise AgentError(
                "create_graph=True: rlx's GRU has no gradients of gradients; expected agent=lstm, which is torch's, or "
                "a subclass that overrides forward() alone, which is replayed step by step"
            )
        weight, before, reset_update, new, inner = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        counts: list[int] = ctx.counts
        reset, update = reset_update.chunk(2, dim=1)
        # By what the gradient of each state is multiplied to give that of each gate, before its non-linearity.
        of_new = (1 - update) * (1 - new.square())
        of_reset = of_new * inner * reset * (1 - reset)
        of_update = (before - new) * update * (1 - update)
        factors = torch.stack([of_reset, of_update, of_new * reset], dim=1)
        states = gradient.clone(memory_format=torch.contiguous_format)
        recurrent = torch.empty_like(factors)
        carried = states.new_zeros(0, new.shape[1])
        views = (states, factors, recurrent, update)
        pieces = [cast("tuple[Tensor, ...]", view.split(counts)) for view in views]
        for state, factor, out, kept in zip(*(reversed(piece) for piece in pieces), strict=True):
            state[: len(carried)] += carried
            torch.mul(state.unsqueeze(1), factor, out=out)
            carried = torch.addmm(state * kept, out.flatten(1), weight)
        recurrent = recurrent.flatten(1)
        of_gates = torch.cat([recurrent[:, : 2 * new.shape[1]], states * of_new], dim=1)
        of_initial = F.pad(carried, (0, 0, 0, ctx.num_sequences - len(carried)))
        return of_gates, of_initial, recurrent.t() @ before, recurrent.sum(0), None

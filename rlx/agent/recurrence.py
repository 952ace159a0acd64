"""The memory of recurrent agents: dense layers, then a GRU or an LSTM; step by step, or whole sequences at once."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rlx.agent.gru import run_gru, runs_here
from rlx.agent.networks import Activation, activation_of, linear
from rlx.agent.stretches import cut_at_resets
from rlx.data import DictTensor
from rlx.errors import AgentError, did_you_mean

Cell = Literal["gru", "lstm"]

# The network, and the fields of its state: the first one is also its output.
_CELLS: dict[str, tuple[type[nn.GRU | nn.LSTM], tuple[str, ...]]] = {
    "gru": (nn.GRU, ("hidden",)),
    "lstm": (nn.LSTM, ("hidden", "cell")),
}


class Recurrence(nn.Module):
    """Dense layers, then a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) or a long short-term memory.

    Attributes:
        state_keys: the state's fields, `[B, H]` each: `hidden`, and of an LSTM `cell`.
        state_size: H.
    """

    def __init__(
        self, num_inputs: int, *, hidden_sizes: Sequence[int], activation: Activation, state_size: int, cell: Cell
    ) -> None:
        """Build the layers, orthogonally initialised, biases zero.

        Args:
            num_inputs: length of what comes in, E.
            hidden_sizes: widths of the dense layers, usually one of 64 to 256; may be empty.
            activation: applied after each of them.
            state_size: width of the memory, H, usually 64 to 512.
            cell: which kind of recurrent network.

        Raises:
            AgentError: there is no such activation or cell.
        """
        super().__init__()
        if cell not in _CELLS:
            raise AgentError(
                f"agent.cell: got {cell!r}, expected one of {', '.join(_CELLS)}.{did_you_mean(cell, _CELLS)}"
            )
        self.activation, gain = activation_of(activation)
        sizes = [num_inputs, *hidden_sizes]
        self.layers = nn.ModuleList(
            [linear(size, width, gain) for size, width in zip(sizes, hidden_sizes, strict=False)]
        )
        kind, self.state_keys = _CELLS[cell]
        self.state_size = state_size
        self.cell = kind(sizes[-1], state_size, batch_first=True)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                for gate in cast("tuple[Tensor, ...]", parameter.detach().split(state_size)):
                    nn.init.orthogonal_(gate)

    def initial_state(self, batch_size: int) -> DictTensor:
        """Return a state of zeros, `[B, H]` a key."""
        weight = cast("Tensor", self.cell.weight_hh_l0)
        fields = {key: weight.new_zeros(batch_size, self.state_size) for key in self.state_keys}
        return DictTensor.trusted(fields, batch_size)

    def forward(self, seen: Tensor, state: DictTensor) -> tuple[Tensor, DictTensor]:
        """Return the output `[B, H]` and the new state, one step after `seen` `[B, E]`."""
        features, weights = self._dense(seen), self.cell.all_weights[0]
        if len(self.state_keys) == 1:
            new_state = (torch.gru_cell(features, state["hidden"], *weights),)
        else:
            new_state = torch.lstm_cell(features, (state["hidden"], state["cell"]), *weights)
        return new_state[0], DictTensor.trusted(dict(zip(self.state_keys, new_state, strict=True)), state.batch_size)

    def sequence(self, seen: Tensor, is_first: Tensor, mask: Tensor, state: DictTensor) -> Tensor:
        """Return the outputs `[B * T, H]` of whole sequences by one call of the fused network, however many resets.

        Args:
            seen: `[B * T, E]`.
            is_first: `[B, T]` bool, the steps at which the state is reset.
            mask: `[B, T]` bool, where there are steps.
            state: `[B]`, before the first step.
        """
        size, length = is_first.shape
        if not bool(mask.any()):
            return seen.new_zeros(size * length, self.state_size)
        features, initial = self._dense(seen), self.initial_state(size)
        stretches = cut_at_resets(is_first, mask)
        if stretches is None:
            begun = DictTensor.where(is_first[:, 0], initial, state)
            if runs_here(self.cell, features):
                in_time = features.view(size, length, -1).transpose(0, 1).flatten(0, 1)
                outputs = run_gru(self.cell, in_time, begun["hidden"], [size] * length)
                return outputs.view(length, size, -1).transpose(0, 1).reshape(size * length, -1)
            return cast("Tensor", self._run(features.view(size, length, -1), begun)).reshape(size * length, -1)
        begun = DictTensor.where(stretches.begins_episode, initial[stretches.row], state[stretches.row])
        packed = features[stretches.place]
        if runs_here(self.cell, features):
            outputs = run_gru(self.cell, packed, begun["hidden"], cast("list[int]", stretches.counts.tolist()))
        else:
            outputs = cast("PackedSequence", self._run(PackedSequence(packed, stretches.counts), begun)).data
        return outputs.new_zeros(size * length, self.state_size).index_copy(0, stretches.place, outputs)

    def _dense(self, seen: Tensor) -> Tensor:
        for layer in self.layers:
            seen = self.activation(layer(seen))
        return seen

    def _run(self, features: Tensor | PackedSequence, state: DictTensor) -> Tensor | PackedSequence:
        """Return the outputs for whole sequences: `[B, T, H]` for `[B, T, I]`, or packed for packed."""
        first, *others = (state[key].unsqueeze(0) for key in self.state_keys)
        return self.cell(features, (first, *others) if others else first)[0]

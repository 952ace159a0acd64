"""Attention over the last W steps of one's own episode: a step at a time with a cache, or whole sequences at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlx.agent.networks import linear

_NEVER = -1e30


@dataclass(frozen=True)
class Place:
    """Where a step goes in a cache of W places that is written round and round, and what it may look at there.

    Attributes:
        row: `[B]` int64, the rows.
        slot: `[B]` int64, the place of this step, overwriting the step W before it.
        age: `[B, 1, W]` int64, how many steps ago the step in each place was (0: this one).
        unseen: `[B, 1, W]` bool, the places that hold nothing of the row's own episode.
    """

    row: Tensor
    slot: Tensor
    age: Tensor
    unseen: Tensor

    @classmethod
    def of(cls, position: Tensor, window: int) -> "Place":
        """Return the place of the step that `position` `[B]` int64 steps of its episode came before."""
        slots = torch.arange(window, device=position.device)
        age = (position.unsqueeze(1) - slots).remainder(window).unsqueeze(1)
        row = torch.arange(position.shape[0], device=position.device)
        return cls(row, position.remainder(window), age, age > position.view(-1, 1, 1))


class WindowBlock(nn.Module):
    """A transformer block with its norms in front (Xiong et al. 2020, arXiv:2002.04745), causal over W steps.

    A step attends to itself and to the W - 1 steps before it. Positions are relative: each age has a learned
    vector that is added to the keys (Shaw et al. 2018, arXiv:1803.02155, eq. 5), so that cached keys stay right as the
    window moves.
    """

    def __init__(
        self,
        size: int,
        *,
        num_heads: int,
        window: int,
        feedforward_size: int,
        activation: Callable[[Tensor], Tensor],
        gain: float,
    ) -> None:
        """Build the layers.

        Args:
            size: width, E.
            num_heads: attention heads, H, a divisor of E; each is D = E / H wide.
            window: W, >= 2.
            feedforward_size: width of the dense layer between.
            activation: applied there.
            gain: orthogonal gain of the two layers whose outputs are added to what came in.
        """
        super().__init__()
        self.num_heads, self.window, self.activation = num_heads, window, activation
        self.scale = (size // num_heads) ** -0.5
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = linear(size, 3 * size, 1.0)
        for part in cast("tuple[Tensor, ...]", self.query_key_value.weight.detach().split(size)):
            nn.init.orthogonal_(part)
        self.ages = nn.Parameter(torch.randn(num_heads, window, size // num_heads) * 0.02)
        self.attention_output = linear(size, size, gain)
        self.feedforward_norm = nn.LayerNorm(size)
        self.widen, self.narrow = linear(size, feedforward_size, 1.0), linear(feedforward_size, size, gain)

    def empty_cache(self, batch_size: int) -> Tensor:
        """Return a cache of zeros, `[B, 2, H, W, D]`: keys and values."""
        num_heads, window, head_size = self.ages.shape
        return self.ages.new_zeros(batch_size, 2, num_heads, window, head_size)

    def step(self, x: Tensor, cache: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Return the output `[B, E]` of one step, and the cache with that step in it.

        Where no gradient is wanted, it is this very cache, written to: nothing that was valid is lost but what has just
        left the window. With gradients it is a copy.

        Args:
            x: `[B, E]`.
            cache: `[B, 2, H, W, D]`.
            place: of this step.
        """
        projected = self.query_key_value(self.attention_norm(x)).view(x.shape[0], 3, self.num_heads, -1)
        query = projected[:, 0] * self.scale
        if torch.is_grad_enabled():
            cache = cache.clone()
        cache[place.row, :, :, place.slot] = projected[:, 1:]
        keys, values = cache.unbind(1)
        by_age = (query.transpose(0, 1) @ self.ages.transpose(1, 2)).transpose(0, 1)
        bias = by_age.gather(-1, place.age.expand_as(by_age)).masked_fill(place.unseen, _NEVER)
        attended = F.scaled_dot_product_attention(
            query.unsqueeze(2), keys, values, attn_mask=bias.unsqueeze(2), scale=1.0
        )
        return self._feed_forward(x + self.attention_output(attended.flatten(1))), cache

    def sequence(self, x: Tensor, segment: Tensor) -> Tensor:
        """Return the outputs `[B, P - W + 1, E]` of whole sequences: of the steps that have W - 1 before them.

        Args:
            x: `[B, P, E]`, in order of time.
            segment: `[B, P]` int64, which steps see each other: those of the same number.
        """
        kept = x[:, self.window - 1 :]
        query, keys, values = self._projected(x).unbind(1)
        query = query[:, :, self.window - 1 :] * self.scale
        attended = attend_to_window(query, keys, values, self.ages, segment)
        return self._feed_forward(kept + self.attention_output(attended.transpose(1, 2).flatten(2)))

    def keys_values(self, x: Tensor) -> Tensor:
        """Return keys and values `[B, 2, H, P, D]` of the steps `[B, P, E]`."""
        return self._projected(x)[:, 1:]

    def _projected(self, x: Tensor) -> Tensor:
        """Return queries, keys and values, `[B, 3, H, P, D]`."""
        projected = self.query_key_value(self.attention_norm(x))
        return projected.view(*x.shape[:2], 3, self.num_heads, -1).permute(0, 2, 3, 1, 4)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.activation(self.widen(self.feedforward_norm(x))))


def attend_to_window(query: Tensor, keys: Tensor, values: Tensor, ages: Tensor, segment: Tensor) -> Tensor:
    """Return what the last Q of P = Q + W - 1 steps find in their windows, `[B, H, Q, D]`.

    Blocks of W queries meet the 2 W keys that any of them may look at: time and memory grow with Q, not its square.

    Args:
        query: `[B, H, Q, D]`, scaled.
        keys: `[B, H, P, D]`.
        values: `[B, H, P, D]`.
        ages: `[H, W, D]`, added to the keys, by age.
        segment: `[B, P]` int64, which steps see each other: those of the same number.
    """
    window, num_queries = ages.shape[1], query.shape[2]
    blocks = -(-num_queries // window)
    query = _in_blocks(query, blocks, window)
    keys, values = _pairs(keys, blocks, window), _pairs(values, blocks, window)
    # In a block, query i is key i + W - 1, so that its window are the keys i to i + W - 1, the oldest first.
    by_age = query @ ages.flip(1).transpose(-1, -2).unsqueeze(1)
    # Row i moved i places to the right: rows padded to 2 W + 1, laid end to end and read as rows of 2 W.
    scores = query @ keys.transpose(-1, -2)
    by_key: Tensor = F.pad(by_age, (0, window + 1))
    scores = scores + by_key.flatten(-2)[..., : 2 * window * window].view_as(scores)
    distance = torch.arange(2 * window, device=query.device) - torch.arange(window, device=query.device).unsqueeze(1)
    near = (distance >= 0) & (distance < window)
    segments = _pairs(segment[:, None, :, None], blocks, window)[:, 0, :, :, 0]
    same = segments[:, :, window - 1 : 2 * window - 1].unsqueeze(-1) == segments.unsqueeze(-2)
    weights = scores.masked_fill(~(near & same).unsqueeze(1), _NEVER).softmax(-1)
    return (weights @ values).flatten(2, 3)[:, :, :num_queries]


def _pairs(values: Tensor, blocks: int, window: int) -> Tensor:
    """Return `[B, H, P, D]` as overlapping blocks of 2 W steps, W apart: `[B, H, N, 2 W, D]`."""
    single = _in_blocks(values, blocks + 1, window)
    return torch.cat([single[:, :, :-1], single[:, :, 1:]], dim=3)


def _in_blocks(values: Tensor, blocks: int, window: int) -> Tensor:
    """Return `[B, H, P, D]` as `[B, H, N, W, D]`, zeros at the end."""
    rows, heads, length, size = values.shape
    padded: Tensor = F.pad(values, (0, 0, 0, blocks * window - length))
    return padded.view(rows, heads, blocks, window, size)

"""Named tensors over sequences of different lengths."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast, overload

import torch
from torch import Tensor

from rlx.data.dict_tensor import DictTensor
from rlx.data.fields import Fields, check_devices, check_keys, check_leading, map_fields, moved
from rlx.data.interop import Array, from_arrays, from_nested, to_nested
from rlx.data.lazy import Field, Lazy
from rlx.data.rows import Rows, cat_fields, integers, split_rows, take_rows
from rlx.errors import SpecError

if TYPE_CHECKING:
    from tensordict import TensorDict

_LENGTHS_KEY = "\0lengths"


class TemporalDictTensor(Fields):
    """A dictionary of tensors `[B, T, ...]` of B sequences; sequence b has `lengths[b]` valid steps, from the first on.

    What stands behind a sequence's end is padding, of no meaning. `steps["env/obs"]` is the tensor, `steps[rows]` a
    TemporalDictTensor of those sequences. It is a torch pytree.
    """

    __slots__ = ("_lengths", "_max_length")

    def __init__(
        self,
        fields: Mapping[str, Field],
        lengths: Tensor | Sequence[int],
        max_length: int | None = None,
    ) -> None:
        """Make a TemporalDictTensor and check it.

        Args:
            fields: tensors `[B, T, ...]`, or `Lazy` ones, all on one device. The dict is copied, the tensors are not.
            lengths: `[B]` integers from 0 to T, on the same device (a list goes there by itself).
            max_length: T. Without it, the fields tell it; and without fields, it is the greatest length.

        Raises:
            SpecError: a key is no string, a value no tensor, first dimensions are not B and T, devices differ, or a
                length is not from 0 to T.
        """
        own: dict[str, Field] = dict(fields)
        check_keys(own)
        tensors = [value for value in own.values() if isinstance(value, Tensor)]
        if not isinstance(lengths, Tensor):
            lengths = torch.tensor(list(lengths), dtype=torch.int64, device=tensors[0].device if tensors else None)
        if lengths.dim() != 1 or lengths.dtype is torch.bool or lengths.dtype.is_floating_point or lengths.is_complex():
            raise SpecError(f"lengths: expected integers [B], got {lengths.dtype} {list(lengths.shape)}")
        lengths = lengths.long()
        size = lengths.shape[0]
        longest = int(lengths.max()) if size else 0
        if max_length is None:
            max_length = next((value.shape[1] for value in tensors if value.dim() > 1), longest)
        if max_length < 0:
            raise SpecError(f"TemporalDictTensor: expected a max_length of 0 or more, got {max_length}")
        for key, value in own.items():
            if not isinstance(value, Lazy):
                check_leading(key, value, (size, max_length))
        check_devices(own, lengths.device)
        if size and (longest > max_length or int(lengths.min()) < 0):
            raise SpecError(f"lengths: expected 0 to {max_length}, got {integers(lengths)}")
        self._fields = own
        self._lengths = lengths
        self._max_length = max_length

    @classmethod
    def trusted(cls, fields: dict[str, Any], lengths: Tensor, max_length: int) -> Self:
        """Return a TemporalDictTensor over this very dict and tensor, unchecked: for what rlx made itself."""
        self = cls.__new__(cls)
        self._fields = fields
        self._lengths = lengths
        self._max_length = max_length
        return self

    @property
    def batch_size(self) -> int:
        """Return the number of sequences, B."""
        return self._lengths.shape[0]

    @property
    def max_length(self) -> int:
        """Return the time dimension of the tensors, T; no sequence need be that long."""
        return self._max_length

    @property
    def lengths(self) -> Tensor:
        """Return how many steps of each sequence are valid: `[B]` int64."""
        return self._lengths

    @property
    def leading_shape(self) -> tuple[int, ...]:
        """Return `(B, T)`."""
        return (self._lengths.shape[0], self._max_length)

    @property
    def device(self) -> torch.device:
        """Return the device of lengths and fields."""
        return self._lengths.device

    @property
    def num_steps(self) -> int:
        """Return the number of valid steps in all sequences; waits for the device."""
        return int(self._lengths.sum())

    def is_full(self) -> bool:
        """Return whether every sequence is T long: then there is no padding. Waits for the device."""
        return bool((self._lengths == self._max_length).all())

    def mask(self) -> Tensor:
        """Return which steps are valid: `[B, T]` bool."""
        return torch.arange(self._max_length, device=self._lengths.device) < self._lengths.unsqueeze(1)

    def _with_fields(self, fields: dict[str, Field]) -> Self:
        return self.trusted(fields, self._lengths, self._max_length)

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: Rows) -> Self: ...
    def __getitem__(self, key: str | Rows) -> Tensor | Self:
        """Return the tensor of a key, or a TemporalDictTensor of some sequences.

        Args:
            key: a field's name; or rows: an int (one sequence, the batch dimension stays), a slice, a tensor or list
                of indices (negative ones count from the end), or a boolean mask `[B]`.

        Raises:
            MissingFieldError: no such field; the message has the nearest.
            SpecError: rows that are not there.
        """
        if isinstance(key, str):
            return self._get(key)
        # The lengths go along as one more field, in front: so they are checked and chosen as the others are.
        fields, _ = take_rows({_LENGTHS_KEY: self._lengths, **self._fields}, key, self.batch_size)
        lengths = fields.pop(_LENGTHS_KEY)
        assert isinstance(lengths, Tensor)
        return self.trusted(fields, lengths, self._max_length)

    def __or__(self, other: "TemporalDictTensor") -> Self:
        """Return the fields of both, for the same sequences.

        Raises:
            SpecError: a key is in both, or the shapes or lengths differ.
        """
        fields = self._merged(other)
        if self._lengths is not other._lengths and not torch.equal(self._lengths, other._lengths):
            raise SpecError(f"a | b: the lengths differ: {integers(self._lengths)} and {integers(other._lengths)}")
        return self._with_fields(fields)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return fields and lengths on `device`; what is already there is not copied.

        Args:
            device: where to. What goes to a GPU goes by way of pinned memory, and the host goes on meanwhile: what is
                written to these tensors afterwards is not seen there.
            non_blocking: do not wait for copies from memory that is pinned already.
        """
        fields = map_fields(self._fields, lambda value: moved(value, device, non_blocking))
        return self.trusted(fields, moved(self._lengths, device, non_blocking), self._max_length)

    def clone(self) -> Self:
        """Return a copy that shares no memory with this one; builds the lazy fields."""
        fields = {key: value.clone() for key, value in self.items()}
        return self.trusted(fields, self._lengths.clone(), self._max_length)

    def unbind(self) -> list[Self]:
        """Return B TemporalDictTensors of one sequence each, all T long with the padding."""
        return [self[row] for row in range(self.batch_size)]

    def split(self, size: int | Sequence[int]) -> list[Self]:
        """Return the sequences in parts: views, made in one go.

        Args:
            size: sequences of each part, the last one being what is left; or of every part, B in all.

        Raises:
            SpecError: a size below 1, or sizes that are not B in all.
        """
        parts = split_rows({_LENGTHS_KEY: self._lengths, **self._fields}, self.batch_size, size)
        return [self.trusted(part, cast(Tensor, part.pop(_LENGTHS_KEY)), self._max_length) for part, _ in parts]

    # Along time.

    def shorten(self) -> Self:
        """Return the same sequences without the padding behind the longest; waits for the device."""
        longest = int(self._lengths.max()) if self.batch_size else 0
        return self if longest == self._max_length else self.slice_time(0, longest)

    def slice_time(self, start: int, stop: int | None = None) -> Self:
        """Return the steps `start` to `stop - 1` of each sequence: views, with the lengths that remain.

        Args:
            start: first step, from 0.
            stop: the step after the last; None or more than T means T.

        Raises:
            SpecError: a negative step (from whose end would it count?).
        """
        if start < 0 or (stop is not None and stop < 0):
            raise SpecError(f"slice_time({start}, {stop}): sequences end at different steps; count from the start")
        stop = self._max_length if stop is None else min(stop, self._max_length)
        start = min(start, stop)
        fields = map_fields(self._fields, lambda value: value[:, start:stop])
        return self.trusted(fields, (self._lengths - start).clamp_(0, stop - start), stop - start)

    def at(self, t: int | Tensor) -> DictTensor:
        """Return one step of each sequence; where the sequence has ended before, padding.

        Args:
            t: one step for all, or a tensor `[B]` of one step a row; from 0 to T - 1.

        Raises:
            SpecError: a step out of that range (a tensor on a GPU is not checked), or a tensor of a wrong shape.
        """
        size, steps = self.leading_shape
        if isinstance(t, Tensor):
            if tuple(t.shape) != (size,) or t.dtype.is_floating_point or t.dtype is torch.bool:
                raise SpecError(f"at: expected integer steps [{size}], got {t.dtype} {list(t.shape)}")
            if t.device.type == "cpu" and size and (int(t.min()) < 0 or int(t.max()) >= steps):
                raise SpecError(f"at: expected steps from 0 to {steps - 1}, got {integers(t)}")
            rows, place = torch.arange(size, device=t.device), t.long()
            return DictTensor.trusted(map_fields(self._fields, lambda value: value[rows, place]), size)
        if not 0 <= t < steps:
            raise SpecError(f"at: expected a step from 0 to {steps - 1}, got {t}")
        return DictTensor.trusted(map_fields(self._fields, lambda value: value[:, t]), size)

    def alive_at(self, t: int) -> tuple[DictTensor, Tensor]:
        """Return step `t` of the sequences that still run then, and which these are.

        Args:
            t: a step, from 0 to T - 1.

        Returns:
            The N rows with `lengths > t`, and their indices `[N]` int64.

        Raises:
            SpecError: t is out of range.
        """
        rows = (self._lengths > t).nonzero().squeeze(1)
        return self.at(t)[rows], rows

    def flatten(self) -> DictTensor:
        """Return the valid steps only, `[N, ...]`, sequence after sequence; waits for the device."""
        size, steps = self.leading_shape
        count = self.num_steps
        if count == size * steps:
            return DictTensor.trusted(map_fields(self._fields, lambda value: value.flatten(0, 1)), count)
        rows, times = self.mask().nonzero(as_tuple=True)
        return DictTensor.trusted(map_fields(self._fields, lambda value: value[rows, times]), count)

    def episodes(self, ends: Tensor | None = None) -> Self:
        """Return the sequences cut behind each episode's end, one episode (or what there is of it) a row.

        Args:
            ends: `[B, T]` bool, true at the last step of an episode. Without it, `next/terminated | next/truncated`
                (or, in the group `next` itself, `terminated | truncated`).

        Returns:
            `[E, L, ...]`, in the order of the rows and, in a row, of time; L is the longest. Padding is zero.

        Raises:
            SpecError: no `ends` and no fields that tell them, or `ends` is no `[B, T]` bool.
        """
        rows, starts, lengths = self.episode_places(ends)
        longest = int(lengths.max()) if lengths.numel() else 0
        offset = torch.arange(longest, device=self.device)
        kept = offset < lengths.unsqueeze(1)
        row = rows.unsqueeze(1)
        time = starts.unsqueeze(1) + torch.minimum(offset, lengths.unsqueeze(1) - 1)

        def cut(value: Tensor) -> Tensor:
            taken = value[row, time]
            inner = [1] * (value.dim() - 2)
            return torch.where(kept.reshape(*kept.shape, *inner), taken, taken.new_zeros(()))

        return self.trusted(map_fields(self._fields, cut), lengths, longest)

    def episode_places(self, ends: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the episodes of `episodes()` lie: row, first step and length of each, `[E]` int64."""
        if ends is None:
            prefix = "next/" if "next/terminated" in self._fields else ""
            ends = self._get(f"{prefix}terminated") | self._get(f"{prefix}truncated")
        if ends.dtype is not torch.bool or tuple(ends.shape) != self.leading_shape:
            raise SpecError(
                f"episodes: expected ends {list(self.leading_shape)} bool, got {ends.dtype} {list(ends.shape)}"
            )
        steps = torch.arange(self._max_length, device=self.device)
        last_step = steps == (self._lengths - 1).unsqueeze(1)
        last = (ends & self.mask()) | last_step
        rows, stops = last.nonzero(as_tuple=True)
        starts = torch.zeros_like(stops)
        if stops.numel():
            same_row = rows[1:] == rows[:-1]
            starts[1:] = torch.where(same_row, stops[:-1] + 1, 0)
        return rows, starts, stops + 1 - starts

    @classmethod
    def cat(cls, parts: Sequence["TemporalDictTensor"]) -> Self:
        """Return the sequences of all parts, one part after the other; shorter parts are padded with zeros.

        Args:
            parts: one at least, with the same keys (in any order).

        Raises:
            SpecError: no part, or keys, shapes or devices differ.
        """
        longest = max((part._max_length for part in parts), default=0)
        fields = cat_fields([part._padded(longest) for part in parts])
        return cls.trusted(fields, torch.cat([part._lengths for part in parts]), longest)

    def _padded(self, max_length: int) -> dict[str, Field]:
        missing = max_length - self._max_length
        if not missing:
            return self._fields

        def pad(value: Tensor) -> Tensor:
            return torch.cat([value, value.new_zeros(value.shape[0], missing, *value.shape[2:])], dim=1)

        return map_fields(self._fields, pad)

    @classmethod
    def from_numpy(
        cls,
        arrays: Mapping[str, Array],
        lengths: Tensor | Sequence[int] | Array,
        device: torch.device | str | None = None,
    ) -> Self:
        """Return tensors of these arrays `[B, T, ...]`; they share the memory where numpy and the device allow it.

        Raises:
            SpecError: a dtype that torch lacks, or shapes that do not fit.
        """
        return cls(from_arrays(arrays, device), torch.as_tensor(lengths, dtype=torch.int64, device=device))

    def to_tensordict(self) -> "TensorDict":
        """Return a tensordict `TensorDict` `[B, T]` over the same tensors, and `mask` `[B, T]` for the lengths.

        Raises:
            SpecError: a key is a field and a group at once, or there is a field `mask`.
            UserError: tensordict is not installed.
        """
        if "mask" in self._fields:
            raise SpecError("to_tensordict: a field is called 'mask', which is where the lengths go; rename it")
        return to_nested({**self._built(), "mask": self.mask()}, self.leading_shape)

    @classmethod
    def from_tensordict(cls, nested: "TensorDict") -> Self:
        """Return a TemporalDictTensor over the tensors of a `TensorDict` `[B, T]`, nested keys joined by `/`.

        Its entry `mask` (`[B, T]` bool, each row first true, then false) gives the lengths; without it all steps count.

        Raises:
            SpecError: it lacks two batch dimensions, the mask has a hole, or an entry is no tensor.
        """
        if nested.batch_dims != 2:
            raise SpecError(f"from_tensordict: expected batch_size [B, T], got {list(nested.batch_size)}")
        size, steps = nested.batch_size
        fields = from_nested(nested)
        mask = fields.pop("mask", torch.ones(size, steps, dtype=torch.bool, device=nested.device))
        lengths = mask.sum(1)
        steps_taken = cls(fields, lengths, steps)
        if not torch.equal(steps_taken.mask(), mask):
            raise SpecError("from_tensordict: 'mask' has a hole: each row must be first true, then false")
        return steps_taken

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).trusted, (self.to_dict(), self._lengths, self._max_length)

"""What a batcher hands back: sequences of steps, what each began with, and the observations at their ends."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlx.data.cuts import Cuts, bootstrap_of
from rlx.data.dict_tensor import DictTensor
from rlx.data.fields import check_devices, check_leading
from rlx.data.temporal_dict_tensor import TemporalDictTensor
from rlx.errors import SpecError


class Trajectories:
    """B sequences of up to T steps.

    A step's fields are grouped by who speaks: `env/` what the agent saw, `agent/` what it put out, `next/` what the
    environment answered: `env/obs`, `env/is_first`, `env/prev_action`, `env/prev_reward`, `agent/action`,
    `next/obs`, `next/reward`, `next/terminated`, `next/truncated`.

    Attributes:
        info: `[B]`: `agent_info/`, `env_info/`, and `agent_state/` with which each sequence began.
        steps: `[B, T]`, with lengths. `next/obs` and the `env/prev_` fields are built when they are asked for.
        context: `[B, C]`, the steps before the piece that the agent declares it needs to see again; mostly C = 0.
    """

    __slots__ = ("_bootstrap", "_num_steps", "_on_revoke", "context", "info", "steps")

    def __init__(
        self,
        info: DictTensor,
        steps: TemporalDictTensor,
        bootstrap: DictTensor | Callable[[], DictTensor] | None = None,
        context: TemporalDictTensor | None = None,
        num_steps: int | None = None,
        on_revoke: Callable[[str], None] | None = None,
    ) -> None:
        """Put the parts together; nothing is copied.

        Args:
            info: `[B]`.
            steps: `[B, T]`.
            bootstrap: `[K]`; or what returns it, called when it is first asked for. None: what `next/` tells of it.
            context: `[B, C]`; None for none.
            num_steps: the sum of the lengths, where it is known.
            on_revoke: called by `revoke`, with its message.
        """
        self.info = info
        self.steps = steps
        self._bootstrap = bootstrap if bootstrap is not None else lambda: bootstrap_of(steps)
        self.context = context if context is not None else empty_context(steps)
        self._num_steps = num_steps
        self._on_revoke = on_revoke

    @property
    def bootstrap(self) -> DictTensor:
        """Return the observations that follow a step and are no step's own, `[K]`.

        There is one after each sequence's last step and at each truncation inside it, none after a termination. `row`
        and `time` (int64) name the step that it follows; the rest is the `env/` group. With `env/obs` they are all that
        a value function must see.
        """
        if not isinstance(self._bootstrap, DictTensor):
            self._bootstrap = self._bootstrap()
        return self._bootstrap

    @property
    def num_steps(self) -> int:
        """Return the number of valid steps, the sum of the lengths."""
        if self._num_steps is None:
            self._num_steps = int(self.steps.lengths.sum())
        return self._num_steps

    def is_full(self) -> bool:
        """Return whether no sequence is padded; costs nothing where the number of steps is known."""
        return self.num_steps == self.batch_size * self.steps.max_length

    @property
    def batch_size(self) -> int:
        """Return the number of sequences, B."""
        return self.steps.batch_size

    def with_steps(self, **fields: Tensor) -> "Trajectories":
        """Return the same trajectories with more fields `[B, T, ...]` a step, such as advantages.

        Raises:
            SpecError: they have such a field already (`exclude` it first, as a reward that another takes the place of),
                or it is not of these steps.
        """
        if twice := [name for name in fields if name in self.steps]:
            raise SpecError(f"with_steps: {twice[0]!r} is there already; exclude({twice[0]!r}) first to put in another")
        for name, field in fields.items():
            check_leading(name, field, self.steps.leading_shape)
        check_devices(fields, self.steps.device)
        added = TemporalDictTensor.trusted(fields, self.steps.lengths, self.steps.max_length)
        return Trajectories(self.info, self.steps | added, self._bootstrap, self.context, self._num_steps)

    def select(self, *keys: str) -> "Trajectories":
        """Return the same trajectories with these step fields or groups only (`"env"` means all of `env/`)."""
        names = [name for name in self.steps if name in keys or any(name.startswith(f"{key}/") for key in keys)]
        return Trajectories(self.info, self.steps.select(*names), self._bootstrap, self.context, self._num_steps)

    def exclude(self, *keys: str) -> "Trajectories":
        """Return the same trajectories without these step fields or groups; what follows the last steps stays known.

        Raises:
            MissingFieldError: there is no such field.
        """
        groups = {key: [name for name in self.steps if name.startswith(f"{key}/")] for key in keys}
        names = [name for key, group in groups.items() for name in group or [key]]
        return Trajectories(self.info, self.steps.exclude(*names), self._bootstrap, self.context, self._num_steps)

    def rows(self, index: Tensor | slice) -> "Trajectories":
        """Return the sequences at `index` (int64 or bool tensor, or a slice), with what belongs to them.

        One may be there several times.
        """
        if not self.bootstrap.batch_size:  # that of minibatches has no `row` either
            return Trajectories(self.info[index], self.steps[index], self.bootstrap, self.context[index])
        ordered, place = torch.arange(self.batch_size, device=self.steps.lengths.device)[index].sort(stable=True)
        first = torch.searchsorted(ordered, self.bootstrap["row"])
        copies = torch.searchsorted(ordered, self.bootstrap["row"], right=True) - first
        source = torch.repeat_interleave(copies)
        behind = torch.arange(len(source), device=place.device) - (copies.cumsum(0) - copies)[source]
        row = place[first[source] + behind]
        bootstrap = self.bootstrap[source].exclude("row") | DictTensor({"row": row}, len(row))
        return Trajectories(self.info[index], self.steps[index], bootstrap, self.context[index])

    @classmethod
    def cat(cls, parts: Sequence["Trajectories"]) -> "Trajectories":
        """Return the sequences of all parts, one part after the other; shorter ones are padded with zeros.

        Where a part has no bootstrap, as minibatches have none, the whole has none.

        Args:
            parts: one at least, with the same fields; `select` those that all have.

        Raises:
            SpecError: no part, or fields, shapes or devices differ.
        """
        steps = TemporalDictTensor.cat([part.steps for part in parts])
        info = DictTensor.cat([part.info for part in parts])
        context = TemporalDictTensor.cat([part.context for part in parts])
        ends: list[DictTensor] = []
        if not all("row" in part.bootstrap for part in parts):
            return cls(info, steps, DictTensor.empty(0), context)
        before = 0
        for part in parts:
            if part.bootstrap.batch_size:
                row = DictTensor({"row": part.bootstrap["row"] + before})
                ends.append(part.bootstrap.exclude("row") | row)
            before += part.batch_size
        return cls(info, steps, DictTensor.cat(ends) if ends else parts[0].bootstrap, context)

    def split_steps(self) -> "Trajectories":
        """Return every valid step as a sequence of its own, `[N, 1]`: for agents without state, in any order.

        Initial states and the bootstrap are left out; `agent_info` and `env_info` follow their steps.
        """
        flat = self.steps.flatten()
        count = flat.batch_size
        drawn = [key for key in flat if key.startswith(("agent_info/", "env_info/"))]  # by samplers, for each episode
        fields = {key: flat[key].unsqueeze(1) for key in flat if key not in drawn}
        lengths = torch.ones(count, dtype=torch.int64, device=self.steps.lengths.device)
        keys = [key for key in self.info if not key.startswith("agent_state/") and key not in drawn]
        info = DictTensor.empty(count)
        if keys:
            info = self.info.select(*keys)[torch.repeat_interleave(self.steps.lengths)]
        if drawn:
            info = info | flat.select(*drawn)
        steps = TemporalDictTensor.trusted(fields, lengths, 1)
        return Trajectories(info, steps, DictTensor.empty(0), num_steps=count)

    def split_sequences(self, num_steps: int, states: TemporalDictTensor | None = None) -> "Trajectories":
        """Return the sequences cut into shorter ones, one after the other, the last of each having what is left.

        One without steps leaves none. Waits for the device.

        A part that ends inside an episode bootstraps from the observation that follows it, and its context goes back
        over the cut. Replayed from the states of acting time it gives the outputs of the whole, with gradients that end
        at the cuts: truncated backpropagation through time.

        Args:
            num_steps: steps of each part, usually 8 to 64.
            states: `[B, T]`, the state with which each step began, under the names that `info` has in `agent_state/`:
                the agent has to keep it as an output. None for an agent without a state.

        Raises:
            SpecError: `num_steps` is below 1, or a state is not told.
        """
        if num_steps < 1:
            raise SpecError(f"split_sequences: got {num_steps} steps, expected 1 or more")
        told = states is not None and not any(key.startswith("agent_state/") for key in self.info)  # what was not there
        if num_steps >= self.steps.max_length and not told:
            return self
        cuts = Cuts(self.steps, num_steps)
        return Trajectories(
            cuts.info(self.info, states),
            self.steps.episodes(cuts.ends),
            lambda: cuts.bootstrap(self.bootstrap),
            cuts.context(self.context),
            self._num_steps,
        )

    def num_minibatches(self, batch_size: int) -> int:
        """Return how many `minibatches` of `batch_size` steps there are."""
        return max(1, -(-self.batch_size // self._rows_of(batch_size)))

    def minibatches(
        self, batch_size: int, generator: torch.Generator, number: int | None = None
    ) -> Iterator["Trajectories"]:
        """Yield all sequences once, in a random order, about `batch_size` steps (of whole sequences) at a time.

        The rows are permuted once; each minibatch is then a view. The last one may be smaller.

        Args:
            batch_size: steps a minibatch, usually 32 to 4096.
            generator: source of the order, on the CPU.
            number: make exactly so many instead, each a row larger than another at most; up to `batch_size` of them.
        """
        rows = self._rows_of(batch_size) if number is None else -(-self.batch_size // number)
        if rows >= self.batch_size:  # all in one: a loss that is a mean does not see the order
            yield self
            return
        full = self.is_full()
        order = torch.randperm(self.batch_size, generator=generator).to(self.steps.lengths.device)
        sizes: int | list[int] = rows
        if number is not None:
            ends = [self.batch_size * (place + 1) // number for place in range(number)]
            sizes = [end - start for start, end in itertools.pairwise([0, *ends])]
        infos, steps = self.info[order].split(sizes), self.steps[order].split(sizes)
        contexts = self.context[order].split(sizes) if self.context.max_length else [None] * len(steps)
        nothing = DictTensor.empty(0)
        for info, chosen, context in zip(infos, steps, contexts, strict=True):
            num_steps = chosen.batch_size * chosen.max_length if full else None
            yield Trajectories(info, chosen, nothing, context, num_steps)

    def _rows_of(self, batch_size: int) -> int:
        """Return the sequences of a minibatch of about `batch_size` steps."""
        return max(1, round(batch_size / max(1, self.steps.max_length)))

    def to(self, device: torch.device | str) -> "Trajectories":
        """Return the trajectories on `device`; themselves where they are there already."""
        if self.steps.device == torch.device(device):
            return self
        return Trajectories(
            self.info.to(device),
            self.steps.to(device),
            self.bootstrap.to(device),
            self.context.to(device),
            self._num_steps,
        )

    def clone(self) -> "Trajectories":
        """Return a copy that outlives the next `get` of the batcher."""
        return Trajectories(
            self.info.clone(), self.steps.clone(), self.bootstrap.clone(), self.context.clone(), self._num_steps
        )

    def revoke(self, message: str) -> None:
        """Make every later access to the fields raise `DataRevokedError(message)`."""
        for part in (self.info, self.steps, self._bootstrap, self.context):
            if not callable(part):
                part.revoke(message)
        if self._on_revoke is not None:
            self._on_revoke(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.info, self.steps, self.bootstrap, self.context, self._num_steps)

    def __repr__(self) -> str:
        return f"Trajectories(batch_size={self.batch_size}, max_length={self.steps.max_length}, steps={self.steps!r})"


def empty_context(steps: TemporalDictTensor) -> TemporalDictTensor:
    """Return a context of no steps for the sequences of `steps`."""
    return TemporalDictTensor.trusted({}, torch.zeros_like(steps.lengths), 0)

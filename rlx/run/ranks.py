"""The ranks of a distributed learner, and all that they say to each other: sums of tensors.

Alone, each of these calls returns at once what it was given, so that an algorithm reads the same either way.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributed as torch_distributed

from rlx.agent.normalizer import Moments
from rlx.data import TemporalDictTensor, Trajectories
from rlx.errors import RankError, RlxError, UserError, message_of
from rlx.run.signals import StopRequested
from rlx.run.watch import Watch

distributed: Any = torch_distributed  # some of its functions have no types
_LOOK = timedelta(seconds=1)
_SPIN_SECONDS = 0.002

StdMean = Callable[[Tensor], tuple[Tensor, Tensor] | None]
"""Takes values `[...]`, and returns standard deviation and mean of those of all ranks; None where one is alone."""


class Ranks:
    """This process's place among those that learn together.

    All ranks have to make the same calls in the same order. Use it in a `with` statement: what ends one rank ends all.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, watch: Watch | None = None) -> None:
        """Take the place; see `rlx.run.rendezvous.join` for how one gets there."""
        self.rank, self.size = rank, size
        self._watch = watch
        self._buffer = torch.empty(0)

    def average_gradients(self, module: nn.Module, samples: int) -> None:
        """Make each gradient the mean over all samples of all ranks: one all-reduce over all of them.

            g = sum_r n_r g_r / sum_r n_r, g_r being the gradient of the mean over the n_r samples of rank r

        Args:
            module: whose parameters' gradients; the same on all ranks.
            samples: that this rank's gradient is the mean over, n_r; 0 for nothing to add.
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = _as_one(gradients)
        pieces = [flat] if flat is not None else [gradient.view(-1) for gradient in gradients]
        count = sum(piece.numel() for piece in pieces)
        if len(self._buffer) != count + 1 or (pieces and self._buffer.device != pieces[0].device):
            self._buffer = torch.empty(count + 1, device=pieces[0].device if pieces else "cpu")
        buffer, sums = self._buffer, self._buffer[:-1]
        if flat is not None:
            torch.mul(flat, samples, out=sums)
        elif pieces:
            torch.cat(pieces, out=sums)
            sums.mul_(samples)
        buffer[-1] = samples
        self.reduce(buffer)
        total = buffer[-1].clamp(min=1.0)
        place = 0
        for piece in pieces:
            torch.div(sums[place : place + piece.numel()], total, out=piece)
            place += piece.numel()

    def sum(self, number: float) -> float:
        """Return the sum of a number over the ranks."""
        return number if self.size == 1 else float(self.reduce(torch.tensor([number], dtype=torch.float64)))

    def mean(self, number: float, samples: int) -> float:
        """Return the mean of a number over the samples of all ranks, each of which gives that of its own."""
        if self.size == 1:
            return number
        both = torch.tensor([number * samples if samples else 0.0, samples], dtype=torch.float64)
        total, count = self.reduce(both).unbind()
        return float(total) / max(float(count), 1.0)

    def gather(self, row: Tensor) -> Tensor:
        """Return the rows `[K]` of all ranks, `[size, K]`, in order."""
        if self.size == 1:
            return row.unsqueeze(0)
        rows = torch.zeros(self.size, *row.shape, dtype=row.dtype)
        rows[self.rank] = row.cpu()
        return self.reduce(rows).to(row.device)

    def std_mean(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the standard deviation and the mean of the values `[...]` of all ranks; alone, None.

        The sum of squares is divided by one less than the count, as `torch.std_mean` does.
        """
        if self.size == 1:
            return None
        flat = values.detach().flatten()
        merged, *others = (Moments(*row.unbind()) for row in self.gather(torch.stack(Moments.of(flat))))
        for other in others:
            merged = merged.merge(other)
        std = (merged.squares / (merged.number - 1).clamp(min=1.0)).sqrt()
        return std.to(values.dtype), merged.mean.to(values.dtype)

    def std_mean_of(self, steps: TemporalDictTensor, key: str) -> tuple[Tensor, Tensor] | None:
        """Return the same of a field's valid steps."""
        return None if self.size == 1 else self.std_mean(steps.select(key).flatten()[key])

    def num_minibatches(self, batch: Trajectories, batch_size: int) -> int | None:
        """Return into how many minibatches each rank divides its batch, so that all make as many updates; alone, None.

        As many as the rank with most needs, but no more than any has sequences: no minibatch is empty.
        """
        if self.size == 1:
            return None
        found = self.gather(torch.tensor([batch.num_minibatches(batch_size), batch.batch_size]))
        most, fewest = int(found[:, 0].max()), int(found[:, 1].min())
        return max(1, min(most, fewest))

    def broadcast(self, module: nn.Module) -> None:
        """Give all ranks the parameters and buffers that rank 0 has."""
        if self.size == 1:
            return
        for value in module.state_dict().values():
            sent = value.detach().clone(memory_format=torch.contiguous_format)
            self._exchange(partial(distributed.broadcast, sent, 0, async_op=True), sent.is_cuda)
            value.copy_(sent)

    def exchange_text(self, text: str) -> list[str]:
        """Return the texts of all ranks, in order."""
        sent = text.encode(errors="surrogateescape")  # paths may be of any bytes
        return [data.decode(errors="surrogateescape") for data in self.collect(sent, everywhere=True)]

    def collect(self, data: bytes, *, everywhere: bool = False) -> list[bytes]:
        """Return the data of all ranks, in order: on rank 0, or everywhere; elsewhere nothing."""
        if self.size == 1:
            return [data]
        sizes = [int(size) for size in self.gather(torch.tensor([len(data)]))[:, 0]]
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        if everywhere:
            block = torch.zeros(self.size, max(sizes), dtype=torch.uint8)
            block[self.rank, : len(own)] = own
            self.reduce(block)
            return [block[rank, :size].numpy().tobytes() for rank, size in enumerate(sizes)]
        if self.rank:
            if data:
                self._exchange(partial(distributed.isend, own, 0))
            return []
        found = [data]
        for rank, size in enumerate(sizes[1:], start=1):
            received = torch.empty(size, dtype=torch.uint8)
            if size:
                self._exchange(partial(distributed.irecv, received, rank))
            found.append(received.numpy().tobytes())
        return found

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place.

        Raises:
            RankError: another rank failed, died, or did not come within the time limit.
        """
        self._exchange(partial(distributed.all_reduce, tensor, async_op=True), tensor.is_cuda)
        return tensor

    @contextlib.contextmanager
    def busy(self, doing: str) -> Generator[None]:
        """Let the others wait for longer than the limit: this rank does something that takes its time."""
        with contextlib.nullcontext() if self._watch is None else self._watch.busy(doing):
            yield

    def wait_for_end(self) -> None:
        """Wait until rank 0 has written all that is to be written: who ends before is taken for one that failed."""
        self.sum(0.0)

    def _exchange(self, begin: Callable[[], Any], on_gpu: bool = False) -> None:
        """Begin an exchange and wait for its end; look after the others meanwhile, and let signals be heard."""
        watch = self._watch
        assert watch is not None
        watch.collectives += 1
        if watch.lost:
            raise watch.failure(RankError("the store is gone"))
        try:
            work = begin()
            wait, began = watch.waiting(), time.monotonic()
            while not (_is_done_on_gpu(work, began) if on_gpu else _is_done(work)):
                wait.look()
        except RuntimeError as error:
            raise watch.failure(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the others; where an error ends this rank, tell them.

        Raises:
            SystemExit: another rank tells the user what this error came from, or rank 0 what all know.
        """
        watch = self._watch
        if watch is None:
            return
        if error is None:
            watch.close()
            distributed.destroy_process_group()
            return
        if threading.current_thread() is threading.main_thread():
            # This process is at its end. torchrun tells those that are left to end when the first one has, which must
            # not change the exit status of who is about to leave.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        agreed = isinstance(error, StopRequested) and error.safe
        status = getattr(error, "exit_status", 130 if isinstance(error, KeyboardInterrupt) else 1)
        first = self.rank == 0 if agreed else watch.tell(status, _in_short(error))
        told = None if first else watch.told()
        watch.part()
        if not first:
            raise SystemExit(status if agreed or told is None else told[1]) from None
        if isinstance(error, RlxError):
            error.of_one_rank = True
        if self.rank and isinstance(error, RlxError) and not isinstance(error, RankError | UserError):
            error.args = (f"rank {self.rank}: {error}", *error.args[1:])


def _is_done(work: Any) -> bool:
    """Wait for an exchange of Gloo, a second at most, and return whether it has ended."""
    try:
        work.wait(_LOOK)
    except RuntimeError:
        if work.is_completed():
            raise
        return False
    return True


def _is_done_on_gpu(work: Any, began: float) -> bool:
    """Do the same for one of NCCL, for which a wait that is over is the end of everything: so this asks, and asks."""
    deadline = time.monotonic() + _LOOK.total_seconds()
    while not work.is_completed():
        if time.monotonic() - began > _SPIN_SECONDS:
            time.sleep(_SPIN_SECONDS / 10)
        if time.monotonic() > deadline:
            return False
    work.wait()
    return True


def _in_short(error: BaseException) -> str:
    text = " ".join(message_of(error).split())[:2000]
    return text if isinstance(error, RlxError | StopRequested) and text else f"{type(error).__name__}: {text}"


def _as_one(tensors: list[Tensor]) -> Tensor | None:
    """Return the tensors as one, where they lie behind each other in one memory; else None."""
    if not tensors:
        return None
    first = tensors[0]
    place = first.data_ptr()
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.dtype != first.dtype or tensor.data_ptr() != place:
            return None
        place += tensor.numel() * tensor.element_size()
    count = sum(tensor.numel() for tensor in tensors)
    behind = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
    return first.as_strided((count,), (1,)) if behind >= count else None

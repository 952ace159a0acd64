"""How losses are computed: compiled by torch.compile, in what precision, or as they stand; and on what memory."""

import ctypes
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rlx.agent import Agent, is_stateful
from rlx.errors import ConfigError, DeviceError

Precision = Literal["float32", "tf32", "bfloat16"]

Loss = Callable[..., dict[str, Tensor]]
"""An algorithm's `loss`: any arguments, and terms by name."""


class Compute:
    """What `compile=true` and `precision=bfloat16` make of an algorithm's loss.

        loss_of = run.compute(loss, agent)
        terms = loss_of(agent, batch, ...)
        terms["loss/total"].backward()

    Off, it returns the very function, and torch's compiler, which takes as long to import as torch, is never imported.
    """

    def __init__(self, device: torch.device, *, compile: bool, precision: Precision) -> None:
        """Check that the device can do what is asked for.

        Args:
            device: the learner's.
            compile: whether losses, forward and backward, are compiled.
            precision: of the losses' matrix products and convolutions; `bfloat16` halves their traffic, `tf32` rounds
                what they read to 10 bits. Parameters, their gradients, the optimiser and the mathematics of the loss
                stay float32.

        Raises:
            ConfigError: there is no compiler; or tf32 is asked of another device than a GPU.
            DeviceError: the device has no bfloat16.
        """
        self._device, self._compile, self._precision = device, compile, precision
        self._used = False
        if compile:
            _check_compiler(device)
        if precision == "tf32" and device.type != "cuda":
            raise ConfigError(f"precision: tf32 is a format of NVIDIA's GPUs, and device={device}; expected float32")
        if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise DeviceError(f"precision: {torch.cuda.get_device_name(device)} has no bfloat16; expected float32")

    def __call__(
        self, loss: Loss, agent: Agent, *, moving: Collection[str] = (), uncompiled_since: str | None = None
    ) -> Loss:
        """Return the loss as it is to be called.

        Args:
            loss: a function of tensors and numbers that prints nothing and changes nothing.
            agent: what it is a loss of.
            moving: keywords whose numbers change from call to call and bound tensors: a compiled loss gets them as
                0-dimensional tensors. As numbers they would be a part of its code, and each a reason to compile anew.
            uncompiled_since: why it cannot be compiled, where it cannot.

        Raises:
            ConfigError: it is to be compiled, and cannot be.
        """
        self._used = True
        computed = self._compiled(loss, agent, moving, uncompiled_since) if self._compile else loss
        if self._precision != "bfloat16":
            return computed

        @wraps(loss)
        def in_bfloat16(*arguments: Any, **keywords: Any) -> dict[str, Tensor]:
            # No cache of cast weights: one that was filled under no_grad would keep gradients from the parameters.
            with torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False):
                return computed(*arguments, **keywords)

        return in_bfloat16

    def check_used(self, title: str) -> None:
        """Refuse what an algorithm would not heed, since it never asks for its loss here.

        Raises:
            ConfigError: it is asked for, and the algorithm does not.
        """
        asked = {"compile=true": self._compile, f"precision={self._precision}": self._precision == "bfloat16"}
        for option, on in asked.items():
            if on and not self._used:
                raise ConfigError(f"{option}: {title} cannot do that: its train() never calls run.compute(loss, agent)")

    def _compiled(self, loss: Loss, agent: Agent, moving: Collection[str], uncompiled_since: str | None) -> Loss:
        name = loss.__module__
        if uncompiled_since is not None:
            raise ConfigError(f"compile: {name} cannot be compiled, since {uncompiled_since}; expected compile=false")
        if is_stateful(agent):
            raise ConfigError(
                f"compile: {type(agent).__name__} has a memory, which torch.compile cannot follow; expected "
                "compile=false, or an agent without one"
            )
        # On a GPU the kernels of an update are launched together, as a graph, forward and backward: with small networks
        # launching takes most of the time. What such a graph returns lies where the next call writes.
        in_graphs = self._device.type == "cuda"
        compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead" if in_graphs else None)

        @wraps(loss)
        def call(*arguments: Any, **keywords: Any) -> dict[str, Tensor]:
            for key in moving:
                keywords[key] = torch.tensor(keywords[key], dtype=torch.float32, device=self._device)
            try:
                if not in_graphs:
                    return compiled(*arguments, **keywords)
                torch.compiler.cudagraph_mark_step_begin()
                return {name: term.clone() for name, term in compiled(*arguments, **keywords).items()}
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                reason = " ".join(str(error).strip().split("\n\n")[0].split()).rstrip(".")
                raise ConfigError(
                    f"compile: torch cannot compile {name} with {type(agent).__name__}: {reason}; expected "
                    "compile=false"
                ) from error

        return call


def find_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        DeviceError: it is not here.
        ConfigError: there is no such kind of device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: got {name!r}, expected cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigError(f"device: got {name!r}, expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    index = cast("int | None", device.index)
    if not count or (index is not None and index >= count):
        raise DeviceError(f"device: got {name!r}, but this machine has {count} CUDA devices; device=cpu works anywhere")
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def set_float32_products(precision: Precision) -> None:
    """Say how a GPU computes this process's float32 products, convolutions and recurrences. Without one, nothing.

    torch's default is TF32 for those of cuDNN, convolutions and recurrences, and not for matrix products: what a GRU or
    a convolution says of a sequence is then up to 1e-3 off what it said while acting, elsewhere or step by step.

    Args:
        precision: `tf32` allows it for all of them, anything else for none.
    """
    if torch.cuda.is_available():
        with warnings.catch_warnings():  # some versions advise settings that torch's own compiler cannot read
            warnings.simplefilter("ignore", UserWarning)
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def accept_scattered_weights() -> None:
    """Leave out the advice of cuDNN to keep a recurrent layer's weights in a piece of memory that begins with them.

    An optimiser of rlx keeps all weights in one (`rlx.agent.flatten_parameters`), and cuDNN copies a layer's own out of
    it at each call.
    """
    warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk", UserWarning)


def keep_freed_memory() -> None:
    """Have this process keep the memory that tensors free, up to 1 GB, for the next ones. Where the C library is glibc.

    By default it gives blocks of megabytes back to the system as soon as they are free, and each is cleared and mapped
    anew, page by page, at the next update: a sixth of the time of learning from 256 images.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes
        mallopt(trim_threshold, 2**30)


def _check_compiler(device: torch.device) -> None:
    """Check for what torch.compile makes its code with: a C++ compiler, and for a GPU Triton.

    Raises:
        ConfigError: it is not here.
    """
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        raise ConfigError(
            f"compile: torch.compile needs a C++ compiler, and there is no '{wanted}'; install one, or name yours in "
            "the environment variable CXX; compile=false needs none"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("compile: on a GPU torch.compile needs Triton, which is not installed: pip install triton")

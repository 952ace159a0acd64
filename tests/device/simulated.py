"""A second device made of host memory, `sim`: torch computes there as on the CPU, and refuses what mixes the two.

It stands in for a GPU where there is none. What runs there to the same numbers as on the CPU keeps its tensors in one
place, draws from the device's own generators and moves what has to be moved. It says nothing of speed, streams or CUDA.
"""

import shutil
import subprocess
import sysconfig
import types
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

COMPILER = shutil.which("g++")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ACCELERATORS = [
    pytest.param("cuda", marks=NEEDS_CUDA),
    pytest.param("sim", marks=[pytest.mark.device, pytest.mark.skipif(COMPILER is None, reason="needs g++")]),
]


def is_registered() -> bool:
    """Return whether torch knows the device."""
    return hasattr(torch, "sim")


def register(folder: Path) -> None:
    """Build the device in `folder` (half a minute) and let torch know it; once in a process."""
    home, library = Path(torch.__file__).parent, folder / "simulated.so"
    include = [home / "include", home / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    if not library.exists():
        assert COMPILER is not None
        made = library.with_suffix(".new")
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", abi, *(f"-I{path}" for path in include)]
        linked = [f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        source = Path(__file__).with_name("simulated.cpp")
        subprocess.run([COMPILER, *flags, str(source), "-o", str(made), *linked], check=True)
        made.replace(library)
    torch.utils.rename_privateuse1_backend("sim")
    torch.ops.load_library(library)
    torch._register_device_module("sim", _module())


def _module() -> types.ModuleType:
    """Return `torch.sim`: what torch asks of a kind of device."""

    def device(_index: Any) -> AbstractContextManager[None]:
        return nullcontext()

    module: Any = types.ModuleType("torch.sim")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.device = device
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    return module

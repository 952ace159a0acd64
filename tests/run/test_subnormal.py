"""What is taken for zero, where, and in which threads."""

import subprocess
import sys

import torch

from rlx.run.subnormal import subnormals_as_zero

TINY = 1e-310

THREADS = """
import torch
from torch.optim.adam import adam
from rlx.run.subnormal import prepare_threads, subnormals_as_zero

torch.set_num_threads(2)
prepare_threads()
count = 2**18
tensors = [[torch.full((count,), 1e-40)] for _ in range(4)]
keywords = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8}
with subnormals_as_zero():
    adam(*tensors, [], [torch.zeros(())], fused=True, maximize=False, **keywords)
for [moments] in tensors[2:]:
    print(int(moments.count_nonzero()))
"""


def test_subnormals_are_zero_within_and_themselves_outside() -> None:
    with subnormals_as_zero():
        assert TINY * 0.5 == 0.0
        assert torch.tensor([1e-40]).mul(0.5).count_nonzero() == 0
    assert TINY * 0.5 > 0.0
    assert torch.tensor([1e-40]).mul(0.5).count_nonzero() == 1


def test_who_has_had_them_taken_for_zero_before_keeps_that() -> None:
    torch.set_flush_denormal(True)
    try:
        with subnormals_as_zero():
            pass
        assert TINY * 0.5 == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_all_of_torchs_threads_take_them_for_zero_once_they_are_prepared() -> None:
    shown = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["0", "0"], shown

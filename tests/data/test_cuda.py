"""The same operations on another device as on the CPU: a GPU where there is one, and one that is simulated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlx.data import DictTensor, EnvSpecs, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.errors import SpecError
from tests.device.simulated import ACCELERATORS

pytestmark = pytest.mark.parametrize("device", ACCELERATORS)

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32]


def dict_tensor() -> DictTensor:
    return DictTensor({str(dtype): torch.arange(12).reshape(4, 3).to(dtype) for dtype in DTYPES})


def sequences() -> TemporalDictTensor:
    fields = {str(dtype): torch.arange(24).reshape(4, 3, 2).to(dtype) for dtype in DTYPES}
    return TemporalDictTensor(fields, [3, 0, 2, 1])


def ends(steps: TemporalDictTensor) -> torch.Tensor:
    return torch.tensor([[False, True, False]] * 4, device=steps.device)


@pytest.mark.parametrize(
    "operation",
    [
        lambda data: data[1:3],
        lambda data: data[-1],
        lambda data: data[[-1, 0, 0]],
        lambda data: data[torch.tensor([-1, 0], device=data.device)],
        lambda data: data[torch.tensor([True, False, False, True], device=data.device)],
        lambda data: DictTensor.cat([data, data]),
        lambda data: DictTensor.where(torch.tensor([True, False] * 2, device=data.device), data, data[[3, 2, 1, 0]]),
        lambda data: data.clone().copy_rows_(data, [0, 1], torch.tensor([2, -1], device=data.device)),
        lambda data: data.clone(),
    ],
)
def test_rows_on_a_gpu_are_those_on_the_cpu(operation: Callable[[DictTensor], DictTensor], device: str) -> None:
    here, there = operation(dict_tensor()), operation(dict_tensor().to(device))
    assert there.device == torch.device(device, 0)
    assert there.batch_size == here.batch_size
    for key, value in here.items():
        assert torch.equal(there[key].cpu(), value)


@pytest.mark.parametrize(
    "operation",
    [
        lambda steps: steps[[2, -1]],
        lambda steps: steps.slice_time(1),
        lambda steps: steps.shorten(),
        lambda steps: steps.at(1),
        lambda steps: steps.at(torch.tensor([2, 0, 1, 0], device=steps.device)),
        lambda steps: steps.alive_at(1)[0],
        lambda steps: steps.flatten(),
        lambda steps: steps.episodes(ends(steps)),
        lambda steps: TemporalDictTensor.cat([steps, steps.slice_time(0, 1)]),
    ],
)
def test_sequences_on_a_gpu_are_those_on_the_cpu(operation: Callable[[TemporalDictTensor], Any], device: str) -> None:
    here, there = operation(sequences()), operation(sequences().to(device))
    assert there.leading_shape == here.leading_shape
    for key, value in here.items():
        assert torch.equal(there[key].cpu(), value)
    if isinstance(here, TemporalDictTensor):
        assert torch.equal(there.lengths.cpu(), here.lengths)
        assert torch.equal(there.mask().cpu(), here.mask())


def test_a_copy_to_a_gpu_does_not_see_what_is_written_behind_it(device: str) -> None:
    values = torch.zeros(512, 1024).T
    there = DictTensor({"a": values}).to(device)
    steps = TemporalDictTensor({"a": values}, [512] * 1024).to(device)
    values.fill_(1.0)
    assert not bool(there["a"].any())
    assert not bool(steps["a"].any())
    assert there["a"].stride() == values.stride()  # copied as it lies


def test_rows_that_lie_upon_each_other_are_copied_to_a_gpu(device: str) -> None:
    data = DictTensor({"same": torch.ones(1).expand(4), "sliding": torch.arange(6.0).unfold(0, 3, 1)})
    there = data.to(device)
    for key, value in data.items():
        assert torch.equal(there[key].cpu(), value)


def test_gradients_pass_through_a_copy_to_a_gpu(device: str) -> None:
    leaf = torch.ones(3, requires_grad=True)
    DictTensor({"a": leaf}).to(device)["a"].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [1.0] * 3


def test_two_devices_in_one_are_refused(device: str) -> None:
    with pytest.raises(SpecError, match=f"'b' is on {device}:0, but field 'a' on cpu"):
        DictTensor({"a": torch.zeros(2), "b": torch.zeros(2, device=device)})
    with pytest.raises(SpecError, match="the lengths"):
        TemporalDictTensor({"a": torch.zeros(2, 2, device=device)}, torch.tensor([1, 1]))


def test_lists_of_lengths_go_where_the_fields_are(device: str) -> None:
    assert TemporalDictTensor({"a": torch.zeros(2, 2, device=device)}, [1, 2]).lengths.device.type == device


@pytest.mark.parametrize("alpha", [None, 0.6])
def test_what_is_drawn_for_a_gpu_bootstraps_there_and_tells_its_priorities_from_there(
    alpha: float | None, device: str
) -> None:
    specs = EnvSpecs({"obs": Spec((), torch.float32)}, {"action": Spec((), torch.int64, "discrete", nvec=(2,))})
    never, count = torch.zeros(2, 8, dtype=torch.bool), torch.arange(16.0).view(2, 8)
    fields = {"env/obs": count, "next/obs": count + 1, "agent/action": never.long(), "next/reward": count}
    fields |= {"next/terminated": never, "next/truncated": never, "env/is_first": torch.arange(8).expand(2, 8) == 0}
    state = {"hidden": Spec((), torch.float32)}
    buffer = ReplayBuffer(specs, capacity=60, num_envs=2, state=state, state_every=8, alpha=alpha)
    info = DictTensor({"agent_state/hidden": torch.zeros(2)})
    buffer.add(Trajectories(info, TemporalDictTensor(fields, [8, 8]), DictTensor.empty(0)))
    found = []
    for place in ("cpu", device):
        draws = torch.Generator().manual_seed(0)
        for batch in buffer.batches(3, 4, draws, num_steps=5, device=place):
            assert batch.steps.device.type == place
            bootstrap = batch.bootstrap
            assert {value.device.type for value in bootstrap.values()} == {place}
            found.append({key: value.tolist() for key, value in bootstrap.items()})
            if alpha is not None:
                buffer.update_priorities(batch.info["slot"], torch.ones(4, device=place))
    assert found[3:] == found[:3] or alpha is not None

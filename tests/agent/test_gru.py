import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rlx.agent.gru import run_gru, runs_here
from rlx.errors import AgentError


def case(counts: list[int], dtype: torch.dtype) -> tuple[nn.GRU, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    cell = nn.GRU(5, 7, dtype=dtype)
    features = torch.randn(sum(counts), 5, dtype=dtype, requires_grad=True)
    initial = torch.randn(counts[0], 7, dtype=dtype, requires_grad=True)
    return cell, features, initial, torch.randn(sum(counts), 7, dtype=dtype)


@pytest.mark.parametrize("counts", [[3, 3, 3], [4, 2, 1, 1], [5], [1] * 6], ids=str)
def test_outputs_and_gradients_are_those_of_torch(counts: list[int]) -> None:
    cell, features, initial, wanted = case(counts, torch.float64)
    leaves = [features, initial, *cell.parameters()]
    expected = cell(PackedSequence(features, torch.tensor(counts)), initial.unsqueeze(0))[0].data
    got = run_gru(cell, features, initial, counts)
    torch.testing.assert_close(got, expected)
    of_expected = torch.autograd.grad((expected * wanted).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((got * wanted).sum(), leaves), of_expected)


def test_gradients_are_those_of_finite_differences() -> None:
    cell, features, initial, _ = case([3, 2, 1], torch.float64)
    assert torch.autograd.gradcheck(lambda x, h: run_gru(cell, x, h, [3, 2, 1]), (features, initial))


@pytest.mark.parametrize("counts", [[4], [2, 2]], ids=str)
def test_gradients_of_gradients_are_refused(counts: list[int]) -> None:
    cell, features, initial, _ = case(counts, torch.float64)
    with pytest.raises(AgentError, match="no gradients of gradients"):
        torch.autograd.grad(run_gru(cell, features, initial, counts).sum(), features, create_graph=True)


def test_other_cells_and_mixed_precision_are_left_to_torch() -> None:
    features = torch.zeros(1, 2)
    assert runs_here(nn.GRU(2, 2), features)
    assert not runs_here(nn.LSTM(2, 2), features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not runs_here(nn.GRU(2, 2), features)

"""The sum tree beside a plain running sum."""

import pytest
import torch

from rlx.data import SumTree


def reference(weights: torch.Tensor, mass: float) -> int:
    running = 0.0
    for place, weight in enumerate(weights.tolist()):
        running += weight
        if running > mass:
            return place
    raise AssertionError(mass)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 10_000, 17_000, 40_000])
def test_found_places_are_those_of_the_running_sum(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    tree, weights = SumTree(size), torch.zeros(size, dtype=torch.float64)
    for _ in range(5):
        places = torch.randperm(size, generator=generator)[: max(1, size // 2)]
        new = torch.randint(0, 4, (len(places),), generator=generator).double()
        new[0] = 1.0
        tree.set(places, new)
        weights[places] = new
        assert torch.equal(tree.weights, weights)
        assert tree.total.item() == weights.sum().item()
        mass = torch.rand(20, generator=generator, dtype=torch.float64) * weights.sum()
        assert tree.find(mass).tolist() == [reference(weights, value) for value in mass.tolist()]


def test_no_place_of_weight_zero_is_ever_found_not_even_at_the_edges() -> None:
    tree = SumTree(40_000)
    tree.set(torch.tensor([3, 70, 39_999]), torch.tensor([0.1, 0.2, 0.3]))
    total = tree.total
    edges = torch.stack([total * 0, total, total * (1 + 1e-9), torch.tensor(0.1).double(), total * 0.5])
    assert set(tree.find(edges).tolist()) <= {3, 70, 39_999}
    assert tree.find(total.unsqueeze(0)).item() == 39_999


def test_places_are_drawn_in_proportion_to_their_weights() -> None:
    tree, generator = SumTree(300), torch.Generator().manual_seed(0)
    tree.set(torch.tensor([0, 64, 128, 299]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    drawn = torch.cat([tree.draw(10, generator) for _ in range(200)])
    counts = torch.bincount(drawn, minlength=300)[[0, 64, 128, 299]]
    assert counts.tolist() == [200, 400, 600, 800]  # ten equal parts of the total: exact, not only on average


def test_sums_do_not_drift_however_often_weights_change() -> None:
    tree, generator = SumTree(200), torch.Generator().manual_seed(0)
    for _ in range(3000):
        tree.set(torch.randint(200, (1,), generator=generator), 10 ** torch.randn(1, generator=generator).mul(4))
    tree.set(torch.arange(200), 0.0)
    assert tree.total.item() == 0.0


def test_the_bytes_are_those_that_it_takes() -> None:
    for size in (1, 64, 65, 100_000):
        tree = SumTree(size)
        assert SumTree.num_bytes(size) == sum(level.numel() * 8 for level in tree._levels)

"""Fields that are built when they are asked for, and fields that were taken away."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlx.data import DictTensor, Lazy, TemporalDictTensor
from rlx.errors import DataRevokedError, SpecError


class Counted:
    """Makes a tensor, and counts how often."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.times = 0

    def __call__(self) -> Tensor:
        self.times += 1
        return self.value


def test_a_lazy_field_is_built_once_and_kept() -> None:
    make = Counted(torch.arange(3))
    lazy = Lazy(make)
    dict_tensor = DictTensor({"a": lazy}, 3)
    assert not lazy.is_built
    assert dict_tensor["a"] is dict_tensor["a"] is make.value
    assert lazy.is_built
    assert make.times == 1
    assert repr(lazy) == "Lazy(built)"
    assert repr(Lazy(make)) == "Lazy(not built)"


DICT_OPERATIONS: list[tuple[Callable[[DictTensor], DictTensor], list[int]]] = [
    (lambda data: data[1:], [1, 2]),
    (lambda data: data[[-1, 0]], [2, 0]),
    (lambda data: data[torch.tensor([True, False, True])], [0, 2]),
    (lambda data: data[1], [1]),
    (lambda data: data.unbind()[2], [2]),
    (lambda data: data.select("a"), [0, 1, 2]),
    (lambda data: data.exclude("b"), [0, 1, 2]),
    (lambda data: data.add_prefix("g").group("g"), [0, 1, 2]),
    (lambda data: data | DictTensor({"c": torch.zeros(3)}), [0, 1, 2]),
    (lambda data: data.to("cpu"), [0, 1, 2]),
    (lambda data: data.detach(), [0, 1, 2]),
    (lambda data: data.map(lambda value: value + 1), [1, 2, 3]),
    (lambda data: data.split(2)[1], [2]),
    (lambda data: data.split([1, 2])[1], [1, 2]),
    (lambda data: DictTensor.cat([data, data]), [0, 1, 2, 0, 1, 2]),
    (lambda data: DictTensor.where(torch.tensor([True, False, True]), data, data.clone()), [0, 1, 2]),
]


@pytest.mark.parametrize(("operation", "expected"), DICT_OPERATIONS)
@pytest.mark.parametrize("alone", [True, False])
def test_operations_on_rows_leave_lazy_fields_lazy(
    operation: Callable[[DictTensor], DictTensor], expected: list[int], alone: bool
) -> None:
    make = Counted(torch.arange(3))
    data = DictTensor({"a": Lazy(make)} | ({} if alone else {"b": torch.zeros(3)}), 3)
    if alone and operation is DICT_OPERATIONS[6][0]:
        data = data | DictTensor({"b": torch.zeros(3)})
    cloning = operation is DICT_OPERATIONS[-1][0]
    result = operation(data)
    assert make.times == (1 if cloning else 0)
    assert result["a"].tolist() == expected
    assert make.times == 1
    assert data["a"].tolist() == [0, 1, 2]
    assert make.times == 1


TIME_OPERATIONS: list[tuple[Callable[[TemporalDictTensor], Any], list[Any]]] = [
    (lambda steps: steps[[1]], [[3, 4, 5]]),
    (lambda steps: steps.split(1)[1], [[3, 4, 5]]),
    (lambda steps: steps.slice_time(1), [[1, 2], [4, 5]]),
    (lambda steps: steps.shorten(), [[0, 1], [3, 4]]),
    (lambda steps: steps.at(0), [0, 3]),
    (lambda steps: steps.at(torch.tensor([2, 0])), [2, 3]),
    (lambda steps: steps.alive_at(1)[0], [1]),
    (lambda steps: steps.flatten(), [0, 1, 3]),
    (lambda steps: steps.slice_time(0, 1).flatten(), [0, 3]),
    (lambda steps: steps.episodes(torch.ones(2, 3, dtype=torch.bool)), [[0], [1], [3]]),
    (lambda steps: TemporalDictTensor.cat([steps, steps.slice_time(2)]), [[0, 1, 2], [3, 4, 5], [2, 0, 0], [5, 0, 0]]),
    (lambda steps: steps.to("cpu"), [[0, 1, 2], [3, 4, 5]]),
    (lambda steps: steps.detach().add_prefix("g").group("g"), [[0, 1, 2], [3, 4, 5]]),
]


@pytest.mark.parametrize(("operation", "expected"), TIME_OPERATIONS)
def test_operations_on_sequences_leave_lazy_fields_lazy(
    operation: Callable[[TemporalDictTensor], Any], expected: list[Any]
) -> None:
    make = Counted(torch.arange(6).reshape(2, 3))
    result = operation(TemporalDictTensor({"a": Lazy(make)}, [2, 1], 3))
    assert make.times == 0
    assert result["a"].tolist() == expected
    assert make.times == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda data: data.values(),
        lambda data: data.items(),
        lambda data: data.to_dict(),
        lambda data: data.clone(),
        lambda data: data.to_numpy(),
        lambda data: data.specs(),
        lambda data: torch.utils._pytree.tree_flatten(data),
        lambda data: {**data},
    ],
)
def test_what_needs_the_tensors_builds_them(build: Callable[[Any], Any]) -> None:
    for data in (
        DictTensor({"a": Lazy(lambda: torch.zeros(2))}, 2),
        TemporalDictTensor({"a": Lazy(lambda: torch.zeros(2, 1))}, [1, 0], 1),
    ):
        build(data)
        assert "lazy" not in repr(data)


def test_a_lazy_field_of_a_wrong_shape_is_refused_when_built() -> None:
    with pytest.raises(SpecError, match=r"'a': expected the shape \[3, ...\], got \[2\]"):
        DictTensor({"a": Lazy(lambda: torch.zeros(2))}, 3)["a"]
    with pytest.raises(SpecError, match=r"'a': expected the shape \[1, 2, ...\], got \[1\]"):
        TemporalDictTensor({"a": Lazy(lambda: torch.zeros(1))}, [2])["a"]
    with pytest.raises(SpecError, match=r"expected a tensor, got int"):
        DictTensor({"a": Lazy(lambda: 3)}, 3)["a"]  # type: ignore[arg-type, return-value]


def test_out_of_range_rows_are_refused_even_if_all_fields_are_lazy() -> None:
    with pytest.raises(SpecError, match="row 5 is not among 2 rows"):
        DictTensor({"a": Lazy(lambda: torch.zeros(2))}, 2)[torch.tensor([5])]


def test_a_failing_function_can_be_asked_again() -> None:
    answers: list[Any] = [torch.zeros(1), RuntimeError("not yet")]

    def make() -> Tensor:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    data = DictTensor({"a": Lazy(make)}, 1)
    with pytest.raises(RuntimeError, match="not yet"):
        data["a"]
    assert data["a"].tolist() == [0]


USES: list[Callable[[Any], Any]] = [
    lambda data: data["a"],
    lambda data: data["b"],
    lambda data: data[0],
    lambda data: data[0:1],
    lambda data: data[torch.tensor([0])],
    lambda data: data[torch.tensor([True, False])],
    lambda data: data.keys(),
    lambda data: data.values(),
    lambda data: data.items(),
    lambda data: list(data),
    lambda data: "a" in data,
    lambda data: {**data},
    lambda data: data.select("a"),
    lambda data: data.exclude("a"),
    lambda data: data.group("a"),
    lambda data: data.add_prefix("a"),
    lambda data: data | data,
    lambda data: data.clone(),
    lambda data: data.detach(),
    lambda data: data.to("cpu"),
    lambda data: data.to_dict(),
    lambda data: data.to_numpy(),
    lambda data: data.specs(),
    lambda data: data.unbind(),
    lambda data: type(data).cat([data, data]),
    lambda data: data.is_empty,
    lambda data: torch.utils._pytree.tree_flatten(data),
]


@pytest.mark.parametrize("use", USES)
def test_revoked_data_refuses_every_use_of_its_fields(use: Callable[[Any], Any]) -> None:
    for data in (
        DictTensor({"a": torch.zeros(2), "b": Lazy(lambda: torch.zeros(2))}),
        TemporalDictTensor({"a": torch.zeros(2, 1), "b": Lazy(lambda: torch.zeros(2, 1))}, [1, 0]),
    ):
        data.revoke("handed back at step 7")
        with pytest.raises(DataRevokedError, match="handed back at step 7"):
            use(data)


@pytest.mark.parametrize(
    "use",
    [
        lambda steps: steps.at(0),
        lambda steps: steps.alive_at(0),
        lambda steps: steps.slice_time(0, 1),
        lambda steps: steps.shorten()["a"],
        lambda steps: steps.flatten(),
        lambda steps: steps.episodes(),
    ],
)
def test_revoked_sequences_refuse_too(use: Callable[[TemporalDictTensor], Any]) -> None:
    steps = TemporalDictTensor({"a": torch.zeros(2, 3)}, [2, 1])
    steps.revoke("gone")
    with pytest.raises(DataRevokedError, match="gone"):
        use(steps)


def test_revoked_data_still_tells_its_sizes() -> None:
    data = DictTensor({"a": torch.zeros(2)})
    kept = data[0:1]
    data.revoke("gone")
    assert data.batch_size == 2
    assert repr(data) == "DictTensor[2](revoked)"
    assert kept["a"].tolist() == [0]

"""DictTensor and TemporalDictTensor as torch pytrees: `tree_map`, `vmap` and `compile` see their tensors."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from rlx.data.dict_tensor import DictTensor
from rlx.data.temporal_dict_tensor import TemporalDictTensor


@dataclass(frozen=True)
class Layout:
    """What is left of a structure when its tensors are taken out: the keys.

    The sizes are a fallback for leaves that have none (a tree mapped to numbers, no field at all), not part of the
    identity: trees of different batch sizes have the same structure.
    """

    keys: tuple[str, ...]
    sizes: tuple[int, ...] = field(compare=False)


def _size(leaves: Iterable[Any], dimension: int, otherwise: int) -> int:
    """Return a dimension as the leaves have it now: under `vmap` it is not the one that they were flattened with."""
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim() > dimension:
            return leaf.shape[dimension]
    return otherwise


def _flatten_dict_tensor(tree: DictTensor) -> tuple[list[Any], Layout]:
    return list(tree.values()), Layout(tuple(tree), (tree.batch_size,))


def _unflatten_dict_tensor(leaves: Iterable[Any], layout: Layout) -> DictTensor:
    fields = dict(zip(layout.keys, leaves, strict=True))
    return DictTensor.trusted(fields, _size(fields.values(), 0, layout.sizes[0]))


def _flatten_temporal(tree: TemporalDictTensor) -> tuple[list[Any], Layout]:
    return [*tree.values(), tree.lengths], Layout(tuple(tree), (tree.max_length,))


def _unflatten_temporal(leaves: Iterable[Any], layout: Layout) -> TemporalDictTensor:
    *values, lengths = leaves
    fields = dict(zip(layout.keys, values, strict=True))
    return TemporalDictTensor.trusted(fields, lengths, _size(values, 1, layout.sizes[0]))


def _paths_of_dict_tensor(tree: DictTensor) -> tuple[list[tuple[Any, Any]], Layout]:
    leaves, layout = _flatten_dict_tensor(tree)
    return [(pytree.MappingKey(key), leaf) for key, leaf in zip(layout.keys, leaves, strict=True)], layout


def _paths_of_temporal(tree: TemporalDictTensor) -> tuple[list[tuple[Any, Any]], Layout]:
    leaves, layout = _flatten_temporal(tree)
    names: list[Any] = [pytree.MappingKey(key) for key in layout.keys]
    names.append(pytree.GetAttrKey("lengths"))
    return list(zip(names, leaves, strict=True)), layout


def register() -> None:
    """Tell torch how to take both apart and put them together; `rlx.data` does it once."""
    pytree.register_pytree_node(
        DictTensor,
        _flatten_dict_tensor,
        _unflatten_dict_tensor,
        serialized_type_name="rlx.data.DictTensor",
        flatten_with_keys_fn=_paths_of_dict_tensor,
    )
    pytree.register_pytree_node(
        TemporalDictTensor,
        _flatten_temporal,
        _unflatten_temporal,
        serialized_type_name="rlx.data.TemporalDictTensor",
        flatten_with_keys_fn=_paths_of_temporal,
    )

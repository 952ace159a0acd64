"""Actions as environments want them, read from rlx's tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray
from torch import Tensor

from rlx.env.spaces import Leaf, assemble, leaves
from rlx.env.vec_env import StepFields
from rlx.errors import AgentError

Array = NDArray[Any]

# Discrete spaces of at most this many actions keep one scalar each at hand.
_MOST_SCALARS = 4096


class ActionReader:
    """Turns action tensors `[B, ...]` into actions of one space.

    Discrete values get the space's `start` back. Box actions are clipped to the space's bounds, here and nowhere
    else, so that what is stored, and what log-probabilities belong to, is what the agent drew.

    Args:
        space: the action space of one environment.
        num_envs: number of rows, B.
        strict: whether `batch` refuses a discrete action of n and more, or below -n, as ALE would wait for ever. For
            others it does not look: behind a row's end any action will do, and a piece is looked through as a whole.
    """

    def __init__(self, space: Space[Any], num_envs: int, *, strict: bool = False) -> None:
        self.leaves = leaves(space, "action")
        self._space = space
        self._num_envs = num_envs
        self._shapes = {leaf.key: (num_envs, *leaf.spec.shape) for leaf in self.leaves}
        only = self.leaves[0] if not self.leaves[0].path else None
        self._scalars: dict[int, Any] | None = None
        if only is not None and only.spec.kind == "discrete" and only.spec.nvec[0] <= _MOST_SCALARS:
            # NumPy's scalars, as the space itself samples them: `Discrete.contains` takes twice as long for an int.
            kind = only.dtype.type
            self._scalars = {number: kind(number + int(only.start)) for number in range(only.spec.nvec[0])}
        self._members: dict[str, Array] = {}
        if strict:
            discrete = [leaf for leaf in self.leaves if leaf.spec.kind == "discrete"]
            self._members = {leaf.key: np.arange(leaf.spec.nvec[0]).astype(leaf.dtype) for leaf in discrete}

    def rows(self, action: Mapping[str, Tensor]) -> list[Any]:
        """Return one action for each row.

        Args:
            action: tensors `[B, *shape]` under the keys of the action specs.

        Raises:
            AgentError: a key is missing, a tensor does not have B rows of the declared shape, or a discrete action is
                out of range.
        """
        if self._scalars is not None:
            # The hot path: what is wrong is worked out when something is.
            try:
                chosen: Any = action["action"]
                found = list(map(self._scalars.__getitem__, chosen.tolist()))
            except (KeyError, TypeError):
                raise self._problem(self.leaves[0], action) from None
            if len(found) != self._num_envs:
                raise self._mismatch(self.leaves[0], action["action"].shape)
            return found
        columns = {leaf.key: self._column(leaf, action) for leaf in self.leaves}
        if not self.leaves[0].path:
            return list(columns["action"])
        names = columns.keys()
        return [
            assemble(self._space, "action", dict(zip(names, values, strict=True)))
            for values in zip(*(_rows(leaf, columns[leaf.key]) for leaf in self.leaves), strict=True)
        ]

    def batch(self, action: Mapping[str, Tensor]) -> Any:
        """Return all rows' actions at once, as an array or a dict or tuple of arrays.

        Args:
            action: tensors `[B, *shape]` under the keys of the action specs.

        Raises:
            AgentError: a key is missing, a tensor does not have B rows of the declared shape, or a discrete action is
                out of range, where that is refused.
        """
        if not self.leaves[0].path:
            return self._column(self.leaves[0], action)
        return assemble(self._space, "action", {leaf.key: self._column(leaf, action) for leaf in self.leaves})

    def _column(self, leaf: Leaf, action: Mapping[str, Tensor]) -> Array:
        """Return one leaf's actions as new memory, which an environment may keep."""
        if type(action) is StepFields and leaf.key in action.arrays:  # the hot path
            given = action.arrays[leaf.key]
        else:
            tensor = action.get(leaf.key)
            if tensor is None:
                raise _missing(leaf, action)
            given = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        if given.shape != self._shapes[leaf.key]:
            raise self._mismatch(leaf, given.shape)
        values: Array = given.astype(leaf.dtype)
        if leaf.key in self._members:
            try:
                values = self._members[leaf.key].take(values)
            except IndexError:
                raise self._problem(leaf, action) from None
        if leaf.spec.low:
            box = cast("spaces.Box[Any]", leaf.space)
            return values.clip(box.low, box.high, out=values)
        return values + np.asarray(leaf.start, values.dtype) if leaf.shifted else values

    def _problem(self, leaf: Leaf, action: Mapping[str, Tensor]) -> AgentError:
        """Return what is wrong with the actions of a discrete leaf."""
        tensor, count = action.get(leaf.key), leaf.spec.nvec[0]
        if tensor is None:
            return _missing(leaf, action)
        if tensor.shape != (self._num_envs,):
            return self._mismatch(leaf, tensor.shape)
        numbers = cast("list[int]", tensor.tolist())
        row, number = next((row, number) for row, number in enumerate(numbers) if number not in range(count))
        return AgentError(f"the action '{leaf.key}' of row {row} is {number}; expected 0 to {count - 1}")

    def _mismatch(self, leaf: Leaf, shape: Sequence[int]) -> AgentError:
        expected = self._shapes[leaf.key]
        return AgentError(f"the action '{leaf.key}' has shape {tuple(shape)}; expected {expected}")


def _rows(leaf: Leaf, column: Array) -> Any:
    return column.tolist() if leaf.spec.kind == "discrete" else column


def _missing(leaf: Leaf, action: Mapping[str, Tensor]) -> AgentError:
    return AgentError(f"the action '{leaf.key}' is missing; got {', '.join(action) or 'nothing'}")

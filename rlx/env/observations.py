"""Observations written into a StepBuffer, and checked against their space."""

from collections.abc import Callable, Mapping, Sequence
from operator import index, itemgetter
from typing import Any, cast

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from rlx.env.spaces import Leaf, leaves
from rlx.env.vec_env import StepBuffer

Array = NDArray[Any]


class ObservationWriter:
    """Writes observations of one space into the rows of a StepBuffer.

    Writing all rows at once refuses a wrong shape or a wrong kind of number at no extra cost, since one
    `np.concatenate` into the buffer broadcasts nothing and casts within a kind only; what exactly is wrong, `problem`
    finds out afterwards.

    Args:
        space: the observation space of one environment.

    Attributes:
        leaves: the parts of the space.
        plain_shape: the shape of a space that is one array which is stored as it is; None for all other spaces.
    """

    def __init__(self, space: Space[Any]) -> None:
        self.leaves = leaves(space, "obs")
        only = self.leaves[0]
        self.plain_shape = only.spec.shape if not only.path and _row_writer(only) is _write_arrays else None
        self._parts = [(leaf, _picker(leaf), _row_writer(leaf)) for leaf in self.leaves]

    def write_all(self, observations: Sequence[Any], out: StepBuffer) -> None:
        """Write one observation for each row of `out`.

        Raises:
            Exception: whatever NumPy makes of an observation that does not fit; `problem` says what it is.
        """
        for leaf, pick, write in self._parts:
            key = leaf.key
            values = observations if pick is None else [pick(observation) for observation in observations]
            write(leaf, values, out.obs_np[key], out.obs_flat_np.get(key))

    def write_row(self, observation: Any, arrays: Mapping[str, Array], row: int) -> str | None:
        """Write one checked observation, or return what is wrong with it.

        Args:
            observation: an observation of the space.
            arrays: `obs_np` or `final_obs_np` of a StepBuffer.
            row: the row to write.
        """
        if type(observation) is np.ndarray and observation.shape == self.plain_shape:
            only = self.leaves[0]
            if observation.dtype is only.dtype and only.spec.kind == "continuous":
                arrays[only.key][row] = observation
                return None
        wrong = self.problem(observation)
        if wrong is None:
            for leaf in self.leaves:
                value = leaf.pick(observation)
                arrays[leaf.key][row] = value - leaf.start if leaf.shifted else value
        return wrong

    def write_batch(self, observations: Any, arrays: Mapping[str, Array], rows: Any = None) -> str | None:
        """Write observations that come batched, leaf by leaf, as `[B, ...]`, or return what is wrong with them.

        Args:
            observations: a batched observation: an array, or a dict or tuple of arrays.
            arrays: `obs_np` or `final_obs_np` of a StepBuffer.
            rows: indices or mask of the rows to write, None for all.
        """
        for leaf in self.leaves:
            try:
                value = np.asarray(leaf.pick(observations))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                return _missing(leaf, observations, error)
            target = arrays[leaf.key]
            wrong = _shape_or_dtype(leaf, value, target.shape)
            if wrong is not None:
                return wrong
            if leaf.shifted:
                value = value - leaf.start
            if rows is None:
                target[...] = value
            else:
                target[rows] = value[rows]
        return None

    def problem(self, observation: Any) -> str | None:
        """Return what is wrong with an observation, or None if it belongs to the space."""
        for leaf in self.leaves:
            try:
                value = leaf.pick(observation)
            except (KeyError, IndexError, TypeError) as error:
                return _missing(leaf, observation, error)
            wrong = _problem(leaf, value)
            if wrong is not None:
                return wrong
        return None


_RowWriter = Callable[[Leaf, Sequence[Any], Array, Array | None], None]


def _write_arrays(leaf: Leaf, values: Sequence[Any], target: Array, flat: Array | None) -> None:
    if flat is not None and len({np.shape(value) for value in values}) == 1:  # others might make up for each other
        np.concatenate(values, 0, flat)
    else:
        np.stack(values, out=target)


def _write_shifted_arrays(leaf: Leaf, values: Sequence[Any], target: Array, flat: Array | None) -> None:
    _write_arrays(leaf, values, target, flat)
    target -= leaf.start


def _write_discrete(leaf: Leaf, values: Sequence[Any], target: Array, flat: Array | None) -> None:
    start = leaf.start
    numbers = [index(value) - start for value in values]
    if min(numbers) < 0 or max(numbers) >= leaf.spec.nvec[0]:
        raise ValueError("an observation outside its Discrete space")
    target[:] = numbers


def _write_scalars(leaf: Leaf, values: Sequence[Any], target: Array, flat: Array | None) -> None:
    for row, value in enumerate(values):
        if _problem(leaf, value) is not None:
            raise ValueError("an observation outside its space")
        target[row] = value


def _row_writer(leaf: Leaf) -> _RowWriter:
    if leaf.spec.kind == "discrete":
        return _write_discrete
    if not leaf.spec.shape:
        return _write_scalars
    return _write_shifted_arrays if leaf.shifted else _write_arrays


def _picker(leaf: Leaf) -> Callable[[Any], Any] | None:
    if not leaf.path:
        return None
    return itemgetter(leaf.path[0]) if len(leaf.path) == 1 else leaf.pick


def _problem(leaf: Leaf, value: Any) -> str | None:
    """Return what is wrong with one leaf's value of one row, or None."""
    kind = leaf.spec.kind
    if kind == "discrete":
        return _discrete_problem(leaf, value)
    if not isinstance(value, np.ndarray):
        if leaf.spec.shape or not np.isscalar(value):
            return f"'{leaf.key}' is a {type(value).__name__}; expected a NumPy array {_expected(leaf)}"
        # A Python number has no dtype of its own: only its kind can be wrong.
        if type(value) is int or (type(value) is float and leaf.dtype.kind == "f"):
            return None
        return _shape_or_dtype(leaf, np.asarray(value), ())
    array = cast(Array, value)
    wrong = _shape_or_dtype(leaf, array, leaf.spec.shape)
    if wrong is not None:
        return wrong
    if kind == "multi_discrete":
        numbers: Array = array - leaf.start
        if (numbers < 0).any() or (numbers >= np.reshape(leaf.spec.nvec, leaf.spec.shape)).any():
            return f"'{leaf.key}' is {array}, outside {leaf.space}"
    elif kind == "multi_binary" and not ((array == 0) | (array == 1)).all():
        return f"'{leaf.key}' is {array}; expected zeros and ones"
    return None


def _discrete_problem(leaf: Leaf, value: Any) -> str | None:
    try:
        number = index(value) - int(leaf.start)
    except TypeError:
        return f"'{leaf.key}' is {value!r}; expected an integer in {leaf.space}"
    if not 0 <= number < leaf.spec.nvec[0]:
        return f"'{leaf.key}' is {value}, outside {leaf.space}"
    return None


def _shape_or_dtype(leaf: Leaf, array: Array, shape: tuple[int, ...]) -> str | None:
    if array.shape != shape:
        return f"'{leaf.key}' has shape {array.shape}; expected {shape}, of {leaf.space}"
    dtype = array.dtype
    if leaf.spec.kind == "continuous":
        if dtype is leaf.dtype or np.can_cast(dtype, leaf.dtype):
            return None
        return (
            f"'{leaf.key}' has dtype {dtype}; expected {leaf.dtype}, of {leaf.space}; declare the dtype that the "
            "environment returns, or convert with env.wrappers=[{DtypeObservation: {dtype: "
            f"{leaf.dtype}"
            "}}]"
        )
    if dtype.kind not in "iub":
        return f"'{leaf.key}' has dtype {dtype}; expected integers, of {leaf.space}"
    return None


def _expected(leaf: Leaf) -> str:
    return f"of shape {leaf.spec.shape} and dtype {leaf.dtype}"


def _missing(leaf: Leaf, observation: Any, error: Exception) -> str:
    return f"'{leaf.key}' is missing from an observation of type {type(observation).__name__} ({error!r})"

"""Spaces as specs: what is stored, under which names, and what is refused."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.data.spec import Spec
from rlx.env import to_specs
from rlx.env.spaces import assemble, leaves
from rlx.errors import UnsupportedSpaceError


def _spec(space: spaces.Space) -> Spec:
    return to_specs(space, spaces.Discrete(2)).observation["obs"]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.float64, torch.float32),
        (np.float32, torch.float32),
        (np.float16, torch.float16),
        (np.uint8, torch.uint8),
        (np.uint16, torch.int32),
        (np.uint32, torch.int64),
        (np.int8, torch.int8),
        (np.int16, torch.int16),
        (np.int32, torch.int32),
        (np.int64, torch.int64),
    ],
)
def test_box_dtypes_follow_the_space_and_widen_where_torch_has_none(dtype: type, stored: torch.dtype) -> None:
    spec = _spec(spaces.Box(0, 100, (2, 3), dtype))
    assert (spec.shape, spec.dtype, spec.kind) == ((2, 3), stored, "continuous")
    assert spec.low == (0.0,) * 6
    assert spec.high == (100.0,) * 6


def test_bounds_that_say_no_more_than_the_dtype_are_left_out() -> None:
    assert _spec(spaces.Box(0, 255, (84, 84, 4), np.uint8)).low == ()
    assert _spec(spaces.Box(-np.inf, np.inf, (3,))).high == ()
    assert _spec(spaces.Box(np.array([-np.inf, 1.0]), np.array([np.inf, 2.0]), dtype=np.float64)).low == (-np.inf, 1.0)


@pytest.mark.parametrize(("low", "high", "dtype"), [(0, 255, np.uint8), (-128, 127, np.int8), (0, 65535, np.uint16)])
def test_actions_of_few_bytes_keep_bounds_that_are_their_dtypes(low: int, high: int, dtype: type) -> None:
    action = to_specs(spaces.Discrete(2), spaces.Dict(color=spaces.Box(low, high, (2,), dtype))).action["action/color"]
    assert (action.low, action.high) == ((low, low), (high, high))
    assert to_specs(spaces.Discrete(2), spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32)).action["action"].low == ()


def test_discrete_kinds_begin_at_zero_whatever_their_start() -> None:
    assert _spec(spaces.Discrete(3, start=-1)) == Spec((), torch.int64, "discrete", (3,))
    assert _spec(spaces.MultiDiscrete([2, 5], start=[1, -2])) == Spec((2,), torch.int64, "multi_discrete", (2, 5))
    assert _spec(spaces.MultiDiscrete([[2, 3], [4, 5]])) == Spec((2, 2), torch.int64, "multi_discrete", (2, 3, 4, 5))
    assert _spec(spaces.MultiBinary([2, 3])) == Spec((2, 3), torch.int8, "multi_binary")


def _nested() -> spaces.Dict:
    arm = spaces.Dict({"joint": spaces.Box(-1.0, 1.0, (2,)), "held": spaces.Discrete(2)})
    return spaces.Dict(
        {"arm": arm, "eyes": spaces.Tuple((spaces.Box(0, 255, (4, 4), np.uint8), spaces.MultiBinary(2)))}
    )


def test_nested_spaces_become_flat_keys() -> None:
    specs = to_specs(_nested(), _nested())
    assert set(specs.observation) == {"obs/arm/joint", "obs/arm/held", "obs/eyes/0", "obs/eyes/1"}
    assert set(specs.action) == {"action/arm/joint", "action/arm/held", "action/eyes/0", "action/eyes/1"}
    assert specs.observation["obs/eyes/0"] == Spec((4, 4), torch.uint8)


def test_assemble_undoes_leaves() -> None:
    space = _nested()
    value = space.sample()
    rebuilt = assemble(space, "obs", {leaf.key: leaf.pick(value) for leaf in leaves(space, "obs")})
    assert space.contains(rebuilt)
    assert rebuilt["arm"]["joint"] is value["arm"]["joint"]
    assert rebuilt["eyes"][1] is value["eyes"][1]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Text(5), "'obs' is Text.* no layout for a Text space; expected Box, Discrete"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Sequence(spaces.Discrete(2))})}), "'obs/a/b' is Sequence"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Graph(spaces.Discrete(2), None))), "'obs/1' is Graph"),
        (spaces.OneOf([spaces.Discrete(2)]), "a OneOf space"),
        (spaces.Dict({"a/b": spaces.Discrete(2)}), "Dict key 'a/b'; expected a name without '/'"),
        (spaces.Dict({}), "holds nothing"),
    ],
)
def test_other_spaces_are_refused_by_name(space: spaces.Space, said: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=said):
        to_specs(space, spaces.Discrete(2))


def test_an_environment_that_declares_no_space_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedSpaceError, match="space 'obs' is None; expected Box"):
        leaves(None, "obs")

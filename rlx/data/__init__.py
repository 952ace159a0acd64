"""Floor 1: named tensors, alone and over time, and what they look like."""

from rlx.data.action_mask import ACTION_MASK, MASK_KEY, find_mask, masked_action
from rlx.data.dict_tensor import DictTensor
from rlx.data.fields import MissingFieldError
from rlx.data.hindsight import Hindsight
from rlx.data.lazy import Lazy
from rlx.data.pytree import register
from rlx.data.replay_buffer import ReplayBuffer
from rlx.data.rows import Rows
from rlx.data.spec import EnvSpecs, Spec
from rlx.data.sum_tree import SumTree
from rlx.data.temporal_dict_tensor import TemporalDictTensor
from rlx.data.trajectories import Trajectories

__all__ = [
    "ACTION_MASK",
    "MASK_KEY",
    "DictTensor",
    "EnvSpecs",
    "Hindsight",
    "Lazy",
    "MissingFieldError",
    "ReplayBuffer",
    "Rows",
    "Spec",
    "SumTree",
    "TemporalDictTensor",
    "Trajectories",
    "find_mask",
    "masked_action",
]

register()

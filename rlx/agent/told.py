"""What an agent is told of each row, `agent_info`, where it reads it: of the kind that it expects."""

import torch
from torch import Tensor

from rlx.data import DictTensor
from rlx.errors import AgentError


def flags(agent_info: DictTensor, key: str) -> Tensor | None:
    """Return a field of true and false, `[B]` bool; None where nobody tells it.

    Raises:
        AgentError: it is anything else.
    """
    value = _told(agent_info, key)
    if value is not None and (value.dtype is not torch.bool or value.ndim != 1):
        raise AgentError(f"agent_info['{key}']: got {_shown(value)}, expected true or false for each row")
    return value


def indices(agent_info: DictTensor, key: str) -> Tensor | None:
    """Return a field that counts something, `[B]` int64, of drawn experience `[B, T]`; None where nobody tells it.

    Raises:
        AgentError: it is anything else.
    """
    value = _told(agent_info, key)
    if value is None:
        return None
    if value.dtype is torch.bool or value.is_floating_point():
        raise AgentError(f"agent_info['{key}']: got {_shown(value)}, expected an integer for each row")
    return value.long()


def chances(agent_info: DictTensor, key: str) -> Tensor | None:
    """Return a field of probabilities, `[B]`; None where nobody tells it.

    Raises:
        AgentError: it is anything else; how great they are is looked at on the CPU, where nothing waits for it.
    """
    value = _told(agent_info, key)
    if value is None:
        return None
    if value.dtype is torch.bool or value.ndim != 1:
        raise AgentError(f"agent_info['{key}']: got {_shown(value)}, expected a probability for each row")
    if value.device.type == "cpu" and value.numel():
        low, high = (float(end) for end in value.aminmax())
        if not (low >= 0 and high <= 1):
            raise AgentError(f"agent_info['{key}']: got {low:g} to {high:g}, expected probabilities, in [0, 1]")
    return value


def _told(agent_info: DictTensor, key: str) -> Tensor | None:
    return agent_info[key] if not agent_info.is_empty and key in agent_info else None


def _shown(value: Tensor) -> str:
    return f"{value.dtype} of shape [B{''.join(f', {size}' for size in value.shape[1:])}]"

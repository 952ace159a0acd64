"""One contiguous tensor for all of a module's parameters."""

from typing import cast

import torch
from torch import Tensor, nn


def flatten_parameters(module: nn.Module) -> nn.Parameter:
    """Move the parameters of `module` into one tensor, of which they become views, and return that tensor.

    For small networks the time of an update is the number of calls, not of multiplications: an optimiser step, a
    gradient norm, a copy to the workers and a sum over ranks each become one call on one tensor. The module works and
    saves as before; `module.parameters()` and the tensor share memory, values and gradients alike. Move the module to
    its device first, and clear the gradient in place.

    Args:
        module: all parameters of one dtype and on one device, each requiring a gradient.

    Returns:
        A parameter `[P]`, P being the number of values, for the optimiser.

    Raises:
        ValueError: parameters differ in dtype or device.
    """
    parameters = list(module.parameters())
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) != 1:
        raise ValueError(f"flatten_parameters needs one dtype and one device, got {sorted(map(str, kinds))}")
    flat = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    for parameter, value, gradient in zip(
        parameters, _views(flat.detach(), parameters), _views(flat.grad, parameters), strict=True
    ):
        parameter.data = value
        parameter.grad = gradient
    return flat


def _views(flat: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    pieces = cast("tuple[Tensor, ...]", flat.split([parameter.numel() for parameter in like]))
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, like, strict=True)]

"""Adam on one flat tensor: what an update costs when the network is small and the calls are many."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from rlx.agent.flat import flatten_parameters
from rlx.run.subnormal import subnormals_as_zero


class FlatAdam:
    """Adam (Kingma and Ba 2015) over all parameters of a module, laid out as one tensor.

    The same numbers as `torch.optim.Adam(fused=True)`, through the same kernel, save for moments below 1.2e-38, which
    are zero here: `rlx.run.subnormal` says why. A small network's update is a matter of calls: clearing, clipping,
    stepping are one each here. And `torch.optim.Optimizer` imports torch's compiler when it is first used, which takes
    as long as importing torch did; its functional form does not.

    Attributes:
        parameters: `[P]`; the module's parameters and their gradients are views of it.
    """

    def __init__(self, module: nn.Module, *, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Flatten the module's parameters, in place, and begin with moments of zero.

        Args:
            module: on its device, all parameters of one dtype.
            eps: added to the root of the second moment, usually 1e-8 to 1e-5.
            betas: decay of the first and the second moment.
        """
        self.parameters = flatten_parameters(module)
        self._eps, self._betas = eps, betas
        self._step = torch.zeros((), dtype=torch.float32, device=self.parameters.device)
        self._first = torch.zeros_like(self.parameters.detach())
        self._second = torch.zeros_like(self._first)

    @property
    def _gradient(self) -> Tensor:
        assert self.parameters.grad is not None
        return self.parameters.grad

    def zero_grad(self) -> None:
        """Set the gradient to zero."""
        self._gradient.zero_()

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale the gradient down to the norm `max_norm` where it is greater (Pascanu et al. 2013).

        Returns:
            The norm before, 0-dimensional.
        """
        norm = cast(Tensor, torch.linalg.vector_norm(self._gradient))
        if norm.is_cpu and norm.item() < max_norm:  # on a GPU to ask would be to wait
            return norm
        self._gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the parameters by one step of Adam.

        Args:
            learning_rate: usually 1e-4 to 1e-3.
        """
        with subnormals_as_zero():
            adam(
                [self.parameters.detach()],
                [self._gradient],
                [self._first],
                [self._second],
                [],
                [self._step],
                fused=True,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=learning_rate,
                weight_decay=0.0,
                eps=self._eps,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the number of steps."""
        return {"step": self._step, "first_moment": self._first, "second_moment": self._second}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the moments and the number of steps of another run of the same module."""
        for own, key in ((self._step, "step"), (self._first, "first_moment"), (self._second, "second_moment")):
            own.copy_(state[key])

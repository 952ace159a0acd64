"""An agent's parameters and buffers as one run of bytes, to be handed to workers without a message."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlx.batcher.memory import Block, lay_out
from rlx.errors import AgentError


@dataclass(frozen=True)
class WeightsLayout:
    """Where each entry of a module's `state_dict` lies in the bytes.

    Attributes:
        blocks: by name, in the state dict's order.
        num_bytes: of all of them, alignment included.
    """

    blocks: dict[str, Block]
    num_bytes: int

    @classmethod
    def of(cls, module: nn.Module) -> "WeightsLayout":
        """Return the layout for `module`."""
        entries = module.state_dict()
        return cls(*lay_out({name: (tuple(value.shape), value.dtype) for name, value in entries.items()}))

    def tensors(self, data: Tensor) -> list[Tensor]:
        """Return the entries as views of `data`, `[num_bytes]` uint8."""
        return [
            data[block.offset : block.offset + block.num_bytes].view(block.dtype).view(block.shape)
            for block in self.blocks.values()
        ]

    def entries(self, module: nn.Module) -> list[Tensor]:
        """Return the entries of `module` in this layout's order.

        Raises:
            AgentError: the module has other entries, or others' shapes.
        """
        found = module.state_dict()
        expected = {name: (block.shape, block.dtype) for name, block in self.blocks.items()}
        got = {name: (tuple(value.shape), value.dtype) for name, value in found.items()}
        if expected == got:
            return list(found.values())
        for name in expected.keys() | got.keys():
            if expected.get(name) != got.get(name):
                raise AgentError(
                    f"publish(agent): {name} is {got.get(name, 'missing')}, "
                    f"the batcher's own make_agent(specs) gave {expected.get(name, 'none')}"
                )
        raise AgentError("publish(agent): its entries are in another order than those of make_agent(specs)")


def copy_all(destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source over its destination, in one call where the devices allow it."""
    if destinations:
        with torch.no_grad():
            torch._foreach_copy_(list(destinations), list(sources))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

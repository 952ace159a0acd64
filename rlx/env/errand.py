"""An errand: fetch something at the far end of a corridor and bring it home. For agents of two levels."""

from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from rlx.data.spec import EnvSpecs, Spec
from rlx.env.batched import BatchedEnv
from rlx.validate import Range

if TYPE_CHECKING:
    from rlx.data import DictTensor


class Errand(BatchedEnv):
    """Cells 0 (home) to L - 1 (where the parcel is); one begins in cell 1, and coming home ends the episode.

    It pays 1 to come home with the parcel, and a little to come home without, after Kulkarni et al. 2016
    (arXiv:1604.06057, section 4.1). Actions are home (0) and away (1); the latter slips now and then, and leads one
    step towards home as well. So a walk by chance reaches the parcel with a probability that falls exponentially with
    the length. With a slip of 0.2, who always walks away first brings it home in 3 of 4 episodes: the best there is.

    Shows `obs/observation` `[1]` int8, whether one has the parcel, and `obs/achieved_goal`, the cell that one is in,
    one of L: what an agent of two levels may set itself as a goal (`rlx.agent.HierarchicalQNetwork`).

    Args:
        num_envs: number of rows, B.
        length: cells, L, 3 or more.
        slip: probability that an action away leads towards home.
        empty_handed: what it pays to come home without the parcel.
        max_episode_steps: steps after which an episode is truncated.
    """

    def __init__(
        self,
        num_envs: Annotated[int, Range(1)],
        *,
        length: Annotated[int, Range(3)],
        slip: Annotated[float, Range(0, 1, high_open=True)],
        empty_handed: Annotated[float, Range(0, 1)],
        max_episode_steps: Annotated[int, Range(1)],
    ) -> None:
        specs = EnvSpecs(
            observation={
                "obs/observation": Spec(shape=(1,), dtype=torch.int8, kind="multi_binary"),
                "obs/achieved_goal": Spec(shape=(), dtype=torch.int64, kind="discrete", nvec=(length,)),
            },
            action={"action": Spec(shape=(), dtype=torch.int64, kind="discrete", nvec=(2,))},
        )
        super().__init__(num_envs, "Errand", specs, max_episode_steps=max_episode_steps)
        self.cell = torch.ones(num_envs, dtype=torch.int64)
        self.has_parcel = torch.zeros(num_envs, dtype=torch.bool)
        self._length, self._slip, self._empty_handed = length, slip, empty_handed
        self._all = torch.ones(num_envs, dtype=torch.bool)

    def begin(self, rows: Tensor, env_info: "DictTensor | None") -> None:
        """Begin in cell 1, without the parcel."""
        self.cell.masked_fill_(rows, 1)
        self.has_parcel.masked_fill_(rows, False)

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Walk one cell in each row."""
        slips = self.random.uniform(self._all, 1)[0] < self._slip
        self.cell = (self.cell + torch.where((action == 1) & ~slips, 1, -1)).clamp(0, self._length - 1)
        self.has_parcel |= self.cell == self._length - 1
        home = self.cell == 0
        return home * torch.where(self.has_parcel, 1.0, self._empty_handed), home

    def show(self) -> dict[str, Tensor]:
        """Return whether each row has the parcel, and its cell."""
        return {"obs/observation": self.has_parcel.to(torch.int8).unsqueeze(1), "obs/achieved_goal": self.cell}

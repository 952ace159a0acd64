"""Where sequences are cut in time, and what has to go along with the parts: states, bootstrap and context."""

import torch
from torch import Tensor

from rlx.data.dict_tensor import DictTensor
from rlx.data.temporal_dict_tensor import TemporalDictTensor
from rlx.errors import SpecError

_STATE = "agent_state/"


def bootstrap_of(steps: TemporalDictTensor) -> DictTensor:
    """Return the observation after each sequence's last step, and the final one of each episode truncated inside it.

    None after a termination, and none at all where the steps do not tell what came next.
    """
    if not all(f"next/{key}" in steps for key in ("terminated", "truncated")):
        return DictTensor.empty(0)
    time = torch.arange(steps.max_length, device=steps.device)
    last = time == steps.lengths.unsqueeze(1) - 1
    wanted = (steps["next/truncated"] & steps.mask() | last) & ~steps["next/terminated"]
    row, time = wanted.nonzero(as_tuple=True)
    fields: dict[str, Tensor] = {"row": row, "time": time, "is_first": torch.zeros_like(row, dtype=torch.bool)}
    for name in steps:
        group, _, key = name.partition("/")
        if group == "next" and key not in ("terminated", "truncated", "discount"):
            fields["prev_reward" if key == "reward" else key] = steps[name][row, time]
        elif name == "agent/action" or name.startswith("agent/action/"):
            fields[f"prev_{key}"] = steps[name][row, time]
    return DictTensor.trusted(fields, len(row))


class Cuts:
    """Sequences cut into parts of at most `num_steps` steps, in the order of the rows and, in a row, of time.

    Attributes:
        ends: `[B, T]` bool, the steps behind which they are cut.
        row: `[R]` int64, which sequence each part is of.
        start: `[R]` int64, the step that it begins with.
        length: `[R]` int64, how many it has.
    """

    def __init__(self, steps: TemporalDictTensor, num_steps: int) -> None:
        """Cut; waits for the device."""
        self._steps, self._num_steps = steps, num_steps
        time = torch.arange(steps.max_length, device=steps.device)
        self.ends = ((time + 1) % num_steps == 0).expand(steps.leading_shape)
        self.row, self.start, self.length = steps.episode_places(self.ends)

    def info(self, info: DictTensor, states: TemporalDictTensor | None) -> DictTensor:
        """Return the information of the parts `[R]`: that of their sequence, and the state with which each begins.

        Args:
            info: `[B]`; where it has no states, as of experience put together by hand, `states` tells all of them.
            states: `[B, T]`, see `Trajectories.split_sequences`.

        Raises:
            SpecError: a state is not told.
        """
        fields = info[self.row].to_dict()
        first = self.start == 0
        for key, told in self._told(info, states):
            later = told[self.row, self.start]
            begins = first.view(-1, *[1] * (later.dim() - 1))
            fields[key] = torch.where(begins, fields[key], later) if key in fields else later
        return DictTensor(fields, len(self.row))

    @staticmethod
    def _told(info: DictTensor, states: TemporalDictTensor | None) -> list[tuple[str, Tensor]]:
        """Return the key of each state in `info`, and the states `[B, T]`."""
        got = {} if states is None else states.to_dict()
        wanted = [key for key in info if key.startswith(_STATE)] or [_STATE + key for key in got]
        missing = [name for key in wanted if (name := key.removeprefix(_STATE)) not in got]
        if missing:
            raise SpecError(
                f"split_sequences: the states with which the parts begin are not told: got {', '.join(got) or 'none'}, "
                f"expected states with {', '.join(missing)}; an agent can keep them as an output"
            )
        return [(key, got[key.removeprefix(_STATE)]) for key in wanted]

    def bootstrap(self, bootstrap: DictTensor) -> DictTensor:
        """Return the bootstrap of the parts: that of their sequences, and what follows a part in its episode.

        Args:
            bootstrap: `[K]`; what has no `row`, as that of minibatches, stays as it is.
        """
        if "row" not in bootstrap:
            return bootstrap
        steps = self._steps
        number = -(-steps.lengths // self._num_steps)  # parts of each sequence
        first = number.cumsum(0) - number
        kept = {key: bootstrap[key] for key in bootstrap if key in ("row", "time") or f"env/{key}" in steps}
        row, time = bootstrap["row"], bootstrap["time"]
        kept |= {"row": first[row] + time // self._num_steps, "time": time % self._num_steps}
        last = self.start + self.length - 1
        over = (steps["next/terminated"] | steps["next/truncated"])[self.row, last]
        part = (~over & (last + 1 < steps.lengths[self.row])).nonzero().squeeze(1)
        added = {key: steps[f"env/{key}"][self.row[part], last[part] + 1] for key in kept if key not in ("row", "time")}
        added |= {"row": part, "time": self.length[part] - 1}
        both = DictTensor.cat([DictTensor.trusted(kept, len(row)), DictTensor.trusted(added, len(part))])
        return both[(both["row"] * self._num_steps + both["time"]).argsort()]

    def context(self, context: TemporalDictTensor) -> TemporalDictTensor:
        """Return the last C steps before each part, of the episode that goes on in it, `[R, C]`.

        Args:
            context: `[B, C]`, those before the sequences.
        """
        size, steps = context.max_length, self._steps
        if not size:
            return TemporalDictTensor.trusted({}, torch.zeros_like(self.length), 0)
        # Places count through the old context and on through the steps.
        before = context.lengths[self.row]
        time = torch.arange(steps.max_length, device=steps.device)
        begins = steps["env/is_first"][self.row] & (time <= self.start.unsqueeze(1))
        begun = torch.where(begins, time, -1).amax(1)  # -1: the episode began before the sequence
        lengths = (before + self.start - torch.where(begun >= 0, before + begun, 0)).clamp(max=size)
        place = (before + self.start - lengths).unsqueeze(1) + torch.arange(size, device=steps.device)
        row, old, new = self.row.unsqueeze(1), place.clamp(0, size - 1), place - before.unsqueeze(1)
        inside, new = new >= 0, new.clamp(0, steps.max_length - 1)

        def chosen(key: str) -> Tensor:
            later = steps[key][row, new]
            return torch.where(inside.view(*inside.shape, *[1] * (later.dim() - 2)), later, context[key][row, old])

        return TemporalDictTensor.trusted({key: chosen(key) for key in context}, lengths, size)

"""Running an agent again over what it saw: with gradients for losses, without for values."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlx.agent.agent import Agent, is_stateful, reset_state
from rlx.data import DictTensor, TemporalDictTensor, Trajectories


def replay(agent: Agent, trajectories: Trajectories) -> TemporalDictTensor:
    """Return the agent's outputs `[B, T]` at every step, differentiable: in one call where the agent has no state.

    Padding is zero for a stateless agent and means nothing for another.

    Args:
        agent: any agent; its stored outputs (`agent/`) are passed as `taken`.
        trajectories: whole sequences with the states that they began with; for a stateless agent, steps in any order.
    """
    steps = trajectories.steps
    seen, taken = steps.group("env"), steps.group("agent")
    info = trajectories.info.group("agent_info")
    if is_stateful(agent, info if trajectories.batch_size else None):
        return agent.forward_sequence(seen, trajectories.info.group("agent_state"), info, taken)
    size, length = steps.leading_shape
    if length == 1:
        outputs, _ = agent.forward(seen.at(0), DictTensor.empty(size), info, taken.at(0))
        return _in_time(outputs, lambda value: value.unsqueeze(1), steps)
    flat = seen.flatten()
    count = flat.batch_size
    info = DictTensor.empty(count) if info.is_empty else info[torch.repeat_interleave(steps.lengths)]
    outputs, _ = agent.forward(flat, DictTensor.empty(count), info, taken.flatten())
    if count == size * length:
        return _in_time(outputs, lambda value: value.view(size, length, *value.shape[1:]), steps)
    mask = steps.mask()

    def padded(value: Tensor) -> Tensor:
        out = value.new_zeros(size, length, *value.shape[1:])
        out[mask] = value
        return out

    return _in_time(outputs, padded, steps)


def replay_inputs(agent: Agent) -> tuple[str, ...]:
    """Return the step fields and groups under `env/` that `replay` reads: select them before cutting minibatches."""
    stateful = is_stateful(agent) and "is_first" not in agent.inputs
    return tuple(f"env/{name}" for name in (*agent.inputs, *(["is_first"] if stateful else [])))


@torch.no_grad()
def values(agent: Agent, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
    """Return the value of every step's observation and of the observation that followed it, `[B, T]` float32 each.

    The second is that of the true next observation: the final one where the episode was truncated, the next piece's
    first where the piece ends; and 0 where the episode terminated: nothing follows. Each observation is seen once.

    Args:
        agent: one whose outputs have `value` `[B]`.
        trajectories: as a batcher returns them.
    """
    steps, bootstrap = trajectories.steps, trajectories.bootstrap
    row, time = bootstrap["row"], bootstrap["time"]
    info = trajectories.info.group("agent_info")
    seen = bootstrap.exclude("row", "time")
    if is_stateful(agent, info if trajectories.batch_size else None):
        value, after = _stateful_values(agent, trajectories, seen, row, time)
    else:
        value = replay(agent, trajectories)["value"]
        info = info[row] if not info.is_empty else DictTensor.empty(seen.batch_size)
        after = agent.forward(seen, DictTensor.empty(seen.batch_size), info)[0]["value"]
    following = torch.zeros_like(value)
    following[:, :-1] = value[:, 1:]
    following[row, time] = after
    return value, following.masked_fill_(steps["next/terminated"], 0.0)


def _stateful_values(
    agent: Agent, trajectories: Trajectories, bootstrap: DictTensor, row: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Return values step by step: the state after a step is what its bootstrap observation is seen with."""
    steps, info = trajectories.steps, trajectories.info.group("agent_info")
    seen, taken, state = steps.group("env"), steps.group("agent"), trajectories.info.group("agent_state")
    value: list[Tensor] = []
    after = torch.zeros(bootstrap.batch_size, device=steps.device)
    for t in range(steps.max_length):
        now = seen.at(t)
        state = reset_state(agent, state, now["is_first"], info)
        outputs, state = agent.forward(now, state, info, taken.at(t))
        value.append(outputs["value"])
        due = (time == t).nonzero().squeeze(1)
        if len(due):
            rows = row[due]
            few_info = info[rows] if not info.is_empty else DictTensor.empty(len(rows))
            after[due] = agent.forward(bootstrap[due], state[rows], few_info)[0]["value"]
    return torch.stack(value, dim=1), after


def _in_time(
    outputs: DictTensor, function: Callable[[Tensor], Tensor], steps: TemporalDictTensor
) -> TemporalDictTensor:
    fields = {key: function(outputs[key]) for key in outputs}
    return TemporalDictTensor.trusted(fields, steps.lengths, steps.max_length)

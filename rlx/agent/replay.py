"""Running an agent again over what it saw: with gradients for losses, without for values."""

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from rlx.agent.agent import Agent, at_start, is_stateful, over_sequences, reset_state
from rlx.agent.normalizer import full_precision
from rlx.data import DictTensor, Lazy, TemporalDictTensor, Trajectories
from rlx.errors import AgentError


def replay(agent: Agent, trajectories: Trajectories) -> TemporalDictTensor:
    """Return the agent's outputs `[B, T]` at every step, differentiable: in one call where the agent has no state.

    Padding is zero for a stateless agent and means nothing for another.

    Args:
        agent: any agent; its stored outputs (`agent/`) are passed as `taken`.
        trajectories: whole sequences with the states that they began with, and their context for an agent with a
            `history_length`; for a stateless agent, steps in any order.

    Raises:
        AgentError: the agent reads its history, and the sequences come without it.
    """
    steps = trajectories.steps
    seen, info = steps.group("env"), trajectories.info.group("agent_info")
    if is_stateful(agent, info if trajectories.batch_size else None):
        outputs = _sequences(agent, trajectories, seen, steps.group("agent"), _drawn(trajectories))
        return _in_time(outputs, lambda value: value, steps)
    return _step_by_step(agent, trajectories, seen)


def _step_by_step(agent: Agent, trajectories: Trajectories, seen: TemporalDictTensor) -> TemporalDictTensor:
    """Return the outputs `[B, T]` of a stateless agent that sees `seen` `[B, T]` at each step, by one call."""
    steps, info, drawn = trajectories.steps, trajectories.info.group("agent_info"), _drawn(trajectories)
    taken = steps.group("agent")
    size, length = steps.leading_shape
    if length == 1:
        info = info if drawn is None else drawn.at(0)
        outputs, _ = agent.forward(seen.at(0), DictTensor.empty(size), info, taken.at(0))
        return _in_time(outputs, lambda value: value.unsqueeze(1), steps)
    flat = seen.flatten()
    count = flat.batch_size
    if drawn is not None:
        info = drawn.flatten()
    else:
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


def _drawn(trajectories: Trajectories) -> TemporalDictTensor | None:
    """Return the `agent_info` `[B, T]` that a sampler drew for each episode; None where it is the sequences' own."""
    drawn = trajectories.steps.group("agent_info")
    return drawn if any(True for _ in drawn) else None


def _sequences(
    agent: Agent,
    trajectories: Trajectories,
    seen: TemporalDictTensor,
    taken: TemporalDictTensor,
    drawn: TemporalDictTensor | None,
) -> TemporalDictTensor:
    """Return the outputs for the sequences `seen` `[B, T]`, from where the trajectories began."""
    info, context = trajectories.info, trajectories.context
    state, agent_info = info.group("agent_state"), drawn if drawn is not None else info.group("agent_info")
    if (
        agent.history_length
        and not context.max_length
        and seen.max_length
        and bool((~seen["is_first"][:, 0] & (seen.lengths > 0)).any())
    ):
        raise AgentError(
            f"replay: {type(agent).__name__} reads {agent.history_length} steps of history, and these sequences begin "
            "inside episodes without the steps before them: keep trajectories.context, as rows() and minibatches() do"
        )
    if state.is_empty:
        state = _initial(agent, seen, at_start(agent_info))
    return over_sequences(agent, context, seen, state, agent_info, taken)


def _initial(agent: Agent, seen: TemporalDictTensor, agent_info: DictTensor) -> DictTensor:
    """Return the state with which sequences begin that nobody has told one of: that of an episode's beginning.

    Raises:
        AgentError: one begins inside an episode.
    """
    state = agent.initial_state(agent_info, seen.batch_size)
    if state.is_empty or not seen.max_length or not bool((~seen["is_first"][:, 0] & (seen.lengths > 0)).any()):
        return state
    raise AgentError(
        f"replay: {type(agent).__name__} has a state ({', '.join(state)}), and these sequences begin inside episodes "
        "without it: expected info with " + ", ".join(f"'agent_state/{key}'" for key in state) + "; a ReplayBuffer "
        "keeps it with state=state_specs(agent)"
    )


def replay_inputs(agent: Agent) -> tuple[str, ...]:
    """Return the step fields and groups besides `agent/` that `replay` reads: select them before making minibatches."""
    stateful = is_stateful(agent) and "is_first" not in agent.inputs
    return (*(f"env/{name}" for name in (*agent.inputs, *(["is_first"] if stateful else []))), "agent_info")


@overload
def replay_with_values(
    agent: Agent, trajectories: Trajectories, *, output: str = "value"
) -> tuple[TemporalDictTensor, Tensor, Tensor]: ...
@overload
def replay_with_values(
    agent: Agent, trajectories: Trajectories, *, output: Sequence[str]
) -> tuple[TemporalDictTensor, TemporalDictTensor, TemporalDictTensor]: ...
def replay_with_values(
    agent: Agent, trajectories: Trajectories, *, output: str | Sequence[str] = "value"
) -> tuple[TemporalDictTensor, Tensor | TemporalDictTensor, Tensor | TemporalDictTensor]:
    """Return what `replay` and `values` do, each observation seen once; the values without gradients.

    Args:
        agent: one whose outputs have `output`, `[B]` each.
        trajectories: as a batcher returns them.
        output: see `values`.
    """
    names = (output,) if isinstance(output, str) else tuple(output)
    steps, bootstrap = trajectories.steps, _followed(trajectories)
    row, time = bootstrap["row"], bootstrap["time"]
    info = trajectories.info.group("agent_info")
    if is_stateful(agent, info if trajectories.batch_size else None):
        outputs, place, behind = _with_bootstrap(agent, trajectories)
        after = {name: full_precision(outputs[name][row, behind]) for name in names}
        rows = torch.arange(trajectories.batch_size, device=place.device).unsqueeze(1)
        outputs = _in_time(outputs, lambda value: value[rows, place], steps)
    else:
        outputs = replay(agent, trajectories)
        drawn = _drawn(trajectories)
        if drawn is not None:
            info = DictTensor.trusted({key: field[row, time] for key, field in drawn.items()}, len(row))
        else:
            info = info[row] if not info.is_empty else DictTensor.empty(len(row))
        taken = DictTensor.trusted({key: field[row, time] for key, field in steps.group("agent").items()}, len(row))
        seen = bootstrap.exclude("row", "time")
        with torch.no_grad():
            behind_them, _ = agent.forward(seen, DictTensor.empty(len(row)), info, taken)
            after = {name: full_precision(behind_them[name]) for name in names}
    now = {name: outputs[name].detach() for name in names}
    then: dict[str, Tensor] = {}
    for name, value in now.items():
        following = torch.zeros_like(value)
        following[:, :-1] = value[:, 1:]
        following[row, time] = after[name].detach()
        then[name] = following.masked_fill_(steps["next/terminated"], 0.0)
    if isinstance(output, str):
        return outputs, now[output], then[output]
    lengths, length = steps.lengths, steps.max_length
    return outputs, TemporalDictTensor.trusted(now, lengths, length), TemporalDictTensor.trusted(then, lengths, length)


@overload
def values(agent: Agent, trajectories: Trajectories, *, output: str = "value") -> tuple[Tensor, Tensor]: ...
@overload
def values(
    agent: Agent, trajectories: Trajectories, *, output: Sequence[str]
) -> tuple[TemporalDictTensor, TemporalDictTensor]: ...
@torch.no_grad()
def values(
    agent: Agent, trajectories: Trajectories, *, output: str | Sequence[str] = "value"
) -> tuple[Tensor, Tensor] | tuple[TemporalDictTensor, TemporalDictTensor]:
    """Return the value of every step's observation and of the observation that followed it, `[B, T]` float32 each.

    The second is that of the true next observation: the final one where the episode was truncated, the next piece's
    first where the piece ends; and 0 where the episode terminated: nothing follows. Each observation is seen once.
    Those that are no step's own have no stored `agent/` group: as `taken` they get that of the step before them.

    Args:
        agent: one whose outputs have `output`, `[B]` each.
        trajectories: as a batcher returns them.
        output: the name of the value; or those of several, which then come by name in two TemporalDictTensors `[B, T]`,
            out of the same one pass.

    Raises:
        AgentError: nothing says what follows the sequences, as after `minibatches` and `split_steps`.
        MissingFieldError: the agent does not put it out.
    """
    return replay_with_values(agent, trajectories, output=output)[1:]


def replay_next(agent: Agent, trajectories: Trajectories) -> TemporalDictTensor:
    """Return the agent's outputs `[B, T]` at the observation that followed each step, differentiable.

    What followed is `next/obs`: the true final observation where an episode ended. A stateful agent sees it with the
    state after the step. After a termination what stands there means nothing.

    Args:
        agent: any agent. What it sees besides `obs` is `prev_action` and `prev_reward`, which are then this step's own.
        trajectories: as a batcher or a replay buffer returns them.
    """
    steps = trajectories.steps
    info = trajectories.info.group("agent_info")
    if is_stateful(agent, info if trajectories.batch_size else None):
        outputs, place, _ = _with_bootstrap(agent, trajectories)
        rows = torch.arange(trajectories.batch_size, device=steps.device).unsqueeze(1)
        after = (place + 1).clamp_(max=outputs.max_length - 1)
        fields = {key: full_precision(outputs[key][rows, after]) for key in outputs}
        return TemporalDictTensor.trusted(fields, steps.lengths, steps.max_length)
    seen: dict[str, Tensor] = {}
    for name in steps:
        group, _, key = name.partition("/")
        if group == "next" and key.split("/")[0] in agent.inputs:
            seen[key] = steps[name]
        elif group == "agent" and f"prev_{key.split('/')[0]}" in agent.inputs:
            seen[f"prev_{key}"] = steps[name]
    if "prev_reward" in agent.inputs:
        seen["prev_reward"] = steps["next/reward"]
    if "is_first" in agent.inputs:  # what follows a step is in its episode
        seen["is_first"] = torch.zeros_like(steps["next/terminated"])
    return _step_by_step(agent, trajectories, TemporalDictTensor.trusted(seen, steps.lengths, steps.max_length))


@torch.no_grad()
def burn_in(agent: Agent, trajectories: Trajectories, num_steps: int) -> Trajectories:
    """Return the sequences without their first steps, from the state that the agent reaches in those; no gradients.

    A stored state is that of older weights; running over some steps first brings it near what the weights of now would
    have had (Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement learning", section 3).
    Sequences that begin with their episode stay whole: an initial state has no age.

    Args:
        agent: any agent without a `history_length`; nothing is run where it has no state.
        trajectories: `[B, T]`.
        num_steps: steps to run over, usually 10 to 40. Others that are no longer than that have no step left.
    """
    steps, bootstrap = trajectories.steps, trajectories.bootstrap
    state, info = trajectories.info.group("agent_state"), trajectories.info.group("agent_info")
    size, length = steps.leading_shape
    if not size * length:
        return trajectories
    drawn = _drawn(trajectories)
    skipped = (~steps["env/is_first"][:, 0]) * num_steps
    seen, taken = steps.group("env"), steps.group("agent")
    for t in range(0 if state.is_empty else min(num_steps, length)):
        now, info = seen.at(t), info if drawn is None else drawn.at(t)
        begun = reset_state(agent, state, now["is_first"], info)
        after = agent.forward(now, begun, info, taken.at(t))[1]
        state = DictTensor.where((steps.lengths > t) & (skipped > 0), after, state)
    row, time = bootstrap["row"], bootstrap["time"] - skipped[bootstrap["row"]]
    ends = bootstrap.exclude("time") | DictTensor.trusted({"time": time}, len(row))
    kept = trajectories.info.select(*(key for key in trajectories.info if not key.startswith("agent_state/")))
    rows = torch.arange(size, device=steps.device).unsqueeze(1)
    place = (torch.arange(length, device=steps.device) + skipped.unsqueeze(1)).clamp_(max=length - 1)
    fields = {key: Lazy(lambda key=key: steps[key][rows, place]) for key in steps}
    rest = TemporalDictTensor.trusted(fields, (steps.lengths - skipped).clamp_(min=0), length)
    return Trajectories(kept | state.add_prefix("agent_state"), rest, ends[time >= 0])


def _followed(trajectories: Trajectories) -> DictTensor:
    """Return the bootstrap `[K]`.

    Raises:
        AgentError: there is none.
    """
    bootstrap = trajectories.bootstrap
    if "row" not in bootstrap:
        raise AgentError(
            "values: nothing says what follows the last step of each of these sequences: take the values before "
            "minibatches() and split_steps(), which leave it out, and keep them by with_steps(). Trajectories of your "
            "own are made without bootstrap=, of steps that have next/obs, next/terminated and next/truncated"
        )
    return bootstrap


def _with_bootstrap(agent: Agent, trajectories: Trajectories) -> tuple[TemporalDictTensor, Tensor, Tensor]:
    """Return a stateful agent's outputs over steps and bootstrap observations, and both's places, `[B, T]` and `[K]`.

    Each bootstrap observation is put in as a step behind the one that it follows, and so seen with the state after that
    one. It spoils no later state: what comes next in its sequence, if anything, begins an episode.
    """
    steps, bootstrap = trajectories.steps, _followed(trajectories)
    row, time = bootstrap["row"], bootstrap["time"]
    size, length = steps.leading_shape
    added = torch.zeros(size, length, dtype=torch.int64, device=steps.device)
    added[row, time] = 1
    place = torch.arange(length, device=steps.device) + added.cumsum(1) - added  # where each step goes
    longest = length + (int(added.sum(1).max()) if size else 0)
    rows = torch.arange(size, device=steps.device).unsqueeze(1)
    behind = place[row, time] + 1

    def insert(field: Tensor, new: Tensor) -> Tensor:
        out = field.new_zeros(size, longest, *field.shape[2:])
        out[rows, place] = field
        out[row, behind] = new
        return out

    lengths = steps.lengths + added.sum(1)
    seen, taken = steps.group("env"), steps.group("agent")
    drawn = _drawn(trajectories)
    if drawn is not None:
        drawn = TemporalDictTensor.trusted({k: insert(v, v[row, time]) for k, v in drawn.items()}, lengths, longest)
    names = [key for key in seen if key.split("/")[0] in (*agent.inputs, "is_first")]
    outputs = _sequences(
        agent,
        trajectories,
        TemporalDictTensor.trusted({key: insert(seen[key], bootstrap[key]) for key in names}, lengths, longest),
        TemporalDictTensor.trusted({k: insert(v, v[row, time]) for k, v in taken.items()}, lengths, longest),
        drawn,
    )
    return outputs, place, behind


def _in_time(
    outputs: DictTensor | TemporalDictTensor, function: Callable[[Tensor], Tensor], steps: TemporalDictTensor
) -> TemporalDictTensor:
    fields = {key: full_precision(function(outputs[key])) for key in outputs}
    return TemporalDictTensor.trusted(fields, steps.lengths, steps.max_length)

"""How long the sequences are that a recurrent agent learns from, out of a replay buffer."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlx.agent import Agent, is_stateful
from rlx.data import Trajectories
from rlx.errors import AgentError

_LENGTH, _BURN_IN = 20, 10  # of what is not given


class Sequences(NamedTuple):
    """What a recurrent agent draws.

    Attributes:
        length: steps drawn, the burn-in included.
        burn_in: steps that only bring the stored state up to date.
    """

    length: int
    burn_in: int


def sequences_of(agent: Agent, sequence_length: int | None, burn_in_steps: int | None) -> Sequences | None:
    """Return what to draw for the agent; None for one without a memory, which learns from single steps.

    Args:
        agent: any agent.
        sequence_length: steps to learn from in each sequence; None for 20.
        burn_in_steps: steps before those; None for 10.

    Raises:
        AgentError: one of them is given, and the agent has no memory; or it reads its history, which no buffer keeps.
    """
    if agent.history_length:
        raise AgentError(
            f"{type(agent).__name__} reads {agent.history_length} steps of history, which a replay buffer does not "
            "keep; expected a recurrent agent, or one without a memory"
        )
    if is_stateful(agent):
        burn_in = _BURN_IN if burn_in_steps is None else burn_in_steps
        return Sequences(burn_in + (_LENGTH if sequence_length is None else sequence_length), burn_in)
    for name, value in (("sequence_length", sequence_length), ("burn_in_steps", burn_in_steps)):
        if value is not None:
            raise AgentError(
                f"algo.{name}: got {value}, but {type(agent).__name__} has no memory; expected null, or a recurrent "
                "agent such as agent=recurrent_q_network or agent=recurrent_soft_actor_critic"
            )
    return None


def tell_priority(drawn: Trajectories, left: Trajectories) -> Tensor:
    """Return which sequences tell how urgent they are, `[N]` bool: all but those of which too little is known yet.

    The newest ones of a buffer may be known no further than the burn-in goes. Nothing is learned from them, but as
    their episode goes on, something will be: a priority of nothing would keep them from ever being drawn again.

    Args:
        drawn: as the buffer returned them.
        left: what `burn_in` left of them.
    """
    steps, last = drawn.steps, drawn.steps.lengths - 1
    row = torch.arange(steps.batch_size, device=steps.device)
    over = (steps["next/terminated"] | steps["next/truncated"])[row, last]
    return over | (left.steps.lengths > 0)

"""Advantages and their like: the shared mathematics of the algorithms, each formula once.

`terminated` and `truncated` are never merged here. Whoever computes the value that follows a step has put 0 where the
episode terminated and the value of the true final observation where it was truncated (`rlx.agent.values`); every
recursion over time is cut at either.
"""

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: Tensor | float,
    gae_lambda: float,
    mask: Tensor | None = None,
    ratio: Tensor | None = None,
    rho_max: float = 1.0,
    c_max: float = 1.0,
) -> Tensor:
    """Return generalised advantage estimates (Schulman et al. 2016, "High-dimensional continuous control", eq. 16).

        delta_t = r_t + gamma * V(s'_t) - V(s_t)
        A_t = rho_t * delta_t + gamma * lambda * c_t * A_{t+1}, the last term dropped where an episode or sequence ends

    V(s'_t) is `next_values`: 0 after a termination, the final observation's value at a truncation. rho_t and c_t are 1,
    or with `ratio` min(rho_max, ratio_t) and min(c_max, ratio_t). That is V-trace (Espeholt et al. 2018, IMPALA, eq. 1
    and remark 2): its v_t is A_t + V(s_t). Where both thresholds are the same, A_t is also what its policy gradient is
    weighted by (with lambda = 1; otherwise lambda of what comes later counts, as in the other estimates); where they
    differ, that is rho_t * (r_t + gamma * v_{t+1} - V(s_t)).

    Args:
        rewards: `[B, T]`.
        values: `[B, T]`, V of the observation before each step.
        next_values: `[B, T]`, V of the observation after each step; taken as 0 where `terminated`.
        terminated: `[B, T]` bool.
        truncated: `[B, T]` bool.
        gamma: discount, usually 0.9 to 0.999; or one of each step, `[B, T]`, or of each row, `[B, 1]`.
        gae_lambda: lambda, usually 0.8 to 1; 1 gives returns minus values, 0 the one-step error.
        mask: `[B, T]` bool, valid steps; None for all. Padding comes out as 0.
        ratio: `[B, T]`, pi(a_t | s_t) over the probability that the action was drawn with; None for 1.
        rho_max: the greatest rho_t, of use with `ratio` only, usually 1: which policy's value is estimated, that of pi
            where it is infinite.
        c_max: the greatest c_t, likewise, at most `rho_max`: how far what comes later reaches back; less varies less.

    Returns:
        Advantages `[B, T]`; with `values` added, the lambda-returns.
    """
    delta = rewards + gamma * next_values.masked_fill(terminated, 0.0) - values
    decay = (torch.ones_like(delta) * (gamma * gae_lambda)).masked_fill_(terminated | truncated, 0.0)
    if ratio is not None:
        delta, decay = ratio.clamp(max=rho_max) * delta, ratio.clamp(max=c_max) * decay
    if mask is not None:
        delta = delta.masked_fill(~mask, 0.0)  # padding lies behind the steps: what it hands back to them is 0
        decay = decay.masked_fill(~mask, 0.0)  # whatever stands there: 0 times NaN is NaN
    # Time first in memory, and one buffer written from the end: T calls on rows that lie together.
    delta_t, decay_t = delta.t().contiguous().unbind(0), decay.t().contiguous().unbind(0)
    advantages = torch.empty(rewards.shape[1], rewards.shape[0], dtype=delta.dtype, device=delta.device)
    following = delta.new_zeros(rewards.shape[0])
    for t, place in reversed(list(enumerate(advantages.unbind(0)))):
        following = torch.addcmul(delta_t[t], decay_t[t], following, out=place)
    return advantages.t()


def n_step_returns(
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: Tensor | float,
    *,
    n_step: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the discounted rewards of the next n steps and the value after them (Sutton and Barto 2018, eq. 7.1).

        G_t = r_t + gamma * r_{t+1} + ... + gamma^(m-1) * r_{t+m-1} + gamma^m * V(s'_{t+m-1})

    m is `n_step`, or less where an episode or the sequence ends before: at a truncation and at the sequence's end the
    value of what followed stands in for the rest, after a termination nothing does.

    Args:
        rewards: `[B, T]`.
        next_values: `[B, T]`, V of the observation after each step; taken as 0 where `terminated`.
        terminated: `[B, T]` bool.
        truncated: `[B, T]` bool.
        discount: gamma, or what what follows each step counts, `[B, T]`.
        n_step: n, usually 1 to 10.
        mask: `[B, T]` bool, valid steps; None for all. Padding comes out as 0.

    Returns:
        `[B, T]`.
    """
    one_step = rewards + discount * next_values.masked_fill(terminated, 0.0)
    if mask is not None:
        one_step = one_step.masked_fill(~mask, 0.0)
    further = min(n_step, rewards.shape[1]) - 1
    if not further:
        return one_step
    goes_on = ~(terminated | truncated)[:, :-1]
    if mask is not None:
        goes_on &= mask[:, 1:]
    returns = one_step
    if isinstance(discount, Tensor):
        discount = discount[:, :-1]
    for _ in range(further):
        longer = torch.where(goes_on, rewards[:, :-1] + discount * returns[:, 1:], one_step[:, :-1])
        returns = torch.cat([longer, one_step[:, -1:]], dim=1)
    return returns


def explained_variance(predicted: Tensor, target: Tensor) -> Tensor:
    """Return `1 - Var(target - predicted) / Var(target)`, 0-dimensional: 1 is perfect, 0 no better than the mean.

    NaN of fewer than two values, and of a target that does not vary.

    Args:
        predicted: `[N]`.
        target: `[N]`.
    """
    if target.numel() < 2:
        return torch.full_like(target.sum(), torch.nan)
    variance = target.var()
    return torch.where(variance > 0, 1.0 - (target - predicted).var() / variance, torch.nan)


def normalize(values: Tensor, moments: tuple[Tensor, Tensor] | None = None, epsilon: float = 1e-8) -> Tensor:
    """Return `(values - mean) / (standard deviation + epsilon)`; a single value becomes 0.

    Args:
        values: `[N]`.
        moments: standard deviation and mean, 0-dimensional, where they are those of more values; None for their own.
        epsilon: keeps values that are all alike finite.
    """
    if moments is None and values.numel() < 2:
        return values - values.mean()
    std, mean = torch.std_mean(values) if moments is None else moments
    return (values - mean) / (std + epsilon)

"""The ceiling of collection: a loop written by hand for one environment and one network, with nothing to spare.

Of rlx it uses the network alone. It does the work that any collector owes: it acts, steps, writes observations,
actions, logits, rewards and both ends of episodes into preallocated arrays, keeps final observations, counts returns
and lengths, resets what ended, and checks that the numbers are finite. It runs in the batcher's own worker processes.
"""

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from rlx.agent.actor_critic import ActorCritic
from rlx.agent.networks import Single
from rlx.batcher.worker import Worker

Array = NDArray[Any]

_loops: dict[tuple[Any, ...], Callable[[], int]] = {}


def run_ceiling(worker: Worker, env_id: str, native: bool, num_steps: int) -> int:
    """Collect one piece in a worker's process, and return the valid transitions; called through `Batcher.call`."""
    key = (env_id, native, num_steps, worker.options.num_envs)
    if key not in _loops:
        make = _native_loop if native else _instance_loop
        _loops[key] = make(env_id, worker.options.num_envs, num_steps, worker.options.index)
    return _loops[key]()


def run_raw(worker: Worker, env_id: str, seconds: float) -> float:
    """Return the steps per second of one bare environment with fixed actions, in a worker's process."""
    del worker
    env = gymnasium.make(env_id, disable_env_checker=True)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(256)]
    env.reset(seed=0)
    step, count = env.step, 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for action in actions:
            _, _, terminated, truncated, _ = step(action)
            if terminated or truncated:
                env.reset()
        count += len(actions)
    rate = count / (time.perf_counter() - started)
    env.close()
    return rate


def _policy(env: Any, seed: int) -> tuple[Single, torch.Generator, int]:
    from rlx.env.spaces import to_specs

    specs = to_specs(
        getattr(env, "single_observation_space", env.observation_space),
        getattr(env, "single_action_space", env.action_space),
    )
    agent = ActorCritic(specs, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)
    return agent.network.single(0), torch.Generator().manual_seed(seed), specs.action["action"].nvec[0]


def _instance_loop(env_id: str, num_envs: int, num_steps: int, seed: int) -> Callable[[], int]:
    envs = [gymnasium.make(env_id, disable_env_checker=True) for _ in range(num_envs)]
    network, generator, num_actions = _policy(envs[0], seed)
    shape = envs[0].observation_space.shape or ()
    obs = np.zeros((num_steps + 1, num_envs, *shape), np.float32)
    action = np.zeros((num_steps, num_envs), np.int64)
    logits = np.zeros((num_steps, num_envs, num_actions), np.float32)
    reward = np.zeros((num_steps, num_envs), np.float32)
    terminated = np.zeros((num_steps, num_envs), np.bool_)
    truncated = np.zeros((num_steps, num_envs), np.bool_)
    seen, scores, chosen = (list(torch.from_numpy(block).unbind(0)) for block in (obs, logits, action))
    steps = [env.step for env in envs]
    scalars = [np.int64(number) for number in range(num_actions)]  # cheaper for the environment than ints
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    for row, env in enumerate(envs):
        obs[-1, row] = env.reset(seed=2 * (seed * num_envs + row))[0]
    noise = torch.empty(num_envs, num_actions)

    @torch.inference_mode()
    def loop() -> int:
        obs[0] = obs[-1]
        terminated[:] = False
        truncated[:] = False
        finals: list[tuple[int, int, Any]] = []
        for t in range(num_steps):
            network(seen[t], scores[t])
            torch.argmax(torch.sub(scores[t], noise.exponential_(generator=generator).log_()), -1, out=chosen[t])
            following, paid = obs[t + 1], reward[t]
            for row, number in enumerate(action[t].tolist()):
                o, paid[row], end, cut, _ = steps[row](scalars[number])
                if end or cut:
                    terminated[t, row], truncated[t, row] = end, cut
                    finals.append((t, row, o))
                    o = envs[row].reset()[0]
                following[row] = o
        _episodes(reward, np.ones_like(terminated), [(t, row) for t, row, _ in finals], returns, lengths)
        assert np.isfinite(obs).all()
        assert np.isfinite(reward).all()
        return num_steps * num_envs

    return loop


def _native_loop(env_id: str, num_envs: int, num_steps: int, seed: int) -> Callable[[], int]:
    env = gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point")
    network, generator, num_actions = _policy(env, seed)
    shape = env.single_observation_space.shape or ()
    obs = np.zeros((num_steps + 1, num_envs, *shape), np.float32)
    action = np.zeros((num_steps, num_envs), np.int64)
    logits = np.zeros((num_steps, num_envs, num_actions), np.float32)
    reward = np.zeros((num_steps, num_envs), np.float32)
    terminated = np.zeros((num_steps, num_envs), np.bool_)
    truncated = np.zeros((num_steps, num_envs), np.bool_)
    valid = np.zeros((num_steps, num_envs), np.bool_)
    seen, scores, chosen = (list(torch.from_numpy(block).unbind(0)) for block in (obs, logits, action))
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    resetting = np.zeros(num_envs, np.bool_)
    obs[-1] = env.reset(seed=2 * seed)[0]
    noise = torch.empty(num_envs, num_actions)

    @torch.inference_mode()
    def loop() -> int:
        obs[0] = obs[-1]
        for t in range(num_steps):
            network(seen[t], scores[t])
            torch.argmax(torch.sub(scores[t], noise.exponential_(generator=generator).log_()), -1, out=chosen[t])
            following, r, end, cut, _ = env.step(action[t])
            obs[t + 1], reward[t], terminated[t], truncated[t] = following, r, end, cut
            np.logical_not(resetting, out=valid[t])
            np.logical_or(end, cut, out=resetting)
        ends = list(zip(*(index.tolist() for index in np.nonzero(terminated | truncated)), strict=True))
        _episodes(reward, valid, ends, returns, lengths)
        assert np.isfinite(obs).all()
        assert np.isfinite(reward).all()
        return int(valid.sum())

    return loop


def _episodes(
    reward: Array, valid: Array, ends: list[tuple[int, int]], returns: Array, lengths: Array
) -> list[tuple[int, float, int]]:
    """Return row, return and length of the episodes that ended, and carry on those that go on."""
    total, count = returns + np.cumsum(reward, axis=0, dtype=np.float64), lengths + np.cumsum(valid, axis=0)
    before, counted = np.zeros(len(returns)), np.zeros(len(lengths), np.int64)
    found: list[tuple[int, float, int]] = []
    for t, row in ends:
        found.append((row, float(total[t, row] - before[row]), int(count[t, row] - counted[row])))
        before[row], counted[row] = total[t, row], count[t, row]
    returns[:], lengths[:] = total[-1] - before, count[-1] - counted
    return found

"""`rlx bench adapter`: an environment in rlx's rollout loop beside the same environment stepped bare, without a policy.

The bare loop does nothing but step with actions drawn beforehand, and reset what no longer resets itself. rlx's side
does all that a collector owes: it writes observations, actions, rewards and both ends of episodes into shared memory,
keeps final observations, counts returns and lengths, and checks that the numbers are finite.
"""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlx.agent.agent import Agent
from rlx.batcher.batcher import Batcher
from rlx.batcher.worker_options import EnvMaker
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.env.actions import ActionReader
from rlx.env.gym_vec_env import GymVecEnv
from rlx.env.native_gym_vec_env import NativeGymVecEnv
from rlx.env.vec_env import Autoreset, StepFields, VecEnv
from rlx.errors import ConfigError
from rlx.tools.turns import median_ratio, rates_in_turns

_NUM_DRAWN = 64
"""Actions of every row that are drawn beforehand, and then played again and again."""


class Fixed(Agent):
    """Plays actions that were drawn beforehand: as near to no policy as the Agent contract allows."""

    def __init__(self, specs: EnvSpecs, *, num_envs: int) -> None:
        """Draw the actions of `num_envs` rows."""
        super().__init__()
        drawn = draw_actions(specs.action, num_envs)
        self._drawn = cycle(drawn)
        self._arrays = cycle([{key: value.numpy() for key, value in actions.items()} for actions in drawn])

    def forward(
        self, observation: DictTensor, state: DictTensor, agent_info: DictTensor, taken: DictTensor | None = None
    ) -> tuple[DictTensor, DictTensor]:
        """Return the next actions; nothing is looked at."""
        actions = next(self._drawn)
        return DictTensor({key: value[: observation.batch_size] for key, value in actions.items()}), state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Return them as they are."""
        return outputs

    def act_into(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        generator: torch.Generator,
        out: Mapping[str, Tensor],
    ) -> DictTensor:
        """Copy the next actions to where they are kept."""
        assert isinstance(out, StepFields)  # as in the rollout loop; beside threads at work a copy by torch takes 16 us
        for key, value in next(self._arrays).items():
            out.arrays[key][...] = value
        return state


def bench_adapter(make_env: EnvMaker, *, num_envs: int, num_steps: int = 128, seconds: float = 5.0) -> dict[str, Any]:
    """Measure one worker in this process, and the environments beneath it stepped bare, in turns.

    Args:
        make_env: makes environments, with as many threads of their own as it says.
        num_envs: environments, B.
        num_steps: steps of each a piece of rlx.
        seconds: how long each of the two is measured.

    Returns:
        `steps_per_second` and `bare_steps_per_second`: B for each call, whether or not it resets some rows; `ratio`,
        the median of the turns'; and the arguments.

    Raises:
        ConfigError: an environment of which rlx knows no bare form.
    """
    make_agent = partial(Fixed, num_envs=num_envs)
    below = make_env(num_envs=num_envs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process; the environment's own threads are not torch's
    try:
        step_bare = _bare_loop(below)
        with Batcher(
            make_agent,
            make_env,
            num_workers=1,
            envs_per_worker=num_envs,
            num_steps=num_steps,
            seed=0,
            workers="local",
        ) as batcher:
            gc.freeze()  # as in a worker process

            def collect(pieces: int) -> int:
                for _ in range(pieces):
                    batcher.collect()
                    batcher.episodes.clear()  # as a run does
                return pieces * num_steps * num_envs

            def bare(pieces: int) -> int:
                step_bare(pieces * num_steps)
                return pieces * num_steps * num_envs

            rates = rates_in_turns({"rlx": collect, "bare": bare}, seconds)
    finally:
        torch.set_num_threads(threads)
        below.close()
    return {
        "steps_per_second": statistics.median(rates["rlx"]),
        "bare_steps_per_second": statistics.median(rates["bare"]),
        "ratio": median_ratio(rates["rlx"], rates["bare"]),
        "turns": len(rates["rlx"]),
        "env": below.name,
        "num_envs": num_envs,
        "num_steps": num_steps,
    }


def draw_actions(specs: Mapping[str, Spec], num_envs: int) -> list[dict[str, Tensor]]:
    """Return actions `[B, ...]` of every kind, drawn evenly; continuous ones within their bounds, or normal."""
    generator = torch.Generator().manual_seed(0)

    def draw(spec: Spec) -> Tensor:
        shape = (num_envs, *spec.shape)
        if spec.kind != "continuous":
            most = torch.tensor(spec.nvec or 2).reshape(spec.shape if spec.kind == "multi_discrete" else ())
            return (torch.rand(shape, generator=generator) * most).floor().to(spec.dtype)
        if not spec.low or not np.isfinite([*spec.low, *spec.high]).all():
            return torch.randn(shape, generator=generator).to(spec.dtype)
        low, high = (torch.tensor(bound).reshape(spec.shape) for bound in (spec.low, spec.high))
        return (low + torch.rand(shape, generator=generator) * (high - low)).to(spec.dtype)

    return [{key: draw(spec) for key, spec in specs.items()} for _ in range(_NUM_DRAWN)]


def _bare_loop(env: VecEnv) -> Callable[[int], None]:
    """Return what steps all rows of the environments beneath an adapter so many times."""
    env.reset(env.allocate(), seeds=[*range(env.num_envs)])
    drawn = draw_actions(env.specs.action, env.num_envs)
    if isinstance(env, GymVecEnv):
        reader = ActionReader(env.envs[0].action_space, env.num_envs)
        return _instance_loop(env.envs, cycle([reader.rows(action) for action in drawn]))
    if isinstance(env, NativeGymVecEnv) and env.autoreset is not Autoreset.NONE:
        reader = ActionReader(cast(Any, env.env).single_action_space, env.num_envs)
        return _native_loop(getattr(env.env, "pool", env.env), cycle([reader.batch(action) for action in drawn]))
    raise ConfigError(
        f"env: rlx knows no bare form of '{env.name}'; expected instances of Gymnasium's, or a vector environment of "
        "Gymnasium's, ALE's or EnvPool's that resets its rows itself"
    )


def _instance_loop(envs: Sequence[Any], actions: Iterator[list[Any]]) -> Callable[[int], None]:
    def loop(steps: int) -> None:
        for _ in range(steps):
            for env, action in zip(envs, next(actions), strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()

    return loop


def _native_loop(env: Any, actions: Iterator[Any]) -> Callable[[int], None]:
    def loop(steps: int) -> None:
        for _ in range(steps):
            env.step(next(actions))

    return loop

"""Collect with rlx and with other toolkits, side by side: valid environment steps a second, policy included.

    pip install stable-baselines3 torchrl gymnasium[mujoco] ale-py opencv-python-headless
    python scripts/bench_peers.py --seconds 4 --turns 3

Every contestant has 16 environments of the same id, pieces of 128 steps of each, a policy of the same form (two hidden
layers of 64; for Pong DQN's convolutions) that draws its actions, and one thread a process. They take turns in one run;
the table gives the median, and its ratio to rlx with two worker processes. What is not installed is left out, and said
so. Stable-Baselines3 also evaluates its critic while it collects, which others do once a batch.
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import gymnasium
import numpy as np
import torch

from rlx.agent import ActorCritic, ConvActorCritic
from rlx.batcher import Batcher
from rlx.data import DictTensor
from rlx.env import make, make_atari

NUM_ENVS, NUM_STEPS = 16, 128
IDS = {"CartPole": "CartPole-v1", "Pendulum": "Pendulum-v1", "HalfCheetah": "HalfCheetah-v5", "Pong": "ALE/Pong-v5"}
MLP = partial(ActorCritic, hidden_sizes=[64, 64], activation="tanh", log_std_init=0.0)
CNN = partial(
    ConvActorCritic,
    filters=[32, 64, 64],
    kernel_sizes=[8, 4, 3],
    strides=[4, 2, 1],
    hidden_size=512,
    activation="relu",
    log_std_init=0.0,
)
ATARI = {
    "game": "Pong",
    "autoreset": "next_step",
    "num_threads": 1,
    "frameskip": 4,
    "stack_num": 4,
    "noop_max": 30,
    "repeat_action_probability": 0.0,
    "clip_reward": True,
    "max_num_frames_per_episode": 108_000,
    "kwargs": {},
}

Contestant = Callable[[], int]
"""Collects a piece; returns its valid steps."""


def rlx_batcher(name: str, workers: int, stack: ExitStack) -> Contestant:
    """Rlx's own batcher; its workers leave the critic out, which the learner runs once a batch."""
    make_env = partial(make_atari, **ATARI) if name == "Pong" else partial(make, IDS[name])
    make_agent = CNN if name == "Pong" else MLP
    batcher = stack.enter_context(
        Batcher(
            make_agent,
            make_env,
            num_workers=workers,
            envs_per_worker=NUM_ENVS // workers,
            num_steps=NUM_STEPS,
            seed=0,
        )
    )
    batcher.publish(make_agent(batcher.specs))

    def collect() -> int:
        batcher.episodes.clear()
        return batcher.collect().num_steps

    return collect


def gymnasium_async(name: str, stack: ExitStack) -> Contestant:
    """Gymnasium's AsyncVectorEnv, with rlx's policy in the parent."""
    if name == "Pong":
        raise LookupError("its observations are not preprocessed")
    envs = gymnasium.vector.AsyncVectorEnv(
        [partial(gymnasium.make, IDS[name])] * NUM_ENVS,
        context="forkserver",
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    stack.callback(envs.close)
    with make(IDS[name], 1) as one:
        agent = MLP(one.specs)
    nothing, generator = DictTensor.empty(NUM_ENVS), torch.Generator()
    low, high = getattr(envs.single_action_space, "low", None), getattr(envs.single_action_space, "high", None)
    seen, _ = envs.reset(seed=0)

    @torch.inference_mode()
    def collect() -> int:
        nonlocal seen
        for _ in range(NUM_STEPS):
            observation = DictTensor({"obs": torch.as_tensor(seen, dtype=torch.float32)})
            outputs, _ = agent(observation, nothing, nothing)
            action = agent.act(outputs, nothing, generator)["action"].numpy()
            seen, *_ = envs.step(action if low is None else np.clip(action, low, high))
        return NUM_ENVS * NUM_STEPS

    return collect


def stable_baselines(name: str, kind: str, stack: ExitStack) -> Contestant:
    """Stable-Baselines3's PPO.collect_rollouts, its own loop and buffer."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecTransposeImage

    kinds = {"DummyVecEnv": (DummyVecEnv, {}), "SubprocVecEnv": (SubprocVecEnv, {"start_method": "forkserver"})}
    vec_env_cls, vec_env_kwargs = kinds[kind]
    keywords = {"n_envs": NUM_ENVS, "seed": 0, "vec_env_cls": vec_env_cls, "vec_env_kwargs": vec_env_kwargs}
    if name == "Pong":
        still = {"frameskip": 1, "repeat_action_probability": 0.0}  # its wrappers skip frames
        envs = VecTransposeImage(VecFrameStack(make_atari_env("ale_py:ALE/Pong-v5", env_kwargs=still, **keywords), 4))
    else:
        envs = make_vec_env(IDS[name], **keywords)
    stack.callback(envs.close)
    policy = "CnnPolicy" if name == "Pong" else "MlpPolicy"
    model = PPO(policy, envs, n_steps=NUM_STEPS, batch_size=256, device="cpu", verbose=0)
    _, callback = model._setup_learn(10**9)

    def collect() -> int:
        model.collect_rollouts(envs, callback, model.rollout_buffer, NUM_STEPS)
        return NUM_ENVS * NUM_STEPS

    return collect


def torchrl_collector(name: str, workers: int, stack: ExitStack) -> Contestant:
    """TorchRL's collectors over GymEnv."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torch import nn
    from torchrl import collectors, modules
    from torchrl.envs import DoubleToFloat, GymEnv, SerialEnv, TransformedEnv
    from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal

    if name == "Pong":
        raise LookupError("its preprocessing is put together differently")
    one = GymEnv(IDS[name])
    discrete = isinstance(gymnasium.make(IDS[name]).action_space, gymnasium.spaces.Discrete)
    size = one.action_spec.shape[-1]
    sizes = {"in_features": one.observation_spec["observation"].shape[-1], "num_cells": [64, 64]}
    if discrete:
        network = TensorDictModule(
            modules.MLP(out_features=size, activation_class=nn.Tanh, **sizes), ["observation"], ["logits"]
        )
        actor = ProbabilisticActor(
            network, spec=one.action_spec, in_keys=["logits"], distribution_class=torch.distributions.OneHotCategorical,
            return_log_prob=True,
        )  # fmt: skip
    else:
        inner = nn.Sequential(
            modules.MLP(out_features=2 * size, activation_class=nn.Tanh, **sizes), NormalParamExtractor()
        )
        actor = ProbabilisticActor(
            TensorDictModule(inner, ["observation"], ["loc", "scale"]), spec=one.action_spec, in_keys=["loc", "scale"],
            distribution_class=TanhNormal, return_log_prob=True,
            distribution_kwargs={"low": one.action_spec.space.low, "high": one.action_spec.space.high},
        )  # fmt: skip
    policy = TensorDictSequential(actor)
    each = NUM_ENVS // workers
    keywords = {"frames_per_batch": NUM_ENVS * NUM_STEPS, "total_frames": -1}

    def make_envs() -> TransformedEnv:
        return TransformedEnv(SerialEnv(each, partial(GymEnv, IDS[name])), DoubleToFloat(in_keys=["observation"]))

    kind = ("Collector", "SyncDataCollector") if workers == 1 else ("MultiSyncCollector", "MultiSyncDataCollector")
    make_collector = next(getattr(collectors, title) for title in kind if hasattr(collectors, title))
    collector = make_collector(make_envs() if workers == 1 else [make_envs] * workers, policy, **keywords)
    stack.callback(collector.shutdown)
    pieces: Iterator = iter(collector)

    def collect() -> int:
        return int(next(pieces).numel())

    return collect


CONTESTANTS: dict[str, Callable[[str, ExitStack], Contestant]] = {
    "rlx, 2 workers": lambda name, stack: rlx_batcher(name, 2, stack),
    "rlx, 1 worker": lambda name, stack: rlx_batcher(name, 1, stack),
    "Stable-Baselines3, DummyVecEnv": lambda name, stack: stable_baselines(name, "DummyVecEnv", stack),
    "Stable-Baselines3, SubprocVecEnv": lambda name, stack: stable_baselines(name, "SubprocVecEnv", stack),
    "Gymnasium AsyncVectorEnv": gymnasium_async,
    "TorchRL, 1 process": lambda name, stack: torchrl_collector(name, 1, stack),
    "TorchRL, 2 processes": lambda name, stack: torchrl_collector(name, 2, stack),
}
NEEDS = {"Stable-Baselines3": "stable_baselines3", "TorchRL": "torchrl"}


def measure(collect: Contestant, seconds: float) -> float:
    """Return valid steps a second over at least `seconds`."""
    steps, started = 0, time.perf_counter()
    while True:
        steps += collect()
        spent = time.perf_counter() - started
        if spent >= seconds:
            return steps / spent


def main() -> None:
    """Measure, and print a table for each environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each contestant, each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--envs", nargs="+", default=list(IDS), choices=list(IDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.envs:
        with ExitStack() as stack:
            taking_part: dict[str, Contestant] = {}
            for title, enter in CONTESTANTS.items():
                package = NEEDS.get(title.split(",")[0])
                if package is not None and importlib.util.find_spec(package) is None:
                    print(f"{name}: {title} left out: {package} is not installed", flush=True)
                    continue
                try:
                    taking_part[title] = enter(name, stack)
                    taking_part[title]()
                except Exception as error:
                    taking_part.pop(title, None)
                    print(f"{name}: {title} left out: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            speeds: dict[str, list[float]] = {title: [] for title in taking_part}
            for _ in range(options.turns):
                for title, collect in taking_part.items():
                    speeds[title].append(measure(collect, options.seconds))
        ours = statistics.median(speeds["rlx, 2 workers"])
        print(f"\n| {name} | steps/s | of rlx |\n|---|---|---|")
        for title, found in speeds.items():
            print(f"| {title} | {statistics.median(found):,.0f} | {statistics.median(found) / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()

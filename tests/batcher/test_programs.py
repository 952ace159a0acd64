"""Batchers inside other people's programs: threads, forks, daemons, code without a file, a stop in the middle."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import pytest

from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import VecEnv, make
from rlx.errors import UserError, WorkerError
from tests.batcher.memory import open_blocks
from tests.faults import sick

ROOT = Path(__file__).parent.parent.parent
BEGIN = """
import multiprocessing
import torch
from functools import partial
from rlx.agent import ActorCritic
from rlx.batcher import Batcher
from rlx.env import make
from rlx.errors import UserError, WorkerError

agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
env = partial(make, "CartPole-v1")

def collected(make_env=env, **more):
    with Batcher(agent, make_env, num_workers=1, envs_per_worker=2, num_steps=4, seed=0, **more) as batcher:
        batcher.publish(agent(batcher.specs))
        return batcher.collect().num_steps
"""


def printed(program: str, *arguments: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        input=BEGIN + program,
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def waiting(use: Callable[[Batcher], object]) -> tuple[str, str]:
    """Return what is raised in `use`, if anything, while a thread waits for a worker for ever, and in that thread."""
    make_env = partial(make, sick.ID, kwargs={"way": "waits", "place": "step"})
    make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    with Batcher(make_agent, make_env, num_workers=1, envs_per_worker=1, num_steps=8, seed=0) as batcher:
        batcher.publish(make_agent(batcher.specs))
        with ThreadPoolExecutor(1) as pool:
            other, here = pool.submit(batcher.collect), ""
            while not batcher._crew._turn.locked():
                assert not wait([other], 0.01).done
            try:
                use(batcher)
            except UserError as error:
                here = str(error)
            finally:
                batcher.close()
            there = other.exception()
        assert isinstance(there, UserError)
        assert not batcher._handles[0].is_alive
        return here, str(there)


def test_what_was_typed_in_and_lambdas_reach_worker_processes_as_their_code() -> None:
    program = """
import gymnasium
from rlx.env import GymVecEnv
from rlx.data import DictTensor

class Noted(gymnasium.Wrapper):
    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)[0] * 0 + options["told"], {}

class Own(ActorCritic):
    pass

told = 1.0
make_own = lambda specs: Own(specs, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
make_env = lambda num_envs: GymVecEnv(lambda: Noted(gymnasium.make("CartPole-v1")), num_envs)
with Batcher(
    make_own, make_env, num_workers=1, envs_per_worker=2, num_steps=4, seed=0,
    env_info=lambda row, generator: {"told": torch.tensor(told)},
) as batcher:
    batcher.publish(make_own(batcher.specs))
    batcher.reset()
    print(batcher.collect().steps["env/obs"][0, 0].tolist())
    batcher.reset(env_info=lambda row, generator: {"told": torch.tensor(told + row)})
    print(batcher.collect().steps["env/obs"][:, 0, 0].tolist())
"""
    assert printed(program, "-") == [str([1.0] * 4), "[1.0, 2.0]"]


def test_what_was_registered_where_it_was_typed_in_is_known_to_workers() -> None:
    program = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Own(CartPoleEnv):
    pass

gymnasium.register("Own-v0", entry_point=Own, max_episode_steps=3)
with Batcher(agent, partial(make, "Own-v0"), num_workers=1, envs_per_worker=1, num_steps=7, seed=0) as batcher:
    batcher.publish(agent(batcher.specs))
    print(batcher.collect().steps["next/truncated"][0].tolist())
"""
    assert printed(program, "-") == [str([False, False, True, False, False, True, False])]


def test_environments_may_start_processes_which_end_with_their_worker() -> None:
    program = """
import gymnasium, numpy, os, select
from rlx.env import GymVecEnv

class Simulator(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-numpy.inf, numpy.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, daemon):
        self.pipe, other = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        fork.Process(target=self.simulate, args=(other,), daemon=daemon).start()

    def simulate(self, pipe):
        while pipe.recv():
            pipe.send(os.getpid())

    def pid(self):
        self.pipe.send(True)
        return numpy.array([self.pipe.recv()], numpy.float32)

    def reset(self, *, seed=None, options=None):
        return self.pid(), {}

    def step(self, action):
        return self.pid(), 0.0, False, False, {}

for daemon in (True, False):
    make_env = lambda num_envs: GymVecEnv(lambda: Simulator(daemon), num_envs)
    with Batcher(agent, make_env, num_workers=1, envs_per_worker=1, num_steps=4, seed=0) as batcher:
        batcher.publish(agent(batcher.specs))
        simulator = os.pidfd_open(int(batcher.collect().steps["env/obs"][0, 0]))
    print(select.select([simulator], [], [], 10)[0] == [simulator])
"""
    assert printed(program, "-") == ["True", "True"]


def test_what_cannot_travel_is_refused_by_the_reason(tmp_path: Path) -> None:
    lock = threading.Lock()

    def make_env(num_envs: int) -> VecEnv:
        with lock:
            return make("CartPole-v1", num_envs)

    make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    with pytest.raises(
        WorkerError, match=r"picklable to reach a worker process \(cannot pickle '_thread.lock' object\)"
    ):
        Batcher(make_agent, make_env, num_workers=1, envs_per_worker=1, num_steps=8, seed=0)

    program = tmp_path / "program.py"
    below = "def typed_in(num_envs):\n    return make('CartPole-v1', num_envs)\n" + (
        "try:\n    collected(typed_in)\nexcept UserError as error:\n    print(error)\n"
    )
    program.write_text(BEGIN + "if __name__ == '__main__':\n" + textwrap.indent(below, "    "))
    (refused,) = printed("", str(program))
    assert "Can't get attribute 'typed_in'" in refused
    assert "Define your functions and classes above it" in refused


def test_a_second_thread_that_waits_for_the_same_workers_is_refused() -> None:
    here, _ = waiting(Batcher.get)
    assert here.startswith("another thread is waiting for this batcher's workers")


def test_a_thread_that_waits_is_told_when_another_one_closes_the_batcher() -> None:
    here, there = waiting(Batcher.close)
    assert (here, there) == ("", "the batcher was closed by another thread while this one waited for its workers")


class Interrupted(ActorCritic):
    """Ctrl-C comes as it acts."""

    def actor(self):
        return self

    def act(self, outputs, agent_info, generator):
        if not (outputs["value"] == 0).all():  # not when it is tried on nothing
            raise KeyboardInterrupt
        return super().act(outputs, agent_info, generator)


def test_a_batcher_that_was_interrupted_says_so_when_it_is_used_again() -> None:
    make_agent = partial(Interrupted, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    make_env, local = partial(make, "CartPole-v1"), "local"
    with Batcher(make_agent, make_env, num_workers=1, envs_per_worker=1, num_steps=8, seed=0, workers=local) as batcher:
        batcher.publish(make_agent(batcher.specs))
        with pytest.raises(KeyboardInterrupt):
            batcher.collect()
        with pytest.raises(UserError, match=r"^the batcher is closed: KeyboardInterrupt ended it while it waited"):
            batcher.collect()


def test_a_fork_of_a_process_with_workers_starts_workers_of_its_own_and_a_daemon_is_told_that_it_cannot() -> None:
    program = """
def child():
    print(collected(), flush=True)

def daemon():
    try:
        collected()
    except WorkerError as error:
        print(error, flush=True)

torch.set_num_threads(1)  # those of OpenMP do not outlive a fork
print(collected(), flush=True)
fork = multiprocessing.get_context("fork")
for target, is_daemon in ((child, False), (daemon, True)):
    process = fork.Process(target=target, daemon=is_daemon)
    process.start()
    process.join()
"""
    first, second, refused = printed(program, "-W", "ignore", "-")
    assert (first, second) == ("8", "8")
    assert refused.startswith("worker 0 (environments 0 to 1) cannot be started: this process is a daemon")


def test_local_workers_give_their_memory_back_as_their_batcher_is_closed() -> None:
    gc.collect()
    gc.disable()  # it comes whenever it comes
    try:
        before = open_blocks()
        make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
        settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 4, "seed": 0, "workers": "local"}
        with Batcher(make_agent, partial(make, "CartPole-v1"), **settings) as batcher:
            batcher.publish(make_agent(batcher.specs))
            batcher.collect()
            assert open_blocks() > before
        del batcher
        assert open_blocks() == before
    finally:
        gc.enable()

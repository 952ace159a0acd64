"""Losses compiled and in mixed precision: the same numbers, and refused where that cannot be."""

import ctypes
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rlx.agent import ActorCritic
from rlx.algo import ppo
from rlx.data import EnvSpecs, Spec
from rlx.errors import ConfigError
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from rlx.run.compute import Compute
from rlx.run.metrics import read_metrics
from tests.agent.agents import actor_critic, steps_of
from tests.device.simulated import NEEDS_CUDA
from tests.program import ENVIRONMENT
from tests.run.jobs import SMALL, train

NUMBERS = {"clip_vf": False, "ent_coef": 0.01, "vf_coef": 0.5, "normalize_advantage": True}
ALGORITHMS = {
    "ppo": ("algo.batch_size=32", "algo.num_epochs=2"),
    "a2c": (),
    "reinforce": (),
    "dqn": ("algo.learning_starts=32", "algo.num_updates=2", "algo.batch_size=16"),
    "hdqn": ("env=Errand", "algo.learning_starts=32", "algo.num_updates=2", "algo.batch_size=16"),
    "sac": ("env=Pendulum", "algo.learning_starts=32", "algo.num_updates=2", "algo.batch_size=16"),
    "diayn": ("env=Pendulum", "algo.learning_starts=32", "algo.num_updates=2", "algo.batch_size=16"),
}
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]


def short(directory: Path, algo: str, *overrides: str) -> Path:
    """Train an algorithm for some iterations in this process."""
    workers = "batcher.workers=local" if algo == "reinforce" else "batcher=local"
    small = ("logger.console=false", "logger=csv", "batcher.envs_per_worker=4", "algo.num_steps=16")
    return train(directory, f"algo={algo}", workers, *small, "total_steps=192", *ALGORITHMS[algo], *overrides)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_bfloat16_trains_float32_weights_near_those_without(tmp_path: Path, algo: str, device: str) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        directory = short(tmp_path / precision, algo, f"precision={precision}", f"device={device}")
        state = load_checkpoint(find_checkpoint(directory)).state["agent"]
        row = next(row for row in read_metrics(directory / "metrics.csv") if row["loss/total"] is not None)
        found[precision] = (state, row["loss/total"])
    (plain, plain_loss), (mixed, mixed_loss) = found["float32"], found["bfloat16"]
    assert mixed_loss != plain_loss  # products were rounded
    assert mixed_loss == pytest.approx(plain_loss, rel=0.1, abs=0.05)
    for name, weight in mixed.items():
        assert weight.dtype == plain[name].dtype != torch.bfloat16
        torch.testing.assert_close(weight, plain[name], rtol=0.1, atol=0.05, msg=name)


def test_bfloat16_gradients_reach_what_float32_ones_do() -> None:
    grads = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        agent = actor_critic()
        batch = ppo.with_advantages(agent, steps_of([5, 3, 4], 5, seed=2), gamma=0.9, gae_lambda=0.8)
        compute = Compute(torch.device("cpu"), compile=False, precision=precision)(ppo.loss, agent)
        compute(agent, batch, clip_coef=0.2, **NUMBERS)["loss/total"].backward()
        grads[precision] = {name: parameter.grad for name, parameter in agent.named_parameters()}
    for name, exact in grads["float32"].items():
        assert grads["bfloat16"][name].dtype is torch.float32
        torch.testing.assert_close(grads["bfloat16"][name], exact, rtol=0.1, atol=0.02, msg=name)


def test_tf32_is_for_gpus() -> None:
    with pytest.raises(ConfigError, match=r"^precision: tf32 is a format of NVIDIA's GPUs, and device=cpu; expected"):
        Compute(torch.device("cpu"), compile=False, precision="tf32")


@NEEDS_CUDA
def test_float32_on_a_gpu_is_float32_and_tf32_is_not(tmp_path: Path) -> None:
    """In a run: its last setting stays behind."""
    draws = torch.Generator("cuda").manual_seed(0)
    frames = torch.randn(32, 64, 14, 14, device="cuda", generator=draws)
    filters = torch.randn(64, 64, 3, 3, device="cuda", generator=draws)
    exact = torch.nn.functional.conv2d(frames.double(), filters.double())
    errors = {}
    for precision in ("tf32", "float32"):
        short(tmp_path / precision, "ppo", f"precision={precision}", "device=cuda")
        found = torch.nn.functional.conv2d(frames, filters)
        errors[precision] = float((found - exact).abs().max())
    assert errors["float32"] < 1e-4 < 1e-3 < errors["tf32"]


def test_off_the_very_loss_is_called() -> None:
    assert Compute(torch.device("cpu"), compile=False, precision="float32")(ppo.loss, actor_critic()) is ppo.loss


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where its compiler is imported
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_compiled_run_of_ppo_has_the_numbers_of_a_plain_one(tmp_path: Path, device: str) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    found = []
    moving = ("algo.clip_coef=[linear,0.2,0.1]", "algo.batch_size=32", "total_steps=192")
    for flag in ("true", "false"):
        directory = train(tmp_path / flag, *SMALL, *moving, "logger=csv", f"compile={flag}", f"device={device}")
        rows = read_metrics(directory / "metrics.csv")
        found.append([{key: row[key] for key in row if key.startswith(("loss/", "ppo/", "grad"))} for row in rows])
    assert counters["stats"]["unique_graphs"] == 1  # forward and backward whole, and not anew for each clip_coef
    for compiled, plain in zip(*found, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"^compile: torch\.compile needs a C\+\+ compiler, and there is no 'no-such"):
        Compute(torch.device("cpu"), compile=True, precision="float32")


@pytest.mark.parametrize(("compile", "precision"), [(True, "float32"), (False, "bfloat16")])
def test_an_algorithm_that_would_not_heed_them_is_refused(compile: bool, precision: str) -> None:
    compute = Compute(torch.device("cpu"), compile=compile, precision=precision)
    with pytest.raises(ConfigError, match=r"mine on CartPole cannot do that: its train\(\) never calls run\.compute"):
        compute.check_used("mine on CartPole")
    Compute(torch.device("cpu"), compile=False, precision="float32").check_used("mine on CartPole")


def test_a_loss_that_torch_cannot_follow_is_an_error_that_names_it() -> None:
    def loss(agent, x):
        return {"loss/total": x if x.sum() > 0 else -x}

    specs = EnvSpecs({"obs": Spec((3,), torch.float32)}, {"action": Spec((), torch.int64, nvec=(2,), kind="discrete")})
    agent = partial(ActorCritic, hidden_sizes=[4], activation="tanh", log_std_init=0.0)(specs)
    compute = Compute(torch.device("cpu"), compile=True, precision="float32")(loss, agent)
    with pytest.raises(ConfigError, match=r"^compile: torch cannot compile .*test_compute with ActorCritic: "):
        compute(agent, torch.ones(2))


def test_a_run_without_compile_never_imports_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.run.jobs import SMALL, train\n"
        "train(Path('run'), *SMALL, 'total_steps=128', 'logger=csv')\n"
        "assert 'torch._dynamo' not in sys.modules, 'it was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_that_an_update_frees_serves_the_next_one() -> None:
    code = """
import resource, torch
from rlx.run.compute import keep_freed_memory
keep_freed_memory()
def update():
    tensors = [torch.ones(3 * 2**20 + 1024 * number) for number in range(8)]  # from 12 MB on
for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert float(done.stdout) < 10  # of 24,576 pages; without it mostly all of them


def test_training_keeps_the_memory_that_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("rlx.run.launch.keep_freed_memory", lambda: called.append(True))
    short(tmp_path / "run", "a2c")
    assert called == [True]

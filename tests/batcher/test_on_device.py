"""The rollout on an accelerator does what the one on the host does, and waits for the device at no step.

There is no accelerator here as a rule: the same code is run on the CPU, against the host's, and on torch's `meta`
device, where tensors have no values, so that whoever asks for one, or mixes devices, gets an error.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlx.agent import ActorCritic, GRUActorCritic, TransformerActorCritic, replay, values
from rlx.agent.distribution import Categorical
from rlx.batcher import Batcher
from rlx.batcher.memory import DeviceMemory
from rlx.batcher.on_device import DeviceRollout
from rlx.batcher.slots import Layout
from rlx.data import DictTensor, Trajectories
from rlx.env import TorchCartPole
from rlx.errors import RlxError
from rlx.run.compute import set_float32_products
from tests.device.simulated import ACCELERATORS, NEEDS_CUDA
from tests.program import rlx

MODES = ["next_step", "same_step", "none"]

MLP = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
GRU = partial(
    GRUActorCritic,
    hidden_sizes=[8],
    activation="tanh",
    state_size=8,
    critic_hidden_sizes=[8],
    log_std_init=0.0,
    prev_action=True,
    prev_reward=True,
)
TRANSFORMER = partial(
    TransformerActorCritic,
    num_layers=2,
    window=4,
    model_size=8,
    num_heads=2,
    feedforward_size=8,
    activation="relu",
    critic_hidden_sizes=[8],
    log_std_init=0.0,
    prev_action=True,
    prev_reward=True,
)
AGENTS = {"mlp": MLP, "gru": GRU, "transformer": TRANSFORMER}


def batcher(make_agent: Any = MLP, mode: str = "next_step", device: str = "cpu", **changes: Any) -> Batcher:
    make_env = partial(TorchCartPole, autoreset=mode, max_episode_steps=20, device=device)
    options = {"num_workers": 2, "envs_per_worker": 3, "num_steps": 16, "seed": 3, "workers": "local"} | changes
    return Batcher(make_agent, make_env, **options)


def agent_for(batcher: Batcher, make_agent: Any) -> Any:
    torch.manual_seed(5)
    return make_agent(batcher.specs)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what lets the batchers that are made from then on work as on an accelerator, with the CPU's memory."""
    return lambda: monkeypatch.setattr("rlx.batcher.worker.Rollout", DeviceRollout)


def plain(piece: Trajectories) -> dict[str, torch.Tensor]:
    """Return all that a piece shows, whatever lies behind a row's last step left out."""
    mask = piece.steps.mask()
    fields = {key: piece.steps[key][mask] for key in piece.steps.keys()}  # noqa: SIM118
    fields |= {f"info {key}": value for key, value in piece.info.items()}
    fields |= {f"context {key}": value for key, value in piece.context.items()}
    order = sorted(range(piece.bootstrap.batch_size), key=lambda place: piece.bootstrap["row"][place] * 1000
                   + piece.bootstrap["time"][place])  # fmt: skip
    fields |= {f"bootstrap {key}": value[order] for key, value in piece.bootstrap.items()}
    return {key: value.cpu() for key, value in fields.items()} | {"lengths": piece.steps.lengths.cpu()}


def collected(make_agent: Any, mode: str, **changes: Any) -> list[Any]:
    """Return all that some pieces show, with a change of `agent_info` and a stored state in between."""
    found: list[Any] = []
    stop = changes.get("stop_at_episode_end", False)
    with batcher(make_agent, mode, **changes) as b:
        b.publish(agent_for(b, make_agent))
        for number in range(6):
            if stop and number == 3:
                b.reset()
            info = DictTensor({"deterministic": torch.tensor([number > 3] * 6)})
            b.execute(info if number else None)
            piece = b.get()
            assert piece is not None
            found += [plain(piece[0]), piece[1], piece[0].num_steps]
            found.append([(row, length) for row, _, length in b.episodes])
            assert [total for _, total, _ in b.episodes] == [length for _, _, length in b.episodes]
            if number == 2:
                state = b.state_dict()
                b.load_state_dict(state)
    return found


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("mode", MODES)
def test_pieces_are_those_of_the_host(mode: str, agent: str, stop: bool, on_device: Any) -> None:
    # Agents are told `deterministic` from the second piece on: the first reset has to name the field.
    start = {"agent_info": DictTensor({"deterministic": torch.zeros(6, dtype=torch.bool)})}
    expected = collected(AGENTS[agent], mode, stop_at_episode_end=stop, **start)
    on_device()
    found = collected(AGENTS[agent], mode, stop_at_episode_end=stop, **start)
    assert_same(found, expected)
    assert sum(len(episodes) for episodes in expected[3::4]) > 6


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let things happen on the meta device that torch knows nothing of there."""
    real = torch.Generator

    class Generator(real):
        def __new__(cls, device: Any = "cpu") -> Any:
            return real()

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Categorical, "race", staticmethod(lambda out, generator: out))


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("agent", AGENTS)
def test_no_step_asks_the_device_for_a_value_or_mixes_devices(agent: str) -> None:
    with batcher(AGENTS[agent], device="meta") as b:
        assert b.device.type == "meta"
        b.publish(agent_for(b, AGENTS[agent]).to("meta"))
        for handle in b._handles:
            rollout = handle._worker.rollout
            assert isinstance(rollout, DeviceRollout)
            for piece in rollout._pieces:
                with torch.inference_mode():
                    rollout._begin(piece)
                    assert rollout._step_all(piece) == b.num_steps
                    assert piece.slot.reward.device.type == "meta"


@pytest.mark.usefixtures("without_values")
def test_the_meta_device_finds_a_step_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlx.batcher.rollout.may_be_any", lambda rows: bool(rows.any()))
    with batcher(GRU, device="meta") as b:
        b.publish(agent_for(b, GRU).to("meta"))
        rollout = b._handles[0]._worker.rollout
        with pytest.raises(RuntimeError, match="meta"):
            rollout._begin(rollout._pieces[0])


def test_memory_lies_where_the_environments_live() -> None:
    with batcher() as b:
        assert b.device.type == "cpu"
        b.reset()
        layout = b._layout
    assert isinstance(layout, Layout)
    assert not isinstance(layout.allocate(torch.device("cpu")), DeviceMemory)
    memory = layout.allocate(torch.device("meta"))
    assert isinstance(memory, DeviceMemory)
    assert memory.tensor(layout.slots[0]["reward"]).device.type == "meta"
    memory.close()


def test_memory_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(RlxError, match="no room for 3 MiB on cuda: lower"):
        DeviceMemory(3 * 2**20, torch.device("cuda"))


@pytest.mark.parametrize("device", ACCELERATORS)
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_collects_what_the_host_does(mode: str, agent: str, device: str) -> None:
    """Up to the draws, which are the device's own: all rows take the best action."""
    set_float32_products("float32")
    start = {"agent_info": DictTensor({"deterministic": torch.ones(6, dtype=torch.bool)})}
    pieces = []
    for place in ("cpu", device):
        with batcher(AGENTS[agent], mode, place, **start) as b:
            learner = agent_for(b, AGENTS[agent]).to(place)
            b.publish(learner)
            piece = b.collect()
            assert piece.steps.device.type == place
            outputs = replay(learner, piece)
            pieces.append((plain(piece), outputs["logits"].cpu(), values(learner, piece)[0].cpu(), b.episodes))
    (here, *numbers, episodes), (there, *others, found) = pieces
    assert [episode[::2] for episode in found] == [episode[::2] for episode in episodes]
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=1e-4, atol=1e-4, msg=key)
    torch.testing.assert_close(others, numbers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("environments", "learner", "algo"),
    [
        ("cpu", "cpu", "ppo"),
        *(
            pytest.param("cuda", learner, algo, marks=NEEDS_CUDA)
            for learner in ("cuda", "cpu")
            for algo in ("ppo", "a2c", "dqn")
        ),
    ],
)
def test_training_goes_on_wherever_environments_and_learner_are(
    environments: str, learner: str, algo: str, tmp_path: Path
) -> None:
    devices = [f"env.device={environments}", f"device={learner}", "batcher=local"]
    settings = ["run_dir=run", "total_steps=2048", "evaluation.every=1024", "evaluation.episodes=2"]
    done = rlx(tmp_path, "train", f"algo={algo}", "env=CartPoleTorch", *devices, *settings)
    assert done.returncode == 0, done.stderr
    played = rlx(tmp_path, "eval", "run", "--episodes", "4")  # in processes, whose memory is the host's
    assert played.returncode == 0, played.stderr
    again = rlx(tmp_path, "train", "resume=run", "total_steps=4096")
    assert again.returncode == 0, again.stderr
    assert "begin new episodes" not in again.stderr

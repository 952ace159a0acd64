"""Exported policies, played without rlx: what they do in the real environment is what `rlx eval` says of them."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rlx.data import DictTensor
from rlx.errors import AgentError, CheckpointError, ConfigError, MissingPackageError, UserError
from rlx.run.evaluate import Evaluator
from rlx.run.policy import load_policy
from rlx.seeding import env_seed
from rlx.tools.export import Exported, export_policy

from ..cli.test_commands import call
from ..program import train_here
from .trained import Trained, trained_once

SEED = 3
OWN = "tests.tools.exporting"
KINDS = {
    "ppo": ["env=CartPole"],
    "ppo_normalized": [
        *("env=Pendulum", "agent.normalize_observation=true", "env.max_episode_steps=40", "total_steps=256")
    ],
    "sac": ["env=Pendulum", "algo=sac", "env.max_episode_steps=40", "total_steps=300"],
    "dqn": ["env=CartPole", "algo=dqn", "total_steps=300"],
    "gru": ["env=CartPole", "agent=gru", "agent.prev_action=true", "agent.prev_reward=true", "env.reward_scale=0.5"],
    "options": ["env=CartPole", "agent=options"],
    "transformer": ["env=CartPole", "agent=transformer", "agent.window=4"],
    "mask": ["env=gym", "env.id=Taxi-v4", "env.action_mask=true", "env.max_episode_steps=30"],
    "odd": ["env=gym", f"env.id={OWN}:Odd-v0", "agent=gru", "agent.prev_action=true"],
    "native": ["env=CartPoleVec"],
    "population": ["env=CartPole", "agent=population"],
    "skills": ["env=Pendulum", "algo=diayn", "env.max_episode_steps=40", "total_steps=300"],
    "hdqn": ["env=Errand", "algo=hdqn", "total_steps=300"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a short run of a kind, trained when it is first asked for."""
    return trained_once(KINDS, tmp_path_factory)


def loaded(path: Path, told: dict[str, str] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of TorchScript
        return torch.jit.load(path, _extra_files=told)


def opened(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what runs a file, with nothing of rlx's."""
    if path.suffix == ".pt":
        module = loaded(path)
        return lambda inputs: {
            key: value.numpy()
            for key, value in module({name: torch.from_numpy(value) for name, value in inputs.items()}).items()
        }
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def arrays(observation: Any, space: gymnasium.Space[Any], key: str = "obs") -> dict[str, Any]:
    if isinstance(space, gymnasium.spaces.Dict):
        parts = [arrays(observation[name], part, f"{key}/{name}") for name, part in space.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {key: np.asarray(observation, space.dtype)[None]}


def played(written: Exported, env: gymnasium.Env[Any, Any], episodes: int) -> list[float]:
    """Return the returns of a file that plays alone, on the seeds of an evaluation."""
    policy, inputs, found = opened(written.path), written.metadata["inputs"], []
    shapes = {key: tuple(json.loads(what.partition(" ")[2].replace("B", "1"))) for key, what in inputs.items()}
    kinds = {key: what.partition(" ")[0] for key, what in inputs.items()}
    for episode in range(episodes):
        observation, info = env.reset(seed=env_seed(SEED, episode, evaluation=True))
        state = {key: np.zeros(shapes[key], kinds[key]) for key in inputs if key.startswith("state/")}
        over, reward, total, first = False, 7.0, 0.0, True
        while not over:
            given = arrays(observation, env.observation_space) | state
            if "obs/action_mask" in inputs:
                given = {"obs/observation": given["obs"], "obs/action_mask": info["action_mask"][None]}
            given["is_first"], given["prev_reward"] = np.array([first]), np.array([reward], np.float32)
            outputs = policy({key: given[key] for key in inputs})
            state = {key: outputs[f"new_{key}"] for key in state}
            action: Any = outputs["action"][0] if "action" in outputs else {}
            for key, value in outputs.items():
                if key.startswith("action/"):
                    action[key.removeprefix("action/")] = value[0]
            observation, reward, terminated, truncated, info = env.step(action)
            total, over, first = total + float(reward), terminated or truncated, False
        found.append(total)
    return found


CASES = [
    *[("onnx", kind) for kind in KINDS if kind not in ("native", "population", "skills", "hdqn")],
    *[("torchscript", kind) for kind in ("ppo_normalized", "transformer", "odd")],
]


@pytest.mark.parametrize(("format", "kind"), CASES)
def test_file_alone_returns_what_rlx_does(format: Any, kind: str, trained: Trained, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    run = trained(kind)
    written = export_policy(run, tmp_path / f"policy.{'onnx' if format == 'onnx' else 'pt'}", format=format, trust=True)
    assert written.num_checked >= 1000
    assert written.difference < 1e-4
    policy = load_policy(run, trust=True)
    with Evaluator(policy.make_agent, policy.make_env, episodes=2, seed=SEED, workers="local") as evaluator:
        wanted = evaluator.play(policy.agent).returns
    settings = written.metadata["env"]
    env = gymnasium.make(settings["id"], max_episode_steps=settings["max_episode_steps"], disable_env_checker=True)
    assert played(written, env, 2) == pytest.approx(wanted, rel=1e-3)


def test_batches_of_any_size_and_metadata_are_in_the_file(trained: Trained, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = export_policy(trained("odd"), tmp_path / "policy.onnx", trust=True).path
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told["env_id"] == f"{OWN}:Odd-v0"
    assert told["env_steps"] == "64"
    assert json.loads(told["observations"]) == [
        f"obs/{key}" for key in ("cards", "level", "picture", "place", "switches")
    ]
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    assert {value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
    assert {entry.name: entry.type for entry in session.get_inputs()}["obs/place"] == "tensor(double)"
    assert b"critic" not in path.read_bytes()
    assert __file__.encode() not in path.read_bytes()
    assert b"agent/gru" not in path.read_bytes()


def test_example_of_the_page_plays_an_episode_without_rlx(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    export_policy(trained("ppo_normalized"), "policy.onnx")
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
    code = page.partition("## `rlx export`")[2].partition("```python\n")[2].partition("```")[0]
    assert "rlx" not in code
    names: dict[str, Any] = {}
    exec(code, names)
    assert -2000 < names["total"] < 0


def test_torchscript_file_tells_the_same_of_itself(trained: Trained, tmp_path: Path) -> None:
    written = export_policy(trained("ppo"), tmp_path / "policy.pt", format="torchscript")
    told = {"rlx.json": ""}
    loaded(written.path, told)
    assert json.loads(told["rlx.json"]) == written.metadata
    assert written.metadata["env_steps"] == 64
    assert written.metadata["inputs"] == {"obs": "float32 [B, 4]"}
    assert written.metadata["outputs"] == {"action": "int64 [B]"}


def test_native_vector_environment_shows_what_its_file_takes(trained: Trained, tmp_path: Path) -> None:
    written = export_policy(trained("native"), tmp_path / "policy.pt", format="torchscript")
    assert opened(written.path)({"obs": np.zeros((5, 4), np.float32)})["action"].shape == (5,)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_policy_of_two_levels_is_a_file_for_any_number_of_rows(format: Any, trained: Trained, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    written = export_policy(trained("hdqn"), tmp_path / "policy", format=format)
    assert written.num_checked >= 1000
    assert written.metadata["inputs"]["state/option"] == "int64 [B]"


def test_state_begins_anew_with_each_episode(trained: Trained, tmp_path: Path) -> None:
    written = export_policy(trained("gru"), tmp_path / "policy.pt", format="torchscript")
    policy = opened(written.path)

    def given(value: float, first: list[bool]) -> dict[str, Any]:
        return {
            "obs": np.ones((2, 4), np.float32),
            "is_first": np.array(first),
            "prev_reward": np.full(2, value, np.float32),
            "state/hidden": np.full((2, 64), value, np.float32),
            "state/prev_action": np.full(2, int(value)),
        }

    agent = load_policy(
        trained("gru")
    ).agent  # as rlx would step it: rewards are halved, and nothing was before the first
    before = {"prev_action": torch.tensor([0, 1]), "prev_reward": torch.tensor([0.0, 0.5])}
    hidden = DictTensor({"hidden": torch.tensor([0.0, 1.0]).unsqueeze(1).expand(2, 64)})
    _, state = agent.forward(DictTensor({"obs": torch.ones(2, 4), **before}), hidden, DictTensor.empty(2))

    begun = policy(given(1.0, [True, False]))["new_state/hidden"]
    assert begun == pytest.approx(state["hidden"].detach().numpy(), abs=1e-5)
    other = policy(given(0.0, [True, False]))["new_state/hidden"]
    assert (begun[0] == other[0]).all()
    assert (begun[1] != other[1]).any()


def test_an_episode_begins_alike_whatever_stands_in_the_cache_of_the_one_before(
    trained: Trained, tmp_path: Path
) -> None:
    written = export_policy(trained("transformer"), tmp_path / "policy.pt", format="torchscript")
    policy, inputs = opened(written.path), written.metadata["inputs"]

    def new_state(value: float) -> dict[str, Any]:
        given: dict[str, Any] = {"obs": np.ones((2, 4), np.float32), "is_first": np.ones(2, bool)}
        for key in inputs:
            if key.startswith("state/"):
                kind, _, shape = inputs[key].partition(" ")
                given[key] = np.full(json.loads(shape.replace("B", "2")), value if kind == "float32" else 3, kind)
        return {key: array for key, array in policy(given).items() if key.startswith("new_state/")}

    begun, other = new_state(0.0), new_state(np.nan)
    assert any(key.startswith("new_state/cache") for key in begun)
    for key, value in begun.items():
        assert (other[key] == value).all(), key


def test_one_of_several_policies_is_exported_by_name(trained: Trained, tmp_path: Path) -> None:
    for kind, key in (("population", "policy"), ("skills", "skill")):
        files = [
            export_policy(
                trained(kind), tmp_path / f"{kind}{number}", format="torchscript", agent_info=[f"{key}={number}"]
            )
            for number in (0, 1)
        ]
        assert files[1].metadata["agent_info"] == ({"skill": 1} if kind == "skills" else {"policy": 1})
    seen = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    first, second = (loaded(tmp_path / f"skills{number}") for number in (0, 1))
    assert (first({"obs": torch.from_numpy(seen)})["action"] != second({"obs": torch.from_numpy(seen)})["action"]).any()
    with pytest.raises(
        ConfigError, match=r"no value given, expected which of its members .* 0 \(first\), 1 \(second\)"
    ):
        export_policy(trained("population"), tmp_path / "x", format="torchscript")
    with pytest.raises(ConfigError, match=r"does not look at 'skil'.*Did you mean 'skill'"):
        export_policy(trained("skills"), tmp_path / "x", format="torchscript", agent_info=["skil=1"])
    with pytest.raises(ConfigError, match="got 'skill', expected KEY=VALUE"):
        export_policy(trained("skills"), tmp_path / "x", format="torchscript", agent_info=["skill"])


@pytest.mark.parametrize("agent", ["Tasked", "two_tasked"])
def test_what_is_drawn_for_each_episode_has_to_be_settled(agent: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = [f"+agent._target_={OWN}.{agent}", "+batcher.agent_info.task={integer: [0, 1]}", "batcher.envs_per_worker=2"]
    assert train_here("~agent", *told, f"run_dir={run}") == 0
    chosen = ["policy=1"] if agent == "two_tasked" else []
    with pytest.raises(ConfigError, match=r"the run draws task for each episode, .* expected --agent-info task=VALUE"):
        export_policy(run, tmp_path / "x", format="torchscript", agent_info=chosen, trust=True)
    export_policy(run, tmp_path / "x", format="torchscript", agent_info=[*chosen, "task=1"], trust=True)


def test_what_is_drawn_and_the_agent_does_not_look_at_needs_no_value(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_here("+batcher.agent_info.goal={uniform: [0, 1]}", f"run_dir={run}") == 0
    assert export_policy(run, tmp_path / "x", format="torchscript").metadata["agent_info"] == {}


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ("Checked", None),
        ("Fickle", "differs from rlx's on"),
        ("Moody", "cannot be exported"),
        ("Counted", "cannot be exported"),
    ],
)
def test_agent_that_a_file_cannot_hold_is_refused_by_name(
    agent: str, reason: str | None, format: Any, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    run, file = tmp_path / "run", tmp_path / "policy"
    assert train_here(f"agent._target_={OWN}.{agent}", f"run_dir={run}") == 0
    file.write_text("before")
    if reason is None:
        export_policy(run, file, format=format, trust=True)
        return
    with pytest.raises(AgentError, match=f"{reason}.*") as caught:
        export_policy(run, file, format=format, trust=True)
    assert f"{OWN}.{agent}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("run", "policy")] == []


def test_code_that_a_checkpoint_names_is_not_run_untrusted(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{OWN}.*--trust"):
        export_policy(trained("odd"), tmp_path / "policy.pt", format="torchscript")


def test_missing_package_is_named_with_its_extra(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"needs onnx, which is not installed: pip install 'rlx\[export\]'"):
        export_policy(trained("ppo"), tmp_path / "policy.onnx")


def test_place_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "policy.pt", "there is no folder"),
        (tmp_path / "file" / "policy.pt", "there is no folder"),
    ):
        with pytest.raises(UserError, match=reason):
            export_policy("nowhere", output, format="torchscript")


def test_command_ends_with_one_line_and_2_where_it_cannot_export(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained("ppo")
    broken = shutil.copytree(run, tmp_path / "broken")
    tensors = next((broken / "checkpoints").iterdir()) / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-5])
    for arguments, fragment in (
        ([str(run), "--format", "tflite"], "'onnx', 'torchscript'"),
        ([str(broken), "--format", "torchscript"], "tensors.safetensors"),
        ([str(tmp_path / "nothing"), "--format", "torchscript"], "does not exist"),
        ([str(run), "--format", "torchscript", "--output", str(tmp_path)], "it is a folder"),
    ):
        assert call("export", *arguments) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert fragment in err
        assert "Traceback" not in err
    assert call("export", str(run), "--format", "torchscript") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith("policy.pt\n  inputs: obs float32 [B, 4]\n  outputs: action int64 [B]\n")
    assert "1,000 observations of CartPole-v1 (largest difference 0)" in out
    assert call("export", str(run), "--format", "torchscript", "--json", "-o", "other.pt") == 0
    assert json.loads(capfd.readouterr().out)["num_checked"] == 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "other.pt", "policy.pt"]

"""`make` and the shipped YAML: ids, keywords, wrappers, limits, and what each mistake is told."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml

import rlx.env
from rlx.env import GymVecEnv, NativeGymVecEnv, VecEnv, list_ids, make, user_modules
from rlx.errors import ConfigError, EnvironmentFault
from rlx.validate import validate

CONF = Path(__file__).parents[2] / "conf" / "env"
SHIPPED = sorted(path.stem for path in CONF.glob("*.yaml"))
MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Walker2d")

MODULE = """
import gymnasium
import numpy as np

class Corridor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length=3, *, render_mode=None):
        if length < 1:
            raise ValueError(f"length is {length}")
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.place += 1
        return np.full(1, self.place, np.float32), 1.0, self.place >= self.length, False, {}

class Halved(gymnasium.ObservationWrapper):
    def __init__(self, env, by=2.0):
        super().__init__(env)
        self.by = np.float32(by)

    def observation(self, observation):
        return observation / self.by

gymnasium.register("Corridor-v0", Corridor)
gymnasium.register("Corridor-v2", Corridor)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own that registers environments when it is imported."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "corridor.py").write_text(MODULE)
    (package / "broken.py").write_text("raise RuntimeError('half a module')")
    (package / "needy.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(gymnasium.registry)
    yield "my_package.corridor"
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def _stepped(env: VecEnv) -> Any:
    out = env.allocate()
    env.reset(out, seeds=list(range(env.num_envs)))
    env.step({key: spec.zeros(env.num_envs) for key, spec in env.specs.action.items()}, out)
    return out


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_yaml_fits_its_target_and_runs(name: str) -> None:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    if name == "legacy_gym":
        pytest.importorskip("gym", reason="gym is not installed: nox -s legacy_gym")
    if name == "envpool":
        pytest.importorskip("envpool", reason="envpool is not installed: nox -s envpool")
    for key, value in {"id": "CartPole-v1", "game": "Pong"}.items():
        if name in ("gym", "legacy_gym", "atari", "envpool") and key in config:
            assert config[key] == "???"
            config[key] = value
    package, _, function = config.pop("_target_").rpartition(".")
    assert package == "rlx.env"
    target = getattr(rlx.env, function)
    with target(num_envs=2, **validate(target, config, "env", given=("num_envs",))) as env:
        out = _stepped(env)
        assert all(tensor.isfinite().all() for tensor in out.obs.values())
        assert out.reward.isfinite().all()


def test_the_issues_environments_are_shipped() -> None:
    wanted = {"CartPole", "Acrobot", "MountainCar", "MountainCarContinuous", "Pendulum", "LunarLander", "gym"}
    wanted |= {"Pong", "Breakout", "atari", "envpool", "legacy_gym", *MUJOCO}
    assert wanted <= set(SHIPPED)


def test_vectorization_chooses_the_adapter() -> None:
    assert isinstance(make("CartPole-v1", 2), GymVecEnv)
    assert isinstance(make("CartPole-v1", 2, vectorization="native"), NativeGymVecEnv)


def test_keywords_reach_the_constructor() -> None:
    out = _stepped(make("CartPole-v1", 2, kwargs={"sutton_barto_reward": True}))
    assert out.reward.tolist() == [0.0, 0.0]
    out = _stepped(make("CartPole-v1", 2, kwargs={"sutton_barto_reward": True}, vectorization="native"))
    assert out.reward.tolist() == [0.0, 0.0]
    assert make("LunarLander-v3", 1, kwargs={"continuous": True}).specs.action["action"].kind == "continuous"


@pytest.mark.parametrize("vectorization", ["per_instance", "native"])
def test_max_episode_steps_truncates_and_does_not_terminate(vectorization: Any) -> None:
    env = make("CartPole-v1", 2, vectorization=vectorization, max_episode_steps=3)
    out = env.allocate()
    env.reset(out, seeds=[1, 2])
    flags = []
    for _ in range(3):
        env.step({"action": torch.zeros(2, dtype=torch.int64)}, out)
        flags.append((out.truncated.tolist(), out.terminated.any().item()))
    assert flags == [([False] * 2, False), ([False] * 2, False), ([True] * 2, False)]


def test_a_registered_limit_stays_and_the_checking_wrappers_go() -> None:
    env = make("CartPole-v1", 1)
    assert isinstance(env, GymVecEnv)
    layers = []
    layer = env.envs[0]
    while isinstance(layer, gymnasium.Wrapper):
        layers.append(type(layer))
        layer = layer.env
    assert layers == [gymnasium.wrappers.TimeLimit]
    assert gymnasium.spec("CartPole-v1").order_enforce, "Gymnasium's own registry was changed"


def test_wrappers_are_applied_from_the_inside_out(module: str) -> None:
    wrappers = [{f"{module}.Halved": {"by": 4.0}}, "FlattenObservation", {"TimeAwareObservation": None}]
    env = make(f"{module}:Corridor-v0", 1, wrappers=wrappers, max_episode_steps=9)
    out = _stepped(env)
    assert out.obs["obs"].tolist() == [[0.25, 1.0]], "halved first; the time that is added after it is whole"
    assert env.raw_reward


def test_an_environment_of_ones_own_by_module_and_id(module: str) -> None:
    out = _stepped(make(f"{module}:Corridor-v0", 2, kwargs={"length": 1}))
    assert out.terminated.tolist() == [True, True]
    assert "Corridor-v0" in list_ids()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "CartPol-v1"}, "env.id: there is no environment 'CartPol-v1'. Did you mean 'CartPole-v1'?"),
        ({"id": "cartpole-v1"}, "Did you mean 'CartPole-v1'?"),
        ({"id": "CartPole"}, "there is no environment 'CartPole'. Did you mean 'CartPole-v1'?"),
        ({"id": "LunarLander-v2"}, "Did you mean 'LunarLander-v3'?"),
        ({"id": "ALE/Pnog-v5"}, "env=atari env.game=Pnog, stepped together, or env.id=ale_py:ALE/Pnog-v5"),
        ({"id": "PnogNoFrameskip-v4"}, "env=atari env.game=Pnog, stepped together, or env.id=ale_py:ALE/Pnog-v5"),
        ({"id": "xyzzy"}, "there is no environment 'xyzzy'. `rlx list envs` shows"),
        ({"id": "no_such.module:Foo-v0"}, "asks for the module 'no_such.module', and there is no module 'no_such'"),
        ({"id": "json:Foo-v0"}, "'json:Foo-v0'. The module was imported, and registers no such id"),
        (
            {"id": "my_package.corridor:Coridor-v0"},
            "'my_package.corridor:Coridor-v0'. Did you mean 'my_package.corridor:Corridor-v0'?",
        ),
        ({"id": "my_package.corridor:Corridor"}, "Did you mean 'my_package.corridor:Corridor-v2'?"),
        ({"id": ":CartPole-v1"}, "env.id: got ':CartPole-v1', expected Name-v0 or package.module:Name-v0"),
        ({"id": ".corridor:Corridor-v0"}, "env.id: got '.corridor:Corridor-v0', expected Name-v0 or package.module"),
        ({"num_envs": 0}, "env.num_envs: got 0; expected an integer >= 1"),
        ({"max_episode_steps": 0}, "env.max_episode_steps: got 0; expected an integer >= 1, or null"),
        ({"reward_scale": 0.0}, "env.reward_scale: got 0.0; expected a finite number other than 0"),
        ({"vectorization": "nativ"}, "env.vectorization: got 'nativ'; expected one of per_instance, native. Did you m"),
        ({"id": "Pendulum-v1", "vectorization": "native"}, "has no native vector environment; expected per_instance."),
        ({"vectorization": "native", "wrappers": ["ClipReward"]}, "env.wrappers: got wrappers and env.vectorization="),
        (
            {"kwargs": {"sutton_reward": 1}},
            "env.kwargs.sutton_reward: there is no such key. Did you mean 'sutton_barto_reward'?",
        ),
        ({"kwargs": {"suton": 1}, "vectorization": "native"}, "env.kwargs.suton: there is no such key."),
        (
            {"wrappers": ["ClipRewards"]},
            "env.wrappers[0]: 'gymnasium.wrappers' has no wrapper 'ClipRewards'. Did you m",
        ),
        ({"wrappers": ["TimeLimit"]}, "env.wrappers[0].TimeLimit.max_episode_steps: no value given; it takes max_e"),
        (
            {"wrappers": [{"rlx.env.SelectObservation": {"keep": [9]}}]},
            "SelectObservation.keep: got [9], expected places from 0 to 3",
        ),
        ({"wrappers": ["FrameStack"]}, "'gymnasium.wrappers' has no wrapper 'FrameStack'. Did you mean 'FrameStackObs"),
        ({"wrappers": ["os.path"]}, "env.wrappers[0]: 'os' has no wrapper 'path'. Did you mean 'fspath'?"),
        ({"wrappers": ["no_such.Wrapper"]}, "env.wrappers[0]: 'no_such.Wrapper': No module named 'no_such'"),
        ({"wrappers": ["ClipReward", 3]}, "env.wrappers[1]: got 3; expected a name, or {name: {keyword: value, ...}}"),
        ({"wrappers": [{"ClipReward": 3}]}, "env.wrappers[0]: got {'ClipReward': 3}"),
        ({"wrappers": [{"a": {}, "b": {}}]}, "env.wrappers[0]: got {'a': {}, 'b': {}}"),
        (
            {"wrappers": [{"ClipReward": {"max_rewrd": 1}}]},
            "env.wrappers[0].ClipReward.max_rewrd: there is no such key. Did you",
        ),
    ],
)
def test_each_mistake_gets_one_message_with_the_nearest_right_name(
    changes: dict[str, Any], said: str, module: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**({"id": "CartPole-v1", "num_envs": 2} | changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_constructor_that_raises_is_a_fault_with_its_cause(module: str) -> None:
    with pytest.raises(EnvironmentFault, match="its constructor raised ValueError: length is 0") as caught:
        make(f"{module}:Corridor-v0", 2, kwargs={"length": 0})
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_list_of_yaml_is_a_tuple_where_the_wrapper_declares_one() -> None:
    with make("CartPole-v1", 1, wrappers=[{"ReshapeObservation": {"shape": [2, 2]}}]) as env:
        assert env.specs.observation["obs"].shape == (2, 2)
    with make("CartPole-v1", 1, wrappers=[{"rlx.env.SelectObservation": {"keep": [0, 2]}}]) as env:
        assert env.specs.observation["obs"].shape == (2,)


def needs_a_package(env: gymnasium.Env) -> gymnasium.Env:
    """A wrapper such as Gymnasium's AtariPreprocessing where OpenCV is not installed."""
    raise gymnasium.error.DependencyNotInstalled("opencv-python package not installed")


def test_a_wrapper_whose_package_is_missing_is_a_mistake_in_the_configuration() -> None:
    name = f"{__name__}.needs_a_package"
    with pytest.raises(ConfigError, match=f"env.wrappers: '{name}' needs a package .*: opencv-python package not inst"):
        make("CartPole-v1", 1, wrappers=[name])


def test_a_wrapper_that_raises_is_a_fault_that_names_the_wrapper(module: str) -> None:
    with pytest.raises(
        EnvironmentFault, match="the wrapper 'TimeAwareObservation' raised ValueError: The environment must"
    ):
        make(f"{module}:Corridor-v0", 2, wrappers=["TimeAwareObservation"])


def test_a_native_constructor_that_raises_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(num_envs: int, **kwargs: Any) -> Any:
        raise ValueError("no room")

    monkeypatch.setattr(gymnasium.spec("CartPole-v1"), "vector_entry_point", broken)
    with pytest.raises(EnvironmentFault, match="environment 'CartPole-v1': its constructor raised ValueError: no room"):
        make("CartPole-v1", 2, vectorization="native")


@pytest.mark.parametrize(
    ("name", "said"),
    [("broken", "RuntimeError: half a module"), ("needy", "ModuleNotFoundError: No module named 'not_i")],
)
def test_a_module_that_cannot_be_imported_is_a_fault(name: str, said: str, module: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"importing 'my_package.{name}' raised {said}"):
        make(f"my_package.{name}:Foo-v0", 2)


@pytest.mark.parametrize(
    ("id", "family", "package"),
    [("LunarLander-v3", "box2d", "Box2D"), *((f"{name}-v5", "mujoco", "mujoco") for name in MUJOCO)],
)
def test_a_missing_engine_says_what_to_install(
    id: str, family: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{family}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"env.id: '{id}' needs .*; install it with: pip install 'rlx\[{family}\]'"):
        make(id, 2)


def test_user_modules_are_those_that_are_not_gymnasiums_and_not_ours() -> None:
    assert (
        user_modules("CartPole-v1", ["ClipReward", "gymnasium.wrappers.ClipReward", "rlx.env.SelectObservation"]) == []
    )
    assert user_modules("my.envs:Foo-v0", ["my.wrappers.Bar", "ClipReward"]) == ["my.envs", "my.wrappers"]


def test_list_ids_holds_what_gymnasium_registers() -> None:
    ids = list_ids()
    assert ids == sorted(ids)
    assert {"CartPole-v1", "Pendulum-v1", "LunarLander-v3"} <= set(ids)


def test_the_contract_is_imported_without_gymnasium() -> None:
    code = "import sys, rlx.env.vec_env; sys.exit('gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONF.parents[1], check=False).returncode == 0


def test_public_names() -> None:
    assert rlx.env.__all__ == sorted(rlx.env.__all__)
    for name in rlx.env.__all__:
        assert getattr(rlx.env, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'VecEnvv'"):
        _ = rlx.env.VecEnvv


def test_observations_of_wrappers_that_change_the_dtype_are_followed() -> None:
    env = make("CartPole-v1", 1, wrappers=[{"DtypeObservation": {"dtype": np.float64}}])
    assert env.specs.observation["obs"].dtype == torch.float32
    assert _stepped(env).obs["obs"].dtype == torch.float32

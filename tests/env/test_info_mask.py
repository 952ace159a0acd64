"""A mask in the info reaches the observation, whatever the environment shows besides, final observations included."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlx.env import Autoreset, GymVecEnv, NativeGymVecEnv, VecEnv, make, make_mixed
from rlx.env.info_mask import InfoMask
from rlx.errors import ConfigError, EnvironmentFault
from tests.env.environments import Scripted

NUM_ENVS = 3
PLAIN = spaces.Box(-1.0, 1.0, (2,))


class Tells(gymnasium.Env):
    """Shows `[episode, step]` and tells the mask that spells the number of the step; two to five steps an episode.

    With `told_at_end=False`, the info of a step that terminates an episode tells none.
    """

    observation_space = spaces.Box(0, np.inf, (2,))
    action_space = spaces.Discrete(4, start=1)

    def __init__(self, told_at_end: bool = True) -> None:
        self.episode, self.count, self.told_at_end = 0, 0, told_at_end

    def _answer(self) -> tuple[Any, dict]:
        mask = np.array([self.count >> bit & 1 for bit in range(3)] + [1], np.int8)
        return np.array([self.episode, self.count], np.float32), {"action_mask": mask, "other": 1}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        self.length = int(self.np_random.integers(2, 6))
        return self._answer()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.count += 1
        over, terminates = self.count == self.length, self.length % 2 == 0
        seen, info = self._answer()
        if over and terminates and not self.told_at_end:
            del info["action_mask"]
        return seen, 1.0, over and terminates, over and not terminates, info


gymnasium.register("Tells-v0", entry_point=Tells)


class Says(Scripted):
    """Tells what a function makes of the step's number, or nothing where that is None."""

    def __init__(self, mask: Callable[[int], Any], shown: spaces.Space = PLAIN, action: spaces.Space | None = None):
        super().__init__(shown, spaces.Discrete(3) if action is None else action, length=10**9)
        self.mask = mask

    def _told(self) -> dict[str, Any]:
        mask = self.mask(self.steps)
        return {} if mask is None else {"action_mask": mask}

    def reset(self, **keywords: Any) -> Any:
        return super().reset(**keywords)[0], self._told()

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], self._told()


def rows_of(make_env: Callable[[], gymnasium.Env], num_envs: int = 1) -> GymVecEnv:
    return GymVecEnv(lambda: InfoMask(make_env(), "Says-v0"), num_envs, name="Says-v0")


def spelled(observation: torch.Tensor) -> torch.Tensor:
    """Return the masks `[B, 4]` that belong to observations `[B, 2]` of `Tells`."""
    bits = (observation[:, 1:].long() >> torch.arange(3)) & 1
    return torch.cat([bits, torch.ones_like(bits[:, :1])], dim=1)


def native(mode: AutoresetMode, **keywords: Any) -> NativeGymVecEnv:
    vector = SyncVectorEnv([lambda: Tells(**keywords)] * NUM_ENVS, autoreset_mode=mode)
    return NativeGymVecEnv(vector, name="Tells-v0", action_mask=True)


def check_every_mask(env: VecEnv, *, told_at_end: bool = True) -> None:
    """Step, and compare each mask, final ones included, with the observation that it came with."""
    ends = {"terminated": 0, "truncated": 0}
    out = env.allocate()
    env.reset(out, seeds=list(range(NUM_ENVS)))
    assert torch.equal(out.obs["obs/action_mask"].long(), spelled(out.obs["obs/observation"]))
    for _ in range(60):
        env.step({"action": torch.full((NUM_ENVS,), 3)}, out)
        ended = out.terminated | out.truncated
        final = out.final_obs if env.autoreset is Autoreset.SAME_STEP else out.obs
        assert final is not None
        if ended.any():
            masks, expected = final["obs/action_mask"][ended].long(), spelled(final["obs/observation"][ended])
            if not told_at_end:
                expected[out.terminated[ended]] = 0
            assert torch.equal(masks, expected)
            assert final["obs/observation"][ended, 1].min() >= 2
        seen = slice(None) if env.autoreset is Autoreset.SAME_STEP else ~ended
        assert torch.equal(out.obs["obs/action_mask"][seen].long(), spelled(out.obs["obs/observation"][seen]))
        ends["terminated"] += int(out.terminated.sum())
        ends["truncated"] += int(out.truncated.sum())
        if env.autoreset is Autoreset.NONE and ended.any():
            env.reset(out, rows=ended.nonzero().flatten().tolist())
            assert torch.equal(out.obs["obs/action_mask"].long(), spelled(out.obs["obs/observation"]))
    assert min(ends.values()) > 5


@pytest.mark.parametrize("told_at_end", [True, False])
def test_masks_come_with_their_observations(told_at_end: bool) -> None:
    kwargs = {"told_at_end": told_at_end}
    with make("tests.env.test_info_mask:Tells-v0", NUM_ENVS, action_mask=True, kwargs=kwargs) as env:
        check_every_mask(env, told_at_end=told_at_end)


@pytest.mark.parametrize("told_at_end", [True, False])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_masks_of_native_environments_come_with_their_observations(mode: AutoresetMode, told_at_end: bool) -> None:
    with native(mode, told_at_end=told_at_end) as env:
        check_every_mask(env, told_at_end=told_at_end)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_what_is_not_told_is_not_read(mode: AutoresetMode) -> None:
    class LeavesRubbish(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *answer, info = super().step(actions)
            for part in (info, info.get("final_info", {})):
                if "action_mask" in part:
                    part["action_mask"][~part["_action_mask"]] = 77
            return *answer, info

    vector = LeavesRubbish([lambda: Tells(told_at_end=False)] * NUM_ENVS, autoreset_mode=mode)
    with NativeGymVecEnv(vector, name="Tells-v0", action_mask=True) as env:
        check_every_mask(env, told_at_end=False)


def test_final_observations_in_one_array_carry_their_masks_too() -> None:
    class OneArray(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *answer, info = super().step(actions)
            if "final_obs" in info:
                rows = [np.zeros(2, np.float32) if row is None else row for row in info["final_obs"]]
                info["final_obs"] = np.stack(rows)
            return *answer, info

    vector = OneArray([Tells] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    with NativeGymVecEnv(vector, name="Tells-v0", action_mask=True) as env:
        check_every_mask(env)


def test_without_the_option_the_observation_stays_as_it_is() -> None:
    with make("tests.env.test_info_mask:Tells-v0", 1) as env:
        assert list(env.specs.observation) == ["obs"]


@pytest.mark.parametrize(
    ("shown", "keys"),
    [
        (PLAIN, ["obs/action_mask", "obs/observation"]),
        (spaces.Discrete(5), ["obs/action_mask", "obs/observation"]),
        (spaces.Dict(a=PLAIN, b=spaces.Discrete(2)), ["obs/a", "obs/action_mask", "obs/b"]),
        (spaces.Tuple([PLAIN, PLAIN]), ["obs/action_mask", "obs/observation/0", "obs/observation/1"]),
    ],
)
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64])
def test_any_observation_takes_a_mask_of_any_integers(shown: spaces.Space, keys: list[str], dtype: Any) -> None:
    with rows_of(lambda: Says(lambda step: np.array([step % 2, 1, 0], dtype), shown), 2) as env:
        assert sorted(env.specs.observation) == keys
        spec = env.specs.observation["obs/action_mask"]
        assert (spec.shape, spec.dtype) == ((3,), torch.int8)
        out = env.allocate()
        env.reset(out, seeds=[0, 1])
        assert out.obs["obs/action_mask"].tolist() == [[0, 1, 0]] * 2
        for step in range(1, 20):
            env.step({"action": torch.ones(2, dtype=torch.int64)}, out)
            assert out.obs["obs/action_mask"].tolist() == [[step % 2, 1, 0]] * 2


@pytest.mark.parametrize("joined", [True, False])
def test_a_multi_discrete_action_takes_the_masks_of_its_choices_one_after_the_other(joined: bool) -> None:
    parts = (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))
    mask = np.concatenate(parts) if joined else parts  # a tuple is what MultiDiscrete.sample(mask) takes
    with rows_of(lambda: Says(lambda _: mask, action=spaces.MultiDiscrete([2, 3]))) as env:
        out = env.allocate()
        env.reset(out)
        assert out.obs["obs/action_mask"].tolist() == [[1, 0, 0, 1, 1]]


@pytest.mark.parametrize("vectorization", ["per_instance", "native"])
def test_an_environment_that_tells_no_mask_is_named(vectorization: Any) -> None:
    with make("CartPole-v1", 2, vectorization=vectorization, action_mask=True) as env:
        message = r"env.action_mask: got true, expected false: 'CartPole-v1' does not tell 'action_mask' .* nothing"
        with pytest.raises(ConfigError, match=message):
            env.reset(env.allocate())


@pytest.mark.parametrize(
    ("env_id", "vectorization", "message"),
    [
        ("Pendulum-v1", "per_instance", r"'Pendulum-v1': .* Discrete or MultiDiscrete .* takes action \(continuous\)"),
        ("phys2d/Pendulum-v0", "native", r"takes action \(continuous\)"),
    ],
)
def test_actions_that_cannot_be_masked_are_refused(env_id: str, vectorization: Any, message: str) -> None:
    if vectorization == "native":
        pytest.importorskip("jax", reason="Gymnasium's only native continuous environment needs jax")
    with pytest.raises(ConfigError, match=f"env.action_mask: {message}"):
        make(env_id, 2, vectorization=vectorization, action_mask=True)


def test_multi_binary_actions_and_a_second_mask_are_refused_and_the_instance_is_closed() -> None:
    closed = []

    class Noted(Says):
        def close(self) -> None:
            closed.append(self)

    gymnasium.register("Noted-v0", entry_point=lambda **keywords: Noted(lambda _: None, **keywords))
    try:
        with pytest.raises(ConfigError, match=r"'Noted-v0': .* takes action \(multi_binary\)"):
            make("Noted-v0", 1, action_mask=True, kwargs={"action": spaces.MultiBinary(3)})
        with pytest.raises(ConfigError, match="'Noted-v0' shows 'action_mask' in its observation already"):
            make("Noted-v0", 1, action_mask=True, kwargs={"shown": spaces.Dict(action_mask=spaces.MultiBinary(3))})
        two = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])
        with pytest.raises(ConfigError, match=r"takes 2: action/0 .* make them one MultiDiscrete"):
            make("Noted-v0", 1, action_mask=True, kwargs={"action": two})
    finally:
        del gymnasium.registry["Noted-v0"]
    assert len(closed) == 3


@pytest.mark.parametrize("call", [1, 30])  # answers of the first calls are checked in full
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(2, np.int8), r"'obs/action_mask' has shape \(2,\); expected \(3,\)"),
        (np.ones(3), "'obs/action_mask' has dtype float64; expected integers"),
        (None, "'obs/action_mask' is missing"),
    ],
)
def test_a_wrong_mask_is_a_fault_that_names_row_and_step(mask: Any, message: str, call: int) -> None:
    made = []

    def make_env() -> gymnasium.Env:
        row = len(made)
        made.append(Says(lambda step: mask if row == 1 and step == call else np.ones(3, np.int8)))
        return made[-1]

    with rows_of(make_env, 2) as env:
        out = env.allocate()
        env.reset(out, seeds=[7, 8])
        where = rf"environment 'Says-v0' \(row 1, seed 8, episode 1, step {call}\)"
        action = {"action": torch.zeros(2, dtype=torch.int64)}
        for _ in range(call - 1):
            env.step(action, out)
        with pytest.raises(EnvironmentFault, match=f"{where}: .*{message}"):
            env.step(action, out)


def test_a_wrong_mask_at_reset_is_a_fault_too() -> None:
    message = r"reset returned .* 'obs/action_mask' has shape \(4,\)"
    with rows_of(lambda: Says(lambda _: [1, 1, 1, 1])) as env, pytest.raises(EnvironmentFault, match=message):
        env.reset(env.allocate(), seeds=[0])


def test_a_native_environment_that_stops_telling_is_a_fault() -> None:
    class Quiet(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            return *super().step(actions)[:4], {}

    with NativeGymVecEnv(Quiet([Tells] * 2), name="Quiet-v0", action_mask=True) as env:
        out = env.allocate()
        env.reset(out)
        with pytest.raises(EnvironmentFault, match=r"'Quiet-v0' .*step's info tells no 'action_mask' for some rows"):
            env.step({"action": torch.zeros(2, dtype=torch.int64)}, out)


def test_members_of_a_mixed_batch_may_take_their_masks_from_the_info() -> None:
    member = {"id": "tests.env.test_info_mask:Tells-v0", "action_mask": True}
    with make_mixed(NUM_ENVS, members=[member, member]) as env:
        check_every_mask(env)

"""The native adapter: whatever the autoreset mode, the same transitions, with true final observations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from rlx.agent import ActorCritic
from rlx.batcher import Batcher, pieces
from rlx.data import DictTensor, EnvSpecs
from rlx.env import Autoreset, GymVecEnv, NativeGymVecEnv, VecEnv, make
from rlx.errors import ConfigError, EnvironmentFault, UnsupportedSpaceError
from tests.env.environments import CountsUp, Scripted

NUM_ENVS = 4
MODES = list(AutoresetMode)

# One transition: observation, action, reward, terminated, truncated, next observation.
Transition = tuple[tuple[float, ...], int, float, bool, bool, tuple[float, ...]]


def _sync(make_env: Callable[[], gymnasium.Env], mode: AutoresetMode, num_envs: int = NUM_ENVS) -> NativeGymVecEnv:
    return NativeGymVecEnv(SyncVectorEnv([make_env] * num_envs, autoreset_mode=mode), name="Sync-v0")


def _transitions(env: VecEnv, num_calls: int, seeds: list[int]) -> list[list[Transition]]:
    """Step as a rollout loop does; a row's action depends on how many transitions the row has made."""
    rows: list[list[Transition]] = [[] for _ in range(env.num_envs)]
    now, out = env.allocate(), env.allocate()
    env.reset(now, seeds=seeds)
    resetting = np.zeros(env.num_envs, bool)
    for _ in range(num_calls):
        actions = [(len(row) * 3 + index) % 5 for index, row in enumerate(rows)]
        env.step({"action": torch.tensor(actions)}, out)
        ended = (out.terminated | out.truncated).numpy()
        for row in range(env.num_envs):
            if not resetting[row]:
                final = env.autoreset is Autoreset.SAME_STEP and ended[row]
                answered = (out.final_obs or {})["obs"] if final else out.obs["obs"]
                seen, next_obs = tuple(now.obs["obs"][row].tolist()), tuple(answered[row].tolist())
                flags = bool(out.terminated[row]), bool(out.truncated[row])
                rows[row].append((seen, actions[row], float(out.reward[row]), *flags, next_obs))
        resetting = ended & ~resetting if env.autoreset is Autoreset.NEXT_STEP else np.zeros(env.num_envs, bool)
        if env.autoreset is Autoreset.NONE and ended.any():
            env.reset(out, rows=np.flatnonzero(ended).tolist())
        now, out = out, now
    return rows


@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_gives_the_transitions_of_the_per_instance_adapter(mode: AutoresetMode) -> None:
    seeds = [3, 4, 5, 6]
    expected = _transitions(GymVecEnv(CountsUp, NUM_ENVS), 60, seeds)
    with _sync(CountsUp, mode) as env:
        found = _transitions(env, 60, seeds)
    for row in range(NUM_ENVS):
        count = len(found[row])
        assert count >= 40
        assert found[row] == expected[row][:count]
        ends = [(terminated, truncated) for *_, terminated, truncated, _ in found[row]]
        assert (True, False) in ends
        assert (False, True) in ends
        for seen, _, _, _, _, next_obs in found[row]:
            assert next_obs == (seen[0], seen[1] + 1), "a transition went across an episode's end"


@pytest.mark.parametrize("max_episode_steps", [500, 9])
def test_every_step_equals_a_bare_native_cartpole(max_episode_steps: int) -> None:
    bare = CartPoleVectorEnv(NUM_ENVS, max_episode_steps=max_episode_steps)
    env = make("CartPole-v1", NUM_ENVS, vectorization="native", max_episode_steps=max_episode_steps)
    assert env.autoreset is Autoreset.NEXT_STEP
    out = env.allocate()
    env.reset(out, seeds=[7, 8, 9, 10])
    np.testing.assert_array_equal(out.obs["obs"], bare.reset(seed=7)[0])
    generator = np.random.default_rng(0)
    ended = 0
    for _ in range(200):
        action = generator.integers(2, size=NUM_ENVS)
        env.step({"action": torch.as_tensor(action)}, out)
        obs, reward, terminated, truncated, _ = bare.step(action)
        np.testing.assert_array_equal(out.obs["obs"], obs)
        np.testing.assert_array_equal(out.reward, reward)
        np.testing.assert_array_equal(out.terminated, terminated)
        np.testing.assert_array_equal(out.truncated, truncated)
        ended += int((terminated | truncated).sum())
    assert ended > 10


def test_native_cartpole_ends_episodes_as_a_single_cartpole_does() -> None:
    """Its final observation is where the physics leads, and the first one after it is a fresh episode's."""
    env = make("CartPole-v1", 2, vectorization="native")
    single = gymnasium.make("CartPole-v1").unwrapped
    single.reset()
    now, out = env.allocate(), env.allocate()
    env.reset(now, seeds=[0, 1])
    for _ in range(100):
        env.step({"action": torch.ones(2, dtype=torch.int64)}, out)
        if out.terminated[0]:
            single.state = now.obs["obs"][0].numpy().astype(np.float64)
            final, _, terminated, _, _ = single.step(1)
            np.testing.assert_allclose(out.obs["obs"][0], final, rtol=1e-4)
            assert terminated
            env.step({"action": torch.ones(2, dtype=torch.int64)}, out)
            assert out.obs["obs"][0].abs().max() <= 0.05
            return
        now, out = out, now
    pytest.fail("no episode ended")


_NESTED = spaces.Dict({"arm": spaces.Box(-1.0, 1.0, (2,)), "pair": spaces.Tuple((spaces.Discrete(3, start=-1),) * 2)})


@pytest.mark.parametrize("mode", MODES)
def test_nested_spaces_in_and_out(mode: AutoresetMode) -> None:
    env = _sync(lambda: Scripted(_NESTED, _NESTED, length=3), mode, 2)
    out = env.allocate()
    env.reset(out, seeds=[1, 2])
    assert set(out.obs) == {"obs/arm", "obs/pair/0", "obs/pair/1"}
    action = {"action/arm": torch.full((2, 2), 0.5), "action/pair/0": torch.tensor([0, 2])}
    action["action/pair/1"] = torch.tensor([1, 1])
    for step in range(3):
        env.step(action, out)
        for row, bare in enumerate(env.env.envs):
            given = bare.unwrapped.actions[-1]
            assert given["arm"].tolist() == [0.5, 0.5]
            assert [int(part) for part in given["pair"]] == [[-1, 0], [1, 0]][row]
            shown = bare.unwrapped.shown[-1]
            assert out.obs["obs/arm"][row].tolist() == shown["arm"].tolist()
            assert int(out.obs["obs/pair/0"][row]) == shown["pair"][0] + 1
            if step == 2 and mode is AutoresetMode.SAME_STEP:
                final = bare.unwrapped.shown[-2]
                assert out.final_obs is not None
                assert out.final_obs["obs/arm"][row].tolist() == final["arm"].tolist()
                assert int(out.final_obs["obs/pair/1"][row]) == final["pair"][1] + 1
    assert out.terminated.all()


def _make_agent(specs: EnvSpecs) -> ActorCritic:
    return ActorCritic(specs, hidden_sizes=[4], activation="tanh", log_std_init=0.0)


def test_a_part_that_holds_nothing_goes_through_pieces_whose_gaps_are_closed() -> None:
    """Such as the obstacles of a level without any: a Box of shape (0,)."""
    shown = spaces.Dict({"obstacles": spaces.Box(-1.0, 1.0, (0,)), "place": spaces.Box(-1.0, 1.0, (2,))})
    make_env = partial(_sync, partial(Scripted, shown, length=3), AutoresetMode.NEXT_STEP)
    with Batcher(
        _make_agent, make_env, num_workers=1, envs_per_worker=2, num_steps=20, seed=0, workers="local"
    ) as batcher:
        batcher.publish(_make_agent(batcher.specs))
        steps = batcher.collect().steps
        assert steps.lengths.tolist() == [15, 15]
        assert steps["env/obs/obstacles"].shape == (2, 20, 0)


def test_steps_of_any_size_are_moved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones all at once, large ones one by one."""

    def collect() -> list[DictTensor]:
        with Batcher(
            _make_agent,
            lambda num_envs: _sync(CountsUp, AutoresetMode.NEXT_STEP, num_envs),
            num_workers=1,
            envs_per_worker=3,
            num_steps=8,
            seed=0,
            workers="local",
        ) as batcher:
            batcher.publish(_make_agent(batcher.specs))
            return [batcher.collect().clone().steps.flatten() for _ in range(10)]

    torch.manual_seed(0)
    expected = collect()
    monkeypatch.setattr(pieces, "_LARGE", 0)
    torch.manual_seed(0)
    for piece, others in zip(collect(), expected, strict=True):
        assert piece.keys() == others.keys()
        for key in piece:
            assert torch.equal(piece[key], others[key]), key


class _Native(VectorEnv):
    """A native environment of two rows whose answers a test sets."""

    def __init__(self, mode: Any = AutoresetMode.NEXT_STEP, **answers: Any) -> None:
        self.num_envs = 2
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.single_observation_space = answers.pop("space", spaces.Box(-1.0, 1.0, (3,)))
        self.single_action_space = spaces.Discrete(2)
        obs = np.zeros((2, 3), np.float32)
        flags = np.zeros(2, bool)
        self.answers = {
            "obs": obs,
            "reward": np.zeros(2),
            "terminated": flags,
            "truncated": flags,
            "info": {},
        } | answers
        self.closed_times = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seed, self.options = seed, options
        return self.answers.get("reset", (np.zeros((2, 3), np.float32), {}))

    def step(self, actions: Any) -> Any:
        if "raise" in self.answers:
            raise self.answers["raise"]
        return tuple(self.answers[name] for name in ("obs", "reward", "terminated", "truncated", "info"))

    def close_extras(self, **kwargs: Any) -> None:
        self.closed_times += 1


ACTION = {"action": torch.zeros(2, dtype=torch.int64)}


def test_final_observations_may_come_batched() -> None:
    final = np.array([[0.1, 0.2, 0.3], [9.0, 9.0, 9.0]], np.float32)
    env = NativeGymVecEnv(
        _Native(AutoresetMode.SAME_STEP, terminated=np.array([True, False]), info={"final_obs": final})
    )
    out = env.allocate()
    env.step(ACTION, out)
    assert out.final_obs is not None
    assert out.final_obs["obs"][0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert out.final_obs["obs"][1].tolist() == [0.0, 0.0, 0.0], "a row that did not end has no final observation"


@pytest.mark.parametrize("mode", [None, "Sometimes", 7])
def test_an_unknown_autoreset_mode_is_refused(mode: Any) -> None:
    with pytest.raises(ConfigError, match=r"autoreset mode.* is .*expected one of NEXT_STEP, SAME_STEP, DISABLED"):
        NativeGymVecEnv(_Native(mode), name="Odd-v0")


def test_an_autoreset_mode_may_be_named_by_its_text() -> None:
    assert NativeGymVecEnv(_Native("SameStep")).autoreset is Autoreset.SAME_STEP


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"obs": np.zeros((2, 4), np.float32)}, r"'obs' has shape \(2, 4\); expected \(2, 3\)"),
        ({"obs": np.zeros((3,), np.float32)}, r"'obs' has shape \(3,\); expected \(2, 3\)"),
        ({"obs": np.zeros((2, 3))}, "'obs' has dtype float64; expected float32"),
        ({"reward": np.zeros((2, 1))}, r"rewards of shape \(2, 1\)"),
        ({"reward": 1.0}, r"rewards of shape \(\)"),
        ({"terminated": np.zeros(2)}, "terminated of shape .* dtype float64; expected booleans"),
        ({"truncated": np.zeros(1, bool)}, r"truncated of shape \(1,\)"),
        ({"raise": ValueError("boom")}, "step raised ValueError: boom"),
    ],
)
def test_answers_that_break_the_contract_are_faults(answers: dict[str, Any], said: str) -> None:
    env = NativeGymVecEnv(_Native(**answers), name="Odd-v0")
    out = env.allocate()
    env.reset(out, seeds=[5, 6])
    with pytest.raises(EnvironmentFault, match=rf"environment 'Odd-v0' \(seed 5, step \d\): .*{said}"):
        env.step(ACTION, out)


def test_a_lost_final_observation_is_a_fault() -> None:
    env = NativeGymVecEnv(_Native(AutoresetMode.SAME_STEP, truncated=np.array([False, True])))
    with pytest.raises(EnvironmentFault, match="info holds no 'final_obs'"):
        env.step(ACTION, env.allocate())


def test_a_final_observation_that_breaks_its_space_is_a_fault() -> None:
    final = np.array([None, np.zeros(4, np.float32)], dtype=object)
    bare = _Native(AutoresetMode.SAME_STEP, truncated=np.array([False, True]), info={"final_obs": final})
    env = NativeGymVecEnv(bare)
    with pytest.raises(EnvironmentFault, match=r"final observation of row 1 .*shape \(4,\)"):
        env.step(ACTION, env.allocate())


def test_what_it_cannot_do_is_refused_by_name() -> None:
    env = NativeGymVecEnv(_Native(), name="Odd-v0")
    out = env.allocate()
    assert not env.row_reset
    assert not env.row_step
    assert not env.env_info
    with pytest.raises(ConfigError, match=r"resets its rows itself \(NEXT_STEP\); got reset\(rows=\[1\]\)"):
        env.reset(out, rows=[1])
    with pytest.raises(ConfigError, match=r"steps all its rows together; got step\(rows=\[1\]\)"):
        env.step(ACTION, out, rows=[1])
    with pytest.raises(ConfigError, match="env_info was given"):
        env.reset(out, env_info=DictTensor({"level": torch.zeros(2)}))
    with pytest.raises(UnsupportedSpaceError, match="environment 'Odd-v0': space 'obs' is Text"):
        NativeGymVecEnv(_Native(space=spaces.Text(3)), name="Odd-v0")


def test_one_generator_takes_the_first_seed_and_instances_take_one_each() -> None:
    bare = _Native()
    env = NativeGymVecEnv(bare)
    env.reset(env.allocate(), seeds=[5, 6])
    assert not env.row_seeds
    assert bare.seed == 5
    env.reset(env.allocate())
    assert bare.seed is None
    sync = _sync(CountsUp, AutoresetMode.DISABLED)
    assert sync.row_seeds
    assert sync.row_reset
    out, again = sync.allocate(), sync.allocate()
    sync.reset(out, seeds=[1, 2, 3, 4])
    sync.reset(again, seeds=[9, 9, 9, 9])
    sync.reset(again, rows=[3, 1], seeds=[4, 2])
    assert again.obs["obs"][1].equal(out.obs["obs"][1])
    assert again.obs["obs"][3].equal(out.obs["obs"][3])
    assert not again.obs["obs"][0].equal(out.obs["obs"][0])


def test_a_scale_keeps_raw_rewards() -> None:
    env = NativeGymVecEnv(_Native(reward=np.array([1.0, 2.0])), reward_scale=0.5)
    out = env.allocate()
    env.step(ACTION, out)
    assert out.reward.tolist() == [0.5, 1.0]
    assert out.raw_reward_np is not None
    assert out.raw_reward_np.tolist() == [1.0, 2.0]


def test_close_closes_once() -> None:
    bare = _Native()
    with NativeGymVecEnv(bare) as env:
        pass
    env.close()
    assert bare.closed_times == 1

"""The per-instance adapter, step by step against bare environments, and for every kind of space."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.data import DictTensor
from rlx.env import Autoreset, GymVecEnv, StepBuffer, make
from rlx.errors import AgentError, EnvironmentFault
from tests.env.environments import Scripted

_CASES = [
    ("CartPole-v1", {}, 400),
    ("CartPole-v1", {"max_episode_steps": 7}, 60),
    ("Acrobot-v1", {"max_episode_steps": 30}, 70),
    ("MountainCarContinuous-v0", {"max_episode_steps": 20}, 50),
    ("Pendulum-v1", {}, 250),
    ("LunarLander-v3", {}, 250),
]


@pytest.mark.parametrize(("env_id", "changes", "num_steps"), _CASES)
def test_every_step_equals_a_bare_environment_of_the_same_seed_and_actions(
    env_id: str, changes: dict[str, Any], num_steps: int
) -> None:
    num_envs, seeds = 3, [11, 12, 13]
    ends = {"terminated": 0, "truncated": 0}
    with make(env_id, num_envs, **changes) as env:
        bare = [gymnasium.make(env_id, **changes) for _ in seeds]
        first = [env.reset(seed=seed)[0] for env, seed in zip(bare, seeds, strict=True)]
        out = env.allocate()
        env.reset(out, seeds=seeds)
        np.testing.assert_array_equal(out.obs["obs"], np.stack(first))
        bare[0].action_space.seed(0)
        for _ in range(num_steps):
            actions = [bare[0].action_space.sample() for _ in seeds]
            env.step({"action": torch.as_tensor(np.stack(actions))}, out)
            for row, action in enumerate(actions):
                obs, reward, terminated, truncated, _ = bare[row].step(action)
                np.testing.assert_array_equal(out.obs["obs"][row], obs)
                assert out.reward[row] == pytest.approx(float(reward), rel=1e-6)
                assert (bool(out.terminated[row]), bool(out.truncated[row])) == (terminated, truncated)
                ends["terminated"] += terminated
                ends["truncated"] += truncated
            ended = torch.nonzero(out.terminated | out.truncated).flatten().tolist()
            if ended:
                env.reset(out, rows=ended)
                for row in ended:
                    np.testing.assert_array_equal(out.obs["obs"][row], bare[row].reset()[0])
    assert sum(ends.values()) > 0
    if "max_episode_steps" in changes:
        assert ends["truncated"] > 0


_SPACES = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "scalar box": spaces.Box(-1.0, 1.0, ()),
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "uint16": spaces.Box(0, 60_000, (3,), np.uint16),
    "int64": spaces.Box(-(2**60), 2**60, (2,), np.int64),
    "discrete": spaces.Discrete(5),
    "discrete with start": spaces.Discrete(5, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 7]),
    "multi-discrete with start": spaces.MultiDiscrete([[2, 7], [3, 4]], start=[[1, -2], [0, 5]]),
    "multi-binary": spaces.MultiBinary((2, 2)),
    "nested": spaces.Dict(
        {
            "arm": spaces.Dict({"joint": spaces.Box(-1.0, 1.0, (2,)), "held": spaces.Discrete(2, start=3)}),
            "eyes": spaces.Tuple((spaces.Box(0, 255, (4, 4), np.uint8), spaces.MultiBinary(2))),
        }
    ),
}


def _stored(space: spaces.Space, value: Any, key: str) -> dict[str, np.ndarray]:
    """What should be stored of a value: an independent reading of the rules in `to_specs`."""
    if isinstance(space, spaces.Dict):
        parts = [_stored(part, value[name], f"{key}/{name}") for name, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [_stored(part, value[place], f"{key}/{place}") for place, part in enumerate(space.spaces)]
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return {key: np.asarray(value, np.int64) - space.start}
    else:
        return {key: np.asarray(value)}
    return {name: stored for part in parts for name, stored in part.items()}


@pytest.mark.parametrize("space", _SPACES.values(), ids=_SPACES.keys())
@pytest.mark.parametrize("by_row", [False, True])
def test_observations_of_every_space_are_stored_exactly(space: spaces.Space, by_row: bool) -> None:
    env = GymVecEnv(lambda: Scripted(space), 3)
    out = env.allocate()
    for key, tensor in out.obs.items():
        assert tensor.dtype == env.specs.observation[key].dtype
    env.reset(out, seeds=[1, 2, 3])
    for call in range(40):
        if call:
            env.step({"action": torch.zeros(3, dtype=torch.int64)}, out, rows=[2, 0, 1] if by_row else None)
        for row, bare in enumerate(env.envs):
            for key, value in _stored(space, bare.unwrapped.shown[-1], "obs").items():
                np.testing.assert_array_equal(out.obs[key][row].numpy(), value.astype(out.obs_np[key].dtype))


@pytest.mark.parametrize("space", _SPACES.values(), ids=_SPACES.keys())
def test_actions_of_every_space_reach_the_environment_as_members_of_it(space: spaces.Space) -> None:
    env = GymVecEnv(lambda: Scripted(spaces.Box(-1.0, 1.0, (1,)), space), 2)
    out = env.allocate()
    env.reset(out)
    space.seed(0)
    wanted = [space.sample() for _ in range(2)]
    stored = [_stored(space, value, "action") for value in wanted]
    action = {
        key: torch.as_tensor(np.stack([value[key] for value in stored]).astype(spec.zeros(1).numpy().dtype))
        for key, spec in env.specs.action.items()
    }
    env.step(action, out)
    for bare, value in zip(env.envs, wanted, strict=True):
        given = bare.unwrapped.actions[-1]
        assert space.contains(np.asarray(given) if space.shape == () and isinstance(space, spaces.Box) else given)
        for key, expected in _stored(space, value, "action").items():
            np.testing.assert_allclose(_stored(space, given, "action")[key], expected)


def test_box_actions_are_clipped_for_the_environment_and_left_alone_for_the_agent() -> None:
    bounds = np.array([[-1.0, 0.0], [1.0, np.inf]], np.float32)
    env = GymVecEnv(lambda: Scripted(spaces.Discrete(2), spaces.Box(*bounds)), 1)
    out = env.allocate()
    env.reset(out)
    action = torch.tensor([[-7.0, 9.0]])
    env.step({"action": action}, out)
    assert env.envs[0].unwrapped.actions[-1].tolist() == [-1.0, 9.0]
    assert action.tolist() == [[-7.0, 9.0]]


def test_an_environment_may_keep_the_action_it_was_given() -> None:
    env = GymVecEnv(lambda: Scripted(spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,))), 1)
    out = env.allocate()
    env.reset(out)
    action = torch.tensor([[0.5]])
    env.step({"action": action}, out)
    action.fill_(3.0)
    assert env.envs[0].unwrapped.actions[-1].tolist() == [0.5]


def test_rows_that_are_not_named_stay_as_they_are() -> None:
    env = make("CartPole-v1", 4)
    out = env.allocate()
    env.reset(out, seeds=[1, 2, 3, 4])
    before = out.obs["obs"].clone()
    out.reward.fill_(-5.0)
    env.step({"action": torch.ones(4, dtype=torch.int64)}, out, rows=[1, 3])
    changed = (out.obs["obs"] != before).any(dim=1)
    assert changed.tolist() == [False, True, False, True]
    assert out.reward.tolist() == [-5.0, 1.0, -5.0, 1.0]
    before = out.obs["obs"].clone()
    env.reset(out, rows=[0], seeds=[9])
    assert (out.obs["obs"] != before).any(dim=1).tolist() == [True, False, False, False]


def test_seeds_belong_to_rows() -> None:
    env = make("CartPole-v1", 3)
    out, again = env.allocate(), env.allocate()
    env.reset(out, seeds=[5, 6, 5])
    assert out.obs["obs"][0].equal(out.obs["obs"][2])
    assert not out.obs["obs"][0].equal(out.obs["obs"][1])
    env.reset(again, rows=[2, 1], seeds=[6, None])
    assert again.obs["obs"][2].equal(out.obs["obs"][1])


def test_env_info_reaches_reset_as_options() -> None:
    env = GymVecEnv(lambda: Scripted(spaces.Discrete(2)), 2)
    out = env.allocate()
    info = DictTensor({"level": torch.tensor([3, 4]), "goal": torch.tensor([[0.0, 1.0], [2.0, 3.0]])})
    env.reset(out, env_info=info)
    options = [bare.unwrapped.options[-1] for bare in env.envs]
    assert [given["level"] for given in options] == [3, 4]
    assert options[1]["goal"].tolist() == [2.0, 3.0]
    env.reset(out, rows=[1], env_info=info[:1])
    assert env.envs[1].unwrapped.options[-1]["level"] == 3
    env.reset(out)
    assert env.envs[0].unwrapped.options[-1] is None


class Tasked(gymnasium.Env):
    """Cannot begin without a level."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.full(1, options["level"], np.float32), {}  # type: ignore[index]


def test_a_reset_that_misses_its_task_says_where_tasks_come_from() -> None:
    with GymVecEnv(Tasked, 1, name="Tasked-v0") as env:
        out = env.allocate()
        with pytest.raises(
            EnvironmentFault, match=r"TypeError: .*\. It got no options \(no task\).* batcher\.env_info"
        ):
            env.reset(out)
        with pytest.raises(EnvironmentFault, match=r"KeyError: 'level'$"):  # another is given: that is what is wrong
            env.reset(out, env_info=DictTensor({"levle": torch.ones(1)}))
        env.reset(out, env_info=DictTensor({"level": torch.ones(1)}))


def test_answers_go_straight_into_memory_that_the_caller_owns() -> None:
    """Rows of a larger block, some of them with a stride, as the shared buffer of the workers has them."""
    env = make("CartPole-v1", 2)
    block, twin = torch.zeros(6, 4), torch.zeros(2, 7)
    flags = torch.zeros(2, 6, dtype=torch.bool)
    rewards = torch.zeros(6)
    rows = slice(2, 4)
    inside = StepBuffer({"obs": block[rows]}, rewards[rows], flags[0, rows], flags[1, rows])
    strided = StepBuffer({"obs": twin[:, :4]}, torch.zeros(2), torch.zeros(2).bool(), torch.zeros(2).bool())
    env.reset(strided, seeds=[1, 2])
    env.reset(inside, seeds=[1, 2])
    action = {"action": torch.zeros(2, dtype=torch.int64)}
    env.step(action, inside)
    env.reset(strided, seeds=[1, 2])
    env.step(action, strided)
    assert block[rows].any()
    assert not block[:2].any()
    assert not block[4:].any()
    assert twin[:, :4].equal(block[rows])
    assert not twin[:, 4:].any()
    assert rewards.tolist() == [0, 0, 1, 1, 0, 0]


def test_wrappers_and_scale_change_rewards_and_leave_raw_rewards_as_the_environment_paid() -> None:
    wrappers = [{"tests.env.environments.Repeat": {"times": 3}}, {"ClipReward": {"max_reward": 0.5}}]
    env = make("CartPole-v1", 2, wrappers=wrappers, reward_scale=10.0)
    assert env.raw_reward
    out = env.allocate()
    env.reset(out, seeds=[1, 2])
    for rows in (None, [0, 1]):
        env.step({"action": torch.zeros(2, dtype=torch.int64)}, out, rows=rows)
        assert out.reward.tolist() == [5.0, 5.0]
        assert out.raw_reward_np is not None
        assert out.raw_reward_np.tolist() == [3.0, 3.0]
    plain = make("CartPole-v1", 1)
    assert not plain.raw_reward
    assert plain.allocate().raw_reward_np is None


def test_what_a_wrapper_does_during_a_reset_is_paid_to_nobody() -> None:
    env = make("CartPole-v1", 2, wrappers=["tests.env.environments.StepsInReset"])
    out = env.allocate()
    for rows in (None, [1]):
        env.reset(out, rows=rows)
        env.step({"action": torch.zeros(2, dtype=torch.int64)}, out)
        assert out.raw_reward_np is not None
        assert out.raw_reward_np.tolist() == [1.0, 1.0]


def test_scale_alone_keeps_raw_rewards_too() -> None:
    env = make("CartPole-v1", 2, reward_scale=0.1)
    out = env.allocate()
    env.reset(out)
    env.step({"action": torch.zeros(2, dtype=torch.int64)}, out)
    assert out.reward.tolist() == pytest.approx([0.1, 0.1])
    assert out.raw_reward_np is not None
    assert out.raw_reward_np.tolist() == [1.0, 1.0]


def test_what_it_declares() -> None:
    env = make("CartPole-v1", 2)
    assert env.autoreset is Autoreset.NONE
    assert env.row_step
    assert env.row_reset
    assert env.row_seeds
    assert env.env_info
    assert env.device == torch.device("cpu")


def test_render_returns_the_picture_of_a_row() -> None:
    env = make("CartPole-v1", 2, kwargs={"render_mode": "rgb_array"})
    env.reset(env.allocate())
    assert env.render(1).shape == (400, 600, 3)
    env.close()


def test_close_closes_every_environment_once() -> None:
    env = GymVecEnv(lambda: Scripted(spaces.Discrete(2)), 3)
    with env:
        pass
    env.close()
    assert [bare.unwrapped.closed for bare in env.envs] == [1, 1, 1]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_actions_that_do_not_fit_are_the_agents_error(env_id: str) -> None:
    env = make(env_id, 2)
    out = env.allocate()
    env.reset(out)
    with pytest.raises(AgentError, match=r"'action' has shape \(3, 1\); expected \(2,"):
        env.step({"action": torch.zeros(3, 1, dtype=torch.int64)}, out)
    with pytest.raises(AgentError, match="'action' is missing; got move"):
        env.step({"move": torch.zeros(2)}, out)


def test_an_environment_that_declares_no_space_at_all_is_named() -> None:
    class Bare(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)

    with pytest.raises(EnvironmentFault, match=r"'Bare' \(row 0\): it declares no observation_space"):
        GymVecEnv(Bare, 1, name="Bare")


@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_that_share_an_environment_are_refused(wrapped: bool) -> None:
    only = gymnasium.make("CartPole-v1")

    def again() -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(only, 20) if wrapped else only

    with pytest.raises(EnvironmentFault, match="'CartPole': rows were given the same one"):
        GymVecEnv(again, 2, name="CartPole")
    GymVecEnv(again, 1, name="CartPole").close()

"""Environments that pursue goals: what they show, what other goals would have paid, the goals that they are given."""

import pytest
import torch

from rlx.data import DictTensor
from rlx.env import BitFlip, Errand, GoalVecEnv, GymVecEnv, PointReach, VecEnv, make
from rlx.errors import ConfigError, EnvironmentFault
from tests.env import goal_envs


def gym(kind: type, reward_scale: float = 1.0) -> GymVecEnv:
    return GymVecEnv(kind, 2, name=kind.__name__, reward_scale=reward_scale)


@pytest.mark.parametrize("kind", [goal_envs.Line, goal_envs.OneAtATime, goal_envs.Scalars, goal_envs.Guarded])
def test_a_gymnasium_environment_says_what_other_goals_would_have_paid(kind: type) -> None:
    env = gym(kind, reward_scale=2.0)
    achieved, desired = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [1.0], [3.2]])
    reward, terminated = env.goal_outcome(achieved, desired)
    assert reward.dtype == torch.float32
    assert reward.tolist() == [0.0, -2.0, 0.0]
    assert terminated.tolist() == [True, False, True]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_method_of_one_pair_is_not_taken_for_one_of_many_where_a_goal_has_as_many_numbers(number: int) -> None:
    achieved = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])[:number]
    reward, terminated = gym(goal_envs.Plane).goal_outcome(achieved, torch.zeros(number, 2))
    assert reward.tolist() == [0.0, -2.0, -4.0][:number]
    assert terminated.tolist() == [True, False, False][:number]


def test_wrappers_do_not_hide_what_a_goal_environment_says() -> None:
    env = make("tests.env.goal_envs:Line-v0", 1, max_episode_steps=3, wrappers=[{"TransformReward": {"func": abs}}])
    assert env.goal_outcome(torch.zeros(1, 1), torch.zeros(1, 1))[1].tolist() == [True]


def test_environments_that_cannot_say_it_are_refused_by_name() -> None:
    pair = (torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(EnvironmentFault, match=r"'Faulty': compute_reward raised KeyError"):
        gym(goal_envs.Faulty).goal_outcome(*pair)
    with pytest.raises(ConfigError, match=r"'CartPole-v1' has no compute_reward and no compute_terminated"):
        make("CartPole-v1", 1).goal_outcome(*pair)
    with pytest.raises(ConfigError, match="does not tell what other goals"):
        make("CartPole-v1", 1, vectorization="native").goal_outcome(*pair)


def bit_flip(num_envs: int = 3, num_bits: int = 5) -> BitFlip:
    return BitFlip(num_envs, num_bits=num_bits)


def point_reach(num_envs: int = 3, max_episode_steps: int = 50) -> PointReach:
    return PointReach(num_envs, num_dimensions=2, tolerance=0.05, max_episode_steps=max_episode_steps)


def test_bits_are_flipped_one_at_a_time_until_they_are_the_goals() -> None:
    env = bit_flip()
    out = env.allocate()
    env.reset(out, seeds=[0, 1, 2])
    bits, goal = out.obs["obs/observation"].clone(), out.obs["obs/desired_goal"].clone()
    for step in range(5):  # bit after bit, where it is wrong
        wrong = bits != goal
        action = torch.where(wrong.any(1), wrong.int().argmax(1), 0)
        env.step({"action": action}, out)
        bits[torch.arange(3), action] ^= 1
        assert torch.equal(out.obs["obs/observation"], bits)
        assert torch.equal(out.obs["obs/achieved_goal"], bits)
        assert torch.equal(out.obs["obs/desired_goal"], goal)
        there = (bits == goal).all(1)
        assert torch.equal(out.terminated, there)
        assert torch.equal(out.reward, there.float())
        assert out.truncated.tolist() == [step == 4] * 3


def test_bits_and_goals_are_drawn_evenly() -> None:
    env = BitFlip(4000, num_bits=3)
    out = env.allocate()
    env.reset(out, seeds=list(range(4000)))
    both = torch.cat([out.obs["obs/observation"], out.obs["obs/desired_goal"]], dim=1).long()
    counts = torch.bincount((both * 2 ** torch.arange(6)).sum(1), minlength=64)
    assert ((counts - 4000 / 64).abs() < 6 * (4000 / 64) ** 0.5).all()


def test_a_point_is_pushed_stopped_by_walls_and_there_within_the_tolerance() -> None:
    env = point_reach(2)
    out = env.allocate()
    env.reset(out, seeds=[0, 1], env_info=DictTensor({"goal": torch.tensor([[1.0, 1.0], [0.03, 0.0]])}))
    env.place[:] = torch.tensor([[0.98, -0.5], [0.0, 0.0]])
    env.step({"action": torch.tensor([[1.0, 0.5], [0.5, 5.0]])}, out)
    # 0.02 of force a step; the wall stops the first one; an action beyond its bounds counts as the bound
    seen = out.obs["obs/observation"]
    torch.testing.assert_close(seen[0], torch.tensor([1.0, -0.49, 0.2, 0.1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[1], torch.tensor([0.01, 0.02, 0.1, 0.2]), atol=1e-6, rtol=0)
    assert out.terminated.tolist() == [False, True]
    assert out.reward.tolist() == [0.0, 1.0]
    for _ in range(100):
        env.step({"action": torch.ones(2, 2)}, out)
    assert out.obs["obs/observation"][:, :2].tolist() == [[1.0, 1.0]] * 2
    assert out.obs["obs/observation"][:, 2:].abs().max() <= 1.0
    assert out.truncated.all()


@pytest.mark.parametrize("make_env", [bit_flip, point_reach])
def test_what_is_paid_follows_from_the_goals(make_env) -> None:
    env: GoalVecEnv = make_env(50)
    out = env.allocate()
    env.reset(out, seeds=list(range(50)))
    for _ in range(30):
        kind = env.specs.action["action"].kind
        action = torch.randint(5, (50,)) if kind == "discrete" else torch.rand(50, 2) * 2 - 1
        env.step({"action": action}, out)
        reward, ends = env.goal_outcome(out.obs["obs/achieved_goal"], out.obs["obs/desired_goal"])
        assert torch.equal(reward, out.reward)
        assert torch.equal(ends, out.terminated)


@pytest.mark.parametrize("make_env", [bit_flip, point_reach])
def test_a_row_depends_on_its_seed_and_on_no_other_row(make_env) -> None:
    many, one = make_env(3), make_env(1)
    outs = many.allocate(), one.allocate()
    many.reset(outs[0], seeds=[5, 6, 7])
    one.reset(outs[1], seeds=[6])
    many.reset(outs[0], rows=[0])
    for _ in range(2):
        for key in outs[0].obs:
            assert torch.equal(outs[0].obs[key][1], outs[1].obs[key][0])
        many.reset(outs[0], rows=[2, 1])
        one.reset(outs[1], rows=[0])


def errand(num_envs: int = 3) -> Errand:
    return Errand(num_envs, length=5, slip=0.3, empty_handed=0.1, max_episode_steps=6)


@pytest.mark.parametrize("make_env", [bit_flip, point_reach, errand])
def test_another_instance_goes_on_from_a_state_to_the_bit_whoever_calls(make_env) -> None:
    def play(env: VecEnv, steps: range) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        out = env.allocate()
        for t in steps:
            kind = env.specs.action["action"].kind
            draws = torch.Generator().manual_seed(t)
            action = (
                torch.randint(2, (3,), generator=draws) if kind == "discrete" else torch.rand(3, 2, generator=draws)
            )
            with torch.inference_mode(t % 2 == 0):
                env.step({"action": action}, out)
            seen += [*(value.clone() for value in out.obs.values()), out.reward.clone(), out.truncated.clone()]
            env.reset(out, rows=[t % 3])
            seen += [value[t % 3].clone() for value in out.obs.values()]
        return seen

    one, *others = make_env(), make_env(), make_env()
    one.reset(one.allocate(), seeds=[5, 6, 7])
    play(one, range(7))
    state = one.get_state()
    wanted = play(one, range(7, 20))
    for other in others:
        other.reset(other.allocate(), seeds=[0, 0, 0])
        other.set_state(state)
        assert all(map(torch.equal, play(other, range(7, 20)), wanted))


def test_goals_may_be_given_for_each_row_in_any_order() -> None:
    env = bit_flip()
    out = env.allocate()
    goals = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    env.reset(out, seeds=[0, 1, 2])
    kept = out.obs["obs/desired_goal"][1].clone()
    env.reset(out, rows=[2, 0], env_info=DictTensor({"goal": goals}))
    assert out.obs["obs/desired_goal"][2].tolist() == [1, 1, 1, 1, 1]
    assert out.obs["obs/desired_goal"][0].tolist() == [0, 0, 0, 0, 1]
    assert torch.equal(out.obs["obs/desired_goal"][1], kept)
    with pytest.raises(ConfigError, match=r"env_info has \['gaol'\], expected 'goal' alone. Did you mean 'goal'"):
        env.reset(out, env_info=DictTensor({"gaol": torch.zeros(3, 5)}))
    with pytest.raises(ConfigError, match=r"is \[4\] a row, expected \[5\]"):
        env.reset(out, env_info=DictTensor({"goal": torch.zeros(3, 4)}))
    with pytest.raises(ConfigError, match="steps all its rows together"):
        env.step({"action": torch.zeros(3, dtype=torch.int64)}, out, rows=[0])

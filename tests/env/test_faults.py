"""What a broken environment gets: one error that names the environment, the row, the seed, and what was expected."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.env import GymVecEnv
from rlx.errors import EnvironmentFault, UnsupportedSpaceError
from tests.env.environments import Answers, Scripted

ACTION = {"action": torch.zeros(3, dtype=torch.int64)}
GOOD = np.zeros(3, np.float32)


class _Answer(Answers):
    """Gives the same `(observation, reward, terminated, truncated, info)` from a step on; good ones before."""

    def __init__(self, answer: Any, from_step: int) -> None:
        super().__init__(lambda step: GOOD)
        self.bad, self.from_step = answer, from_step

    def step(self, action: Any) -> Any:
        good = super().step(action)
        if self.steps < self.from_step:
            return good
        if isinstance(self.bad, BaseException):
            raise self.bad
        return self.bad


def _with_fault_in_row_1(answer: Any, from_step: int) -> GymVecEnv:
    rows = iter([10**9, from_step, 10**9])
    return GymVecEnv(lambda: _Answer(answer, next(rows)), 3, name="Odd-v0")


_OBSERVATIONS = [
    (np.zeros(4, np.float32), r"'obs' has shape \(4,\); expected \(3,\)"),
    (np.zeros(1, np.float32), r"'obs' has shape \(1,\); expected \(3,\)"),
    (np.zeros((3, 1), np.float32), r"'obs' has shape \(3, 1\)"),
    (np.float32(0), "'obs' is a float32; expected a NumPy array"),
    (None, "'obs' is a NoneType; expected a NumPy array"),
    (np.zeros(3, np.complex64), "'obs' has dtype complex64; expected float32"),
]
_OTHERS = [
    ((GOOD, 0.0, False, {}), "step returned 4 values; expected .observation, reward, terminated, truncated, info"),
    (GOOD, "step returned a ndarray"),
    ((GOOD, np.zeros(2), False, False, {}), "the reward array.*expected a number"),
    ((GOOD, "much", False, False, {}), "the reward 'much'; expected a number"),
    ((GOOD, 0.0, np.zeros(2, bool), False, {}), "terminated=array.*expected True or False"),
    (ValueError("boom"), "step raised ValueError: boom"),
    (SystemExit(0), "step raised SystemExit: 0"),  # as games do whose window is closed
]
_ALL = [*(((bad, 0.0, False, False, {}), said) for bad, said in _OBSERVATIONS), *_OTHERS]


@pytest.mark.parametrize(("answer", "said"), _ALL, ids=[said[:30] for _, said in _ALL])
@pytest.mark.parametrize("from_step", [2, 60])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_step_that_breaks_the_contract_names_row_seed_and_step(
    answer: Any, said: str, from_step: int, by_row: bool
) -> None:
    env = _with_fault_in_row_1(answer, from_step)
    out = env.allocate()
    env.reset(out, seeds=[10, 11, 12])
    place = rf"environment 'Odd-v0' \(row 1, seed 11, episode 1, step {from_step}\): "
    rows = [0, 1, 2] if by_row else None
    for _ in range(from_step - 1):
        env.step(ACTION, out, rows=rows)
    with pytest.raises(EnvironmentFault, match=place + "(?s:.*)" + said) as caught:
        env.step(ACTION, out, rows=rows)
    if isinstance(answer, Exception):
        assert caught.value.__cause__ is answer
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("shape", [(1,), (3, 1), ()])
def test_a_shape_that_would_broadcast_is_refused_even_where_all_rows_have_it(shape: tuple[int, ...]) -> None:
    env = GymVecEnv(lambda: _Answer((np.zeros(shape, np.float32), 0.0, False, False, {}), 60), 3)
    out = env.allocate()
    env.reset(out)
    for _ in range(59):
        env.step(ACTION, out)
    with pytest.raises(EnvironmentFault, match=r"row 0, .*('obs' has shape|expected a NumPy array)"):
        env.step(ACTION, out)


def test_a_part_of_a_nested_observation_does_not_broadcast_either() -> None:
    space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (3,)), "b": spaces.Discrete(2)})

    def show(step: int) -> Any:
        return {"a": np.zeros(1 if step == 60 else 3, np.float32), "b": 0}

    env = GymVecEnv(lambda: Answers(show, space), 3)
    out = env.allocate()
    env.reset(out)
    for _ in range(59):
        env.step(ACTION, out)
    with pytest.raises(EnvironmentFault, match=r"row 0, .*step 60.*'obs/a' has shape \(1,\); expected \(3,\)"):
        env.step(ACTION, out)


def test_a_reward_of_none_is_a_fault_at_first_and_not_a_number_later() -> None:
    """NumPy writes None as NaN, which the rollout loop refuses with all other numbers that are not finite."""
    env = _with_fault_in_row_1((GOOD, None, False, False, {}), 1)
    out = env.allocate()
    env.reset(out)
    with pytest.raises(EnvironmentFault, match="the reward None; expected a number"):
        env.step(ACTION, out)
    env = _with_fault_in_row_1((GOOD, None, False, False, {}), 60)
    env.reset(out)
    for _ in range(60):
        env.step(ACTION, out)
    assert out.reward.isnan().tolist() == [False, True, False]


def test_a_dtype_that_changes_later_is_found_by_the_checks_that_go_on() -> None:
    env = _with_fault_in_row_1((np.zeros(3), 0.0, False, False, {}), 60)
    out = env.allocate()
    env.reset(out)

    def go_on() -> None:
        for _ in range(300):
            env.step(ACTION, out)

    with pytest.raises(EnvironmentFault, match=r"step 256.*dtype float64; expected float32"):
        go_on()


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros(3, np.int64)])
def test_a_wrong_dtype_is_refused_at_once_with_the_way_out(value: Any) -> None:
    env = _with_fault_in_row_1((value, 0.0, False, False, {}), 1)
    out = env.allocate()
    env.reset(out)
    with pytest.raises(EnvironmentFault, match=f"dtype {value.dtype}; expected float32.*DtypeObservation"):
        env.step(ACTION, out)


@pytest.mark.parametrize(
    ("space", "bad", "said"),
    [
        (spaces.Discrete(3, start=1), 0, r"'obs' is 0, outside Discrete\(3, start=1\)"),
        (spaces.Discrete(3), 3, "'obs' is 3, outside Discrete"),
        (spaces.Discrete(3), 1.5, "'obs' is 1.5; expected an integer"),
        (spaces.MultiDiscrete([2, 3]), np.array([0, 3]), "outside MultiDiscrete"),
        (spaces.MultiDiscrete([2, 3]), np.array([0.0, 1.0]), "dtype float64; expected integers"),
        (spaces.MultiBinary(2), np.array([0, 2], np.int8), "expected zeros and ones"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.5, 1.0], np.float32), "dtype float32; expected uint8"),
        (spaces.Box(0.0, 1.0, ()), np.zeros(1, np.float32), r"shape \(1,\); expected \(\)"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"b": 0}, "'obs/a' is missing from an observation of type dict"),
        (spaces.Tuple((spaces.Discrete(2),) * 2), (0,), "'obs/1' is missing"),
    ],
)
@pytest.mark.parametrize("at", ["reset", "step"])
def test_observations_outside_their_space_are_faults(space: spaces.Space, bad: Any, said: str, at: str) -> None:
    space.seed(0)
    good = space.sample()
    env = GymVecEnv(lambda: Answers(lambda step: bad if at == "reset" or step else good, space), 2, name="Odd-v0")
    out = env.allocate()

    def provoke() -> None:
        env.reset(out, seeds=[1, 2])
        env.step({"action": torch.zeros(2, dtype=torch.int64)}, out)

    with pytest.raises(EnvironmentFault, match=f"{at} returned an observation that breaks its space: .*{said}"):
        provoke()


@pytest.mark.parametrize(("answer", "said"), [(GOOD, "a ndarray"), ((GOOD,), "1 values"), ((GOOD, {}, 0), "3 values")])
def test_a_reset_that_breaks_the_contract_is_a_fault(answer: Any, said: str) -> None:
    class Odd(Scripted):
        def reset(self, **_: Any) -> Any:
            return answer

    env = GymVecEnv(lambda: Odd(spaces.Box(-1.0, 1.0, (3,))), 1)
    with pytest.raises(EnvironmentFault, match=rf"reset returned {said}; expected \(observation, info\)"):
        env.reset(env.allocate())


def test_a_reset_that_raises_tells_the_episode() -> None:
    class Odd(Scripted):
        def reset(self, **keywords: Any) -> Any:
            if len(self.options) == 2:
                raise RuntimeError("no third episode")
            return super().reset(**keywords)

    env = GymVecEnv(lambda: Odd(spaces.Discrete(2)), 2, name="Odd-v0")
    out = env.allocate()
    env.reset(out, seeds=[4, 5])
    env.reset(out)
    with pytest.raises(EnvironmentFault, match=r"row 0, seed 4, episode 3, .*reset raised RuntimeError: no third") as e:
        env.reset(out)
    assert isinstance(e.value.__cause__, RuntimeError)


def test_the_step_count_is_the_rows_own() -> None:
    env = _with_fault_in_row_1(ValueError("boom"), 5)
    out = env.allocate()
    env.reset(out, seeds=[1, 2, 3])
    for rows in (None, [0, 2], [1], None, [0], None):
        env.step(ACTION, out, rows=rows)
    with pytest.raises(EnvironmentFault, match=r"row 1, seed 2, episode 1, step 5\)"):
        env.step(ACTION, out)


def _constructors(failing_row: int, made: list[Scripted]) -> Callable[[], gymnasium.Env]:
    def make_env() -> gymnasium.Env:
        if len(made) == failing_row:
            raise OSError("no such engine")
        made.append(Scripted(spaces.Discrete(2)))
        return made[-1]

    return make_env


def test_a_constructor_that_raises_is_a_fault_and_leaves_nothing_open() -> None:
    made: list[Scripted] = []
    with pytest.raises(
        EnvironmentFault, match=r"'Odd-v0' \(row 2\): its constructor raised OSError: no such"
    ) as caught:
        GymVecEnv(_constructors(2, made), 4, name="Odd-v0")
    assert isinstance(caught.value.__cause__, OSError)
    assert [env.closed for env in made] == [1, 1]


def test_rows_must_agree_on_their_spaces() -> None:
    starts = iter([0, 0, 1])
    with pytest.raises(
        EnvironmentFault, match=r"row 2\): its observation_space is Discrete\(2, start=1\); expected Disc"
    ):
        GymVecEnv(lambda: Scripted(spaces.Discrete(2, start=next(starts))), 3)


def test_an_unsupported_space_names_the_environment_and_closes_it() -> None:
    made: list[Scripted] = []

    def make_env() -> gymnasium.Env:
        made.append(Scripted(spaces.Text(3)))
        return made[-1]

    with pytest.raises(UnsupportedSpaceError, match="environment 'Odd-v0': space 'obs' is Text"):
        GymVecEnv(make_env, 2, name="Odd-v0")
    assert [env.closed for env in made] == [1, 1]


def test_a_close_that_raises_is_a_fault_after_all_are_closed() -> None:
    made: list[Scripted] = []

    class Odd(Scripted):
        def close(self) -> None:
            super().close()
            raise OSError("stuck")

    def make_env() -> gymnasium.Env:
        made.append(Odd(spaces.Discrete(2)))
        return made[-1]

    env = GymVecEnv(make_env, 3)
    with pytest.raises(EnvironmentFault, match=r"row 0\): close raised OSError: stuck"):
        env.close()
    assert [bare.closed for bare in made] == [1, 1, 1]

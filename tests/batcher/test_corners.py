"""What a batcher owes in its corners: what is given stays the caller's, what fails is told, counts are exact."""

import copy
import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlx.agent import ActorCritic, GRUActorCritic, values
from rlx.batcher import Batcher, EpisodeBatcher
from rlx.batcher.on_device import DeviceRollout
from rlx.data import DictTensor
from rlx.env import Autoreset, GymVecEnv, TorchCartPole, VecEnv, make
from rlx.errors import DataRevokedError, EnvironmentFault, RlxError, SpecError, UserError
from tests.batcher.ledger import ID, Parity

from ..program import ENVIRONMENT

MLP = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
GRU = partial(GRUActorCritic, hidden_sizes=[8], activation="tanh", state_size=8, critic_hidden_sizes=[8],
              log_std_init=0.0, prev_action=True, prev_reward=True)  # fmt: skip
CARTPOLE = partial(make, "CartPole-v1")
LOOKED_AT = ("env/obs", "env/is_first", "next/terminated", "next/truncated", "next/reward")
SMALL: dict[str, Any] = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 8, "seed": 0, "workers": "local"}


def mode(on: bool) -> DictTensor:
    return DictTensor({"deterministic": torch.full((2,), on)})


@pytest.mark.parametrize("workers", ["local", "process"])
def test_what_was_given_may_be_written_to_afterwards(workers: str) -> None:
    info = mode(False)
    with Batcher(MLP, CARTPOLE, **SMALL | {"workers": workers}) as batcher:
        batcher.reset(agent_info=info)
        batcher.publish(MLP(batcher.specs))
        piece = batcher.collect()
        info["deterministic"].fill_(True)
        assert not piece.info["agent_info/deterministic"].any()
        assert not batcher.collect().info["agent_info/deterministic"].any()


@pytest.mark.parametrize("raises", [False, True], ids=["killed", "raised"])
def test_steps_of_a_piece_that_an_environment_breaks_are_counted_as_dropped(raises: bool, tmp_path: Path) -> None:
    make_env = partial(breaking, str(tmp_path / "broken"), raises)
    with Batcher(MLP, make_env, **SMALL | {"workers": "process"}) as batcher:
        batcher.publish(MLP(batcher.specs))
        batcher.collect()
        assert (batcher.restarts, batcher.dropped_steps) == (1, 2 * 5)  # it breaks in its sixth step


class Breaks(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Breaks once, in its sixth step."""

    def __init__(self, mark: str, raises: bool) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._mark, self._raises, self._steps = mark, raises, 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 6 and not os.path.exists(self._mark):
            open(self._mark, "x").close()
            if self._raises:
                raise ValueError("broken")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def breaking(mark: str, raises: bool, *, num_envs: int) -> GymVecEnv:
    return GymVecEnv(partial(Breaks, mark, raises), num_envs)


class LeavesFlags(TorchCartPole):
    """Leaves the flags of an episode's end where they are while it resets, as the contract allows."""

    def step(self, action: Any, out: Any, rows: Any = None) -> None:
        resetting = self._ended.clone() if hasattr(self, "_ended") else torch.zeros(self.num_envs, dtype=torch.bool)
        super().step(action, out, rows)
        self._ended = (out.terminated | out.truncated) & ~resetting
        out.terminated[resetting] = True


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("make_agent", [MLP, GRU])
def test_flags_of_a_call_that_resets_mean_nothing(
    make_agent: Any, device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device:
        monkeypatch.setattr("rlx.batcher.worker.Rollout", DeviceRollout)
    found = []
    for kind in (TorchCartPole, LeavesFlags):
        make_env = partial(kind, autoreset="next_step", max_episode_steps=9, device="cpu")
        with Batcher(make_agent, make_env, **SMALL | {"num_steps": 30}) as batcher:
            torch.manual_seed(3)
            batcher.publish(make_agent(batcher.specs))
            for _ in range(4):
                steps = batcher.collect().steps
                found.append([steps.lengths, *(steps[key][steps.mask()] for key in LOOKED_AT)])
            found.append([torch.tensor(batcher.episodes)])
    for plain, left in zip(found[:5], found[5:], strict=True):
        for one, other in zip(plain, left, strict=True):
            assert torch.equal(one, other)


def test_the_state_of_a_row_that_begins_with_a_reset_is_an_episodes_first() -> None:
    make_env = partial(TorchCartPole, autoreset="next_step", max_episode_steps=3, device="cpu")
    with Batcher(GRU, make_env, **SMALL | {"num_steps": 3}) as batcher:  # the next piece begins with the reset
        batcher.publish(GRU(batcher.specs))
        batcher.collect()
        piece = batcher.collect()
        assert piece.steps["env/is_first"][:, 0].all()
        assert not piece.info["agent_state/hidden"].any()


def test_lengths_of_a_piece_stay_what_they_were() -> None:
    make_env = partial(TorchCartPole, autoreset="next_step", max_episode_steps=5, device="cpu")
    with Batcher(MLP, make_env, **SMALL) as batcher:
        batcher.publish(MLP(batcher.specs))
        piece = batcher.collect()
        lengths = piece.steps.lengths.tolist()
        others = []
        for _ in range(6):
            others.append(batcher.collect().steps.lengths.tolist())
            assert piece.steps.lengths.tolist() == lengths
        assert any(other != lengths for other in others)


def test_rows_drawn_several_times_have_each_their_following_value() -> None:
    with Batcher(MLP, CARTPOLE, **SMALL | {"envs_per_worker": 3}) as batcher:
        agent = MLP(batcher.specs)
        batcher.publish(agent)
        piece = batcher.collect().clone()
        for index in (torch.tensor([0, 0, 2]), torch.tensor([2, 1]), torch.tensor([], dtype=torch.int64),
                      slice(1, 3), torch.tensor([False, True, False])):  # fmt: skip
            chosen = piece.rows(index)
            torch.testing.assert_close(values(agent, chosen), tuple(value[index] for value in values(agent, piece)))
            assert chosen.bootstrap["time"].tolist() == [7] * len(chosen.bootstrap["row"])


def test_episodes_may_be_taken_away_while_others_are_played() -> None:
    with EpisodeBatcher(MLP, CARTPOLE, num_episodes=1, **SMALL) as batcher:
        batcher.publish(MLP(batcher.specs))
        for _ in range(3):
            batcher.collect()
        assert len(batcher.episodes) == 3
        batcher.execute()
        batcher.episodes.clear()
        batcher.get()
        assert [row for row, _, _ in batcher.episodes] == [0]


def test_a_reset_of_workers_that_ran_ahead_counts_nothing_that_nobody_gets() -> None:
    make_env = partial(make, "CartPole-v1", max_episode_steps=4)
    with Batcher(MLP, make_env, **SMALL, asynchronous=True) as batcher:
        batcher.publish(MLP(batcher.specs))
        batcher.collect()
        counted = len(batcher.episodes)
        assert counted
        batcher.reset()
        assert len(batcher.episodes) == counted


def test_what_is_refused_changes_nothing() -> None:
    with Batcher(MLP, CARTPOLE, **SMALL) as batcher:
        batcher.reset(agent_info=mode(False))
        with pytest.raises(SpecError, match="env_info: got 3 rows"):
            batcher.reset(agent_info=mode(True), env_info=DictTensor({"goal": torch.zeros(3)}))
        batcher.publish(MLP(batcher.specs))
        assert not batcher.collect().info["agent_info/deterministic"].any()
        batcher.execute()
        with pytest.raises(UserError, match="being collected already"):
            batcher.collect(mode(True))
    with EpisodeBatcher(MLP, CARTPOLE, **SMALL) as episodes:
        episodes.reset(agent_info=mode(False))
        episodes.publish(MLP(episodes.specs))
        with pytest.raises(SpecError, match="agent_info: got 3 rows"):
            episodes.execute(DictTensor({"deterministic": torch.zeros(3, dtype=torch.bool)}))
        episodes.execute()
        assert episodes.get() is not None


class FailsTwice(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Fails in its step and once more when it is closed, as a simulator that is gone does."""

    def step(self, action: Any) -> Any:
        raise ValueError("the real problem")

    def close(self) -> None:
        raise OSError("and close fails, too")


def failing_twice(*, num_envs: int) -> GymVecEnv:
    return GymVecEnv(lambda: FailsTwice(gymnasium.make("CartPole-v1")), num_envs)


def test_an_environment_that_cannot_be_closed_either_does_not_hide_what_was_wrong() -> None:
    with Batcher(MLP, failing_twice, **SMALL) as batcher:
        batcher.publish(MLP(batcher.specs))
        with pytest.raises(EnvironmentFault, match="the real problem"):
            batcher.collect()


class NeverClosed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Fails when it is closed, as a simulator whose window is gone does."""

    def close(self) -> None:
        raise OSError("the window is gone")


class NeverClosedVec(GymVecEnv):
    """The same, of a vector environment of the user's own."""

    def close(self) -> None:
        super().close()
        raise OSError("the window is gone")


def never_closed(*, num_envs: int) -> GymVecEnv:
    return GymVecEnv(lambda: NeverClosed(gymnasium.make("CartPole-v1")), num_envs)


def never_closed_vec(*, num_envs: int) -> GymVecEnv:
    return NeverClosedVec(lambda: gymnasium.make("CartPole-v1"), num_envs)


COLLECTS = """
from tests.batcher.test_corners import MLP, SMALL, Batcher, never_closed, never_closed_vec
if __name__ == "__main__":
    for workers in ("local", "process"):
        for make_env in (never_closed, never_closed_vec):
            with Batcher(MLP, make_env, **SMALL | {"workers": workers}) as batcher:
                batcher.publish(MLP(batcher.specs))
                assert batcher.collect().num_steps == 16
"""


def test_a_close_that_raises_is_one_warning_whatever_the_workers_are() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTS], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    raised = "close raised OSError: the window is gone"
    assert (
        done.stderr.splitlines()
        == [
            f"environment 'environment' (row 0): {raised}",
            f"environment 'environment': {raised}",
        ]
        * 2
    )


class Cameras(gymnasium.Env[Any, Any]):
    """Shows four numbers in a dict; from its tenth step on another number of them."""

    observation_space = spaces.Dict({"x": spaces.Box(-1, 1, (4,), np.float32)})
    action_space = spaces.Discrete(2)

    def __init__(self, wrong: int) -> None:
        self._wrong, self._steps = wrong, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return {"x": np.zeros(4, np.float32)}, {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        size = self._wrong if self._steps > 20 else 4
        return {"x": np.zeros(size, np.float32)}, 0.0, False, False, {}


def test_shapes_that_are_wrong_are_refused_where_their_sum_is_right() -> None:
    def make_env(*, num_envs: int) -> GymVecEnv:
        sizes = iter((3, 5))
        return GymVecEnv(lambda: Cameras(next(sizes)), num_envs)

    with Batcher(MLP, make_env, **SMALL | {"num_steps": 40}) as batcher:
        batcher.publish(MLP(batcher.specs))
        with pytest.raises(EnvironmentFault, match=r"'obs/x' has shape \(3,\); expected \(4,\)"):
            batcher.collect()


def test_an_observation_without_numbers_is_laid_out() -> None:
    space = spaces.Dict({"none": spaces.Box(-1, 1, (3, 0), np.float32), "one": spaces.Box(-1, 1, (1,), np.float32)})
    shown = {"none": np.zeros((3, 0), np.float32), "one": np.zeros(1, np.float32)}
    wrap = gymnasium.wrappers.TransformObservation
    env = GymVecEnv(lambda: wrap(gymnasium.make("CartPole-v1"), lambda _: shown, space), 1)
    assert env.allocate().obs["obs/none"].shape == (1, 3, 0)


class TakesNone(TorchCartPole):
    env_info = False


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"workers": "proces"}, r"workers: got 'proces', expected one of local, process, ray. Did you mean 'process'?"),
        ({"num_workers": 0}, "num_workers: expected an integer >= 1, got 0"),
        ({"num_steps": 0}, "num_steps: expected an integer >= 1, got 0"),
        ({"make_env": lambda num_envs: CARTPOLE(num_envs=3)}, r"make_env\(num_envs=2\) returned 3 environments of"),
        ({"make_env": lambda num_envs: gymnasium.make("CartPole-v1")}, "returned a TimeLimit, expected a VecEnv"),
        ({"make_env": partial(TakesNone, autoreset="none", max_episode_steps=9, device="cpu"),
          "env_info": DictTensor({"goal": torch.zeros(2)})}, "env_info was given, and it takes none"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    options = {"make_env": CARTPOLE, **SMALL, **changes}
    make_env = options.pop("make_env")
    with pytest.raises(RlxError, match=reason):  # noqa: SIM117
        with Batcher(MLP, make_env, **options) as batcher:
            batcher.reset()


def test_no_episodes_are_refused() -> None:
    with pytest.raises(UserError, match="num_episodes: expected an integer >= 1, got 0"):
        EpisodeBatcher(MLP, CARTPOLE, num_episodes=0, **SMALL)


def test_rows_that_nobody_can_reset_are_refused() -> None:
    class Unresettable(TorchCartPole):
        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs, autoreset="none", max_episode_steps=9, device="cpu")
            self.row_reset = False

    assert issubclass(Unresettable, VecEnv)
    assert Unresettable(2).autoreset is Autoreset.NONE
    with pytest.raises(UserError, match="no single row can be reset"):
        Batcher(MLP, Unresettable, **SMALL)


class NotANumber(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows no number once it has been reset with a seed twice."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds = [*getattr(self, "seeds", []), *([] if seed is None else [seed])]
        observation, info = super().reset(seed=seed, options=options)
        return (observation * np.float32("nan") if len(self.seeds) > 1 else observation), info


def test_a_message_names_the_seed_of_environments_that_began_apart() -> None:
    made: list[NotANumber] = []

    def make_env(*, num_envs: int) -> GymVecEnv:
        def one() -> NotANumber:
            made.append(NotANumber(gymnasium.make("CartPole-v1")))
            return made[-1]

        return GymVecEnv(one, num_envs)

    with Batcher(MLP, make_env, **SMALL) as batcher:
        batcher.publish(MLP(batcher.specs))
        batcher.collect()
        batcher.load_state_dict(batcher.state_dict(between_pieces=False), 7)
        first, second = made[0].seeds
        assert first != second
        with pytest.raises(EnvironmentFault, match=rf"environment 0 \(reset seed {second}, episode 1, step 0\)"):
            batcher.collect()


class Dropping(Parity):
    """Has layers that do something else while they learn: they drop, and count on a batch's own statistics."""

    def __init__(self, specs) -> None:
        super().__init__(specs)
        self.layers = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))

    def forward(self, observation, state, agent_info, taken=None):
        outputs, state = super().forward(observation, state, agent_info, taken)
        scaled = self.layers(torch.ones(observation.batch_size, 1)).squeeze(-1)
        return outputs | DictTensor({"scaled": scaled}), state

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | DictTensor({"scaled": outputs["scaled"]})


def test_an_agent_acts_in_evaluation_mode_and_leaves_torchs_own_generator_alone() -> None:
    with Batcher(Dropping, partial(make, ID), **SMALL | {"envs_per_worker": 1}) as batcher:
        agent = Dropping(batcher.specs)
        batcher.publish(agent)
        before = torch.get_rng_state()
        piece = batcher.collect()
        assert torch.equal(torch.get_rng_state(), before)
        wanted = agent.eval().layers(torch.ones(1, 1)).item()
        assert piece.steps["agent/scaled"].unique().tolist() == [pytest.approx(wanted)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda piece: pickle.loads(pickle.dumps(piece))])
@pytest.mark.parametrize("kind", [Batcher, EpisodeBatcher])
def test_what_a_batcher_returns_is_copied_and_pickled_as_its_numbers(kind: type[Batcher], copied) -> None:
    with kind(MLP, CARTPOLE, **SMALL) as batcher:
        batcher.publish(MLP(batcher.specs))
        piece = batcher.collect()
        twin, expected = copied(piece), piece.clone()
    for part in ("info", "steps", "bootstrap", "context"):
        assert getattr(twin, part).to_numpy().keys() == getattr(expected, part).keys()
        for key, value in getattr(expected, part).items():
            assert torch.equal(getattr(twin, part)[key], value)
    assert twin.num_steps == expected.num_steps


def test_what_is_built_late_of_a_closed_batchers_piece_says_that_it_was_closed() -> None:
    with Batcher(MLP, CARTPOLE, **SMALL) as batcher:
        agent = MLP(batcher.specs)
        batcher.publish(agent)
        piece = batcher.collect()
    with pytest.raises(DataRevokedError, match="the batcher was closed"):
        values(agent, piece)

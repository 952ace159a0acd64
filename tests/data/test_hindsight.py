"""Goals given in hindsight: which, what they pay and where they end; beside a list of steps in plain Python."""

import pytest
import torch

from rlx.data import DictTensor, EnvSpecs, Hindsight, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.errors import SpecError, UserError

GOAL = Spec((1,), torch.float32)
SPECS = EnvSpecs(
    {"obs/place": GOAL, "obs/achieved_goal": GOAL, "obs/desired_goal": GOAL},
    {"action": Spec((), torch.int64, "discrete", nvec=(100_000,))},
)


def reached(achieved: torch.Tensor, desired: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    same = (achieved == desired).all(-1)
    return same.float(), same


def walk(places: list[float], goal: float, ends: str, *, is_first: bool = True, number: int = 0) -> Trajectories:
    """Return one environment's steps through places, the first of them being where it begins."""
    count = len(places) - 1
    column = torch.tensor(places).view(1, -1, 1)
    goals = torch.full((1, count, 1), goal)
    last = torch.arange(count) == count - 1
    pays, there = reached(column[:, 1:], goals)
    terminated = there | (last & (ends == "terminated")).unsqueeze(0)
    first = torch.zeros(1, count, dtype=torch.bool)
    first[0, 0] = is_first
    fields = {
        "env/obs/place": column[:, :-1], "env/obs/achieved_goal": column[:, :-1], "env/obs/desired_goal": goals,
        "next/obs/place": column[:, 1:], "next/obs/achieved_goal": column[:, 1:], "next/obs/desired_goal": goals,
        "env/is_first": first, "agent/action": number + torch.arange(count).unsqueeze(0), "next/reward": pays,
        "next/terminated": terminated, "next/truncated": (last & (ends == "truncated")).unsqueeze(0),
    }  # fmt: skip
    return Trajectories(DictTensor.empty(1), TemporalDictTensor(fields, [count]), DictTensor.empty(0))


def buffer_of(*pieces: Trajectories, ratio: float = 1.0, capacity: int = 100, outcome=reached) -> ReplayBuffer:
    buffer = ReplayBuffer(SPECS, capacity=capacity, num_envs=1, hindsight=Hindsight(ratio, outcome))
    for piece in pieces:
        buffer.add(piece)
    return buffer


def outcomes(buffer: ReplayBuffer, **options) -> dict[int, set[tuple]]:
    """Return for each action what was drawn: goal, reward, terminated, truncated, discount, next place."""
    steps = buffer.sample(4000, torch.Generator().manual_seed(0), gamma=0.5, **options).steps
    assert torch.equal(steps["env/obs/desired_goal"], steps["next/obs/desired_goal"])
    found: dict[int, set[tuple]] = {}
    names = ("next/reward", "next/terminated", "next/truncated", "next/discount")
    for i in range(4000):
        seen = (steps["env/obs/desired_goal"][i].item(), *(steps[name][i].item() for name in names))
        found.setdefault(steps["agent/action"][i].item(), set()).add((*seen, steps["next/obs/place"][i].item()))
    return found


def test_one_step_transitions_of_an_episode_worked_by_hand() -> None:
    # places 0, 1, 2, 3; the goal 9 is missed, time runs out
    assert outcomes(buffer_of(walk([0, 1, 2, 3], 9, "truncated"))) == {
        0: {(1, 1, True, False, 0.5, 1), (2, 0, False, False, 0.5, 1), (3, 0, False, False, 0.5, 1)},
        1: {(2, 1, True, False, 0.5, 2), (3, 0, False, False, 0.5, 2)},
        2: {(3, 1, True, True, 0.5, 3)},
    }


def test_three_step_transitions_stop_where_the_new_goal_is_reached() -> None:
    assert outcomes(buffer_of(walk([0, 1, 2, 3], 9, "truncated")), n_step=3) == {
        0: {(1, 1, True, False, 0.5, 1), (2, 0.5, True, False, 0.25, 2), (3, 0.25, True, True, 0.125, 3)},
        1: {(2, 1, True, False, 0.5, 2), (3, 0.5, True, True, 0.25, 3)},
        2: {(3, 1, True, True, 0.5, 3)},
    }


def test_the_old_goals_end_is_none_for_another_goal_and_any_other_end_stays() -> None:
    def near(achieved: torch.Tensor, desired: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pays = (achieved == desired).all(-1)
        return pays.float(), pays & (desired > 2).all(-1)  # goals up to 2 end nothing

    # 1 is visited, then the old goal 3 is reached, which ends the episode
    found = outcomes(buffer_of(walk([0, 1, 3], 3, "terminated"), outcome=near), n_step=2)
    assert found[0] == {(1, 1, False, False, 0.25, 3), (3, 0.5, True, False, 0.25, 3)}
    # the same steps towards 9, ended by something else
    found = outcomes(buffer_of(walk([0, 1, 3], 9, "terminated"), outcome=near), n_step=2)
    assert found[0] == {(1, 1, True, False, 0.25, 3), (3, 0.5, True, False, 0.25, 3)}


def test_goals_come_from_the_same_episode_also_where_it_goes_on_in_the_next_piece_or_was_cut_off() -> None:
    first, rest = walk([0, 1], 9, "goes on"), walk([1, 2, 3], 9, "truncated", is_first=False, number=1)
    buffer = buffer_of(first)
    assert {seen[0] for seen in outcomes(buffer)[0]} == {1}  # no more is known yet
    buffer.add(rest)
    assert {seen[0] for seen in outcomes(buffer)[0]} == {1, 2, 3}
    buffer.add(walk([5, 6], 9, "goes on", number=10))
    buffer.add(walk([7, 8], 9, "goes on", number=20))  # a reset cut the one before off
    found = outcomes(buffer)
    assert {number: {seen[0] for seen in found[number]} for number in (0, 10, 20)} == {0: {1, 2, 3}, 10: {6}, 20: {8}}


def test_what_is_not_a_number_behind_an_episodes_end_is_in_no_sum() -> None:
    def along(achieved: torch.Tensor, desired: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pays = (achieved * desired / (achieved.abs() * desired.abs())).squeeze(-1)  # of no direction: 0 / 0
        return pays, torch.zeros(len(pays), dtype=torch.bool)

    piece = walk([1.0, 2.0, 3.0], 9, "truncated")
    piece.steps["next/reward"][:] = 1.0
    found = outcomes(buffer_of(piece, outcome=along), n_step=3)
    assert found == {
        0: {(2, 1.5, False, True, 0.25, 3), (3, 1.5, False, True, 0.25, 3)},
        1: {(3, 1, False, True, 0.5, 3)},
    }


def test_every_later_goal_is_as_likely_as_the_others_and_the_ratio_is_kept() -> None:
    buffer = buffer_of(walk([0, 1, 2, 3, 4, 5], 9, "truncated"), ratio=0.8)
    steps = buffer.sample(60_000, torch.Generator().manual_seed(0)).steps
    goal = steps["env/obs/desired_goal"].flatten()
    assert (goal == 9).float().mean().item() == pytest.approx(0.2, abs=0.01)
    of_first = goal[(steps["agent/action"].flatten() == 0) & (goal != 9)].long()
    assert (torch.bincount(of_first)[1:] / len(of_first)).tolist() == pytest.approx([0.2] * 5, abs=0.015)


def test_without_a_ratio_nothing_changes() -> None:
    pieces = [walk([0, 1, 2], 2, "terminated"), walk([4, 5, 6], 9, "truncated", number=10)]
    plain = ReplayBuffer(SPECS, capacity=100, num_envs=1)
    for piece in pieces:
        plain.add(piece)
    for n_step in (1, 3):
        assert outcomes(buffer_of(*pieces, ratio=0.0), n_step=n_step) == outcomes(plain, n_step=n_step)


class Steps:
    """What several environments go through: lists of (place, action, goal, terminated, truncated, next place)."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: list[list[list[tuple]]] = [[] for _ in range(num_envs)]
        self.open = [False] * num_envs
        self.count = 0

    def draw(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))

    def piece(self) -> Trajectories:
        lengths = [self.draw(7) for _ in self.rows]
        cut = self.draw(8) == 0
        table: list[list[tuple]] = []
        firsts: list[list[bool]] = []
        for row, length in enumerate(lengths):
            self.open[row] = self.open[row] and not cut
            steps: list[tuple] = []
            first: list[bool] = []
            for _ in range(length):
                first.append(not self.open[row])
                if not self.open[row]:
                    self.rows[row].append([])
                episode = self.rows[row][-1]
                place = episode[-1][-1] if episode else self.draw(4)
                goal = episode[0][2] if episode else self.draw(4)
                self.count += 1
                following = self.draw(4)  # few places: goals are met again and again
                there = following == goal
                step = (place, self.count, goal, there or self.draw(12) == 0, self.draw(8) == 0, following)
                episode.append(step)
                steps.append(step)
                self.open[row] = not (step[3] or step[4])
            table.append(steps)
            firsts.append(first)

        def column(values: list[list], dtype: torch.dtype) -> torch.Tensor:
            out = torch.zeros(len(lengths), max(lengths), dtype=dtype)
            for row, own in enumerate(values):
                out[row, : len(own)] = torch.tensor(own, dtype=dtype)
            return out

        def field(place: int, dtype: torch.dtype) -> torch.Tensor:
            return column([[step[place] for step in steps] for steps in table], dtype)

        place, goal, following = (field(i, torch.float32).unsqueeze(-1) for i in (0, 2, 5))
        fields = {
            "env/obs/place": place, "env/obs/achieved_goal": place, "env/obs/desired_goal": goal,
            "next/obs/place": following, "next/obs/achieved_goal": following, "next/obs/desired_goal": goal,
            "env/is_first": column(firsts, torch.bool), "agent/action": field(1, torch.int64),
            "next/reward": reached(following, goal)[0], "next/terminated": field(3, torch.bool),
            "next/truncated": field(4, torch.bool),
        }  # fmt: skip
        return Trajectories(DictTensor.empty(len(lengths)), TemporalDictTensor(fields, lengths), DictTensor.empty(0))


def reference(run: list[tuple], goal: int, relabelled: bool, n_step: int) -> tuple:
    """Return reward, discount, terminated, truncated and next place of the steps `run` towards a goal, one by one."""
    total, discount = 0.0, 1.0
    for step in run[:n_step]:
        total += discount * (step[5] == goal)
        discount *= 0.5
        terminated = step[3]
        if relabelled:
            terminated = step[5] == goal or (step[3] and step[5] != step[2])
        if terminated:
            break
    return total, discount, terminated, step[4], step[5]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_everything_drawn_agrees_with_the_reference_as_the_rings_wrap_around(seed: int, n_step: int) -> None:
    known = Steps(3, seed)
    hindsight = Hindsight(0.7, reached)
    buffer = ReplayBuffer(SPECS, capacity=120, num_envs=3, hindsight=hindsight)
    later_goals = 0
    for _ in range(30):
        for _ in range(3):
            buffer.add(known.piece())
        if not known.count:
            continue
        places = {
            step[1]: episode[t:]
            for row in known.rows for episode in row for t, step in enumerate(episode)
        }  # fmt: skip
        steps = buffer.sample(100, torch.Generator().manual_seed(seed), n_step=n_step, gamma=0.5).steps
        for i in range(100):
            run = places[steps["agent/action"][i].item()]
            goal = int(steps["env/obs/desired_goal"][i])
            found = (
                *(steps[f"next/{key}"][i].item() for key in ("reward", "discount", "terminated", "truncated")),
                int(steps["next/obs/place"][i]),
            )
            relabelled = goal in {step[5] for step in run}
            allowed = [reference(run, goal, True, n_step)] * relabelled
            allowed += [reference(run, goal, False, n_step)] * (goal == run[0][2])
            assert found in allowed
            later_goals += goal != run[0][2]
    assert later_goals > 500
    assert buffer.num_added > 3 * buffer.num_slots / 2


def test_a_buffer_restored_draws_the_same_goals() -> None:
    known = Steps(2, 0)
    first, again = (ReplayBuffer(SPECS, capacity=60, num_envs=2, hindsight=Hindsight(0.8, reached)) for _ in range(2))
    for _ in range(40):
        first.add(known.piece())
    again.load_state_dict(first.state_dict())
    for _ in range(3):
        piece = known.piece()
        found = []
        for buffer in (first, again):
            buffer.add(piece)
            found.append(buffer.sample(200, torch.Generator().manual_seed(1)).steps)
        for key in found[0]:
            assert torch.equal(found[0][key], found[1][key]), key


@pytest.mark.parametrize("name", ["next/reward", "next/terminated"])
def test_rewards_and_ends_that_do_not_follow_from_the_goals_are_refused(name: str) -> None:
    piece = walk([0, 1, 2], 2, "terminated")
    piece.steps[name][0, 1] = 0
    with pytest.raises(SpecError, match="paid 0, but .* pays 1" if name == "next/reward" else "did not end"):
        buffer_of(piece)


def test_recurrent_agents_are_refused() -> None:
    state = {"hidden": Spec((), torch.float32)}
    with pytest.raises(UserError, match="recurrent"):
        ReplayBuffer(SPECS, capacity=100, num_envs=1, state=state, hindsight=Hindsight(0.8, reached))
    with pytest.raises(UserError, match="only single transitions"):
        buffer_of(walk([0, 1], 2, "truncated")).sample_sequences(2, torch.Generator(), num_steps=2)


def test_transitions_of_decisions_last_until_the_next_one_and_keep_their_goals() -> None:
    decided = torch.tensor([[True, False, False, True, False]])
    piece = walk([0, 1, 2, 3, 4, 5], 2, "truncated").with_steps(**{"agent/new_option": decided})
    piece.steps["next/terminated"][:] = False
    piece.steps["next/reward"][0] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])

    def as_it_was(achieved: torch.Tensor, desired: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 ** (achieved - 1).squeeze(-1), torch.zeros(len(achieved), dtype=torch.bool)

    buffer = ReplayBuffer(
        SPECS, capacity=100, num_envs=1, extra={"agent/new_option": Spec((), torch.bool)},
        hindsight=Hindsight(1.0, as_it_was),
    )  # fmt: skip
    buffer.add(piece)
    whole = {0: {(2, 3, False, False, 0.125, 3)}, 3: {(2, 16, False, True, 0.25, 5)}}
    assert outcomes(buffer, n_step=10, decision="agent/new_option") == whole
    assert outcomes(buffer, n_step=2, decision="agent/new_option") == {**whole, 0: {(2, 2, False, False, 0.25, 2)}}


def test_decisions_that_are_added_later_are_drawn_too() -> None:
    buffer = ReplayBuffer(SPECS, capacity=100, num_envs=1, extra={"agent/new_option": Spec((), torch.bool)})
    for number in (0, 10):
        decided = torch.tensor([[True, False]])
        buffer.add(walk([0, 1, 2], 9, "truncated", number=number).with_steps(**{"agent/new_option": decided}))
        assert outcomes(buffer, decision="agent/new_option").keys() == set(range(0, number + 1, 10))


def test_a_draw_among_decisions_of_which_there_are_none_is_refused() -> None:
    buffer = ReplayBuffer(SPECS, capacity=100, num_envs=1, extra={"agent/new_option": Spec((), torch.bool)})
    buffer.add(walk([0, 1], 9, "truncated").with_steps(**{"agent/new_option": torch.tensor([[False]])}))
    with pytest.raises(UserError, match="no step has it"):
        buffer.sample(4, torch.Generator(), decision="agent/new_option")

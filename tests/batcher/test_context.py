"""The context of a piece: the steps before it, of the episodes that go on, for agents that read their history."""

from functools import partial

import pytest
import torch

from rlx.agent import replay
from rlx.batcher import Batcher, EpisodeBatcher
from rlx.data import DictTensor
from rlx.errors import AgentError, DataRevokedError
from tests.batcher.ledger import Counter, Parity
from tests.batcher.test_batcher import MODES, batcher, row_of


class Historian(Counter):
    """Reads `history_length` steps, all that can be seen of them; notes how many it was given at each recall."""

    def __init__(self, specs, history_length: int = 4) -> None:
        super().__init__(specs)
        self.history_length = history_length
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.recalled: list[list[int]] = []

    def recall(self, context, state, agent_info):
        self.recalled.append(context.lengths.tolist())
        return state.select("count") | DictTensor({"cache": torch.ones(state.batch_size, 2)})

    def forward(self, observation, state, agent_info, taken=None):
        outputs, new_state = super().forward(observation, state.select("count"), agent_info, taken)
        return outputs, new_state | state.select("cache")


def check_context(b: Batcher, num_pieces: int, history_length: int) -> set[int]:
    """Check the context of consecutive pieces against the steps of those before; return the lengths that occurred."""
    rows: list[list[dict]] = [[] for _ in range(b.num_envs)]
    found: set[int] = set()
    b.publish(Historian(b.specs, history_length))
    for _ in range(num_pieces):
        piece = b.collect()
        assert piece.context.leading_shape == (b.num_envs, history_length)
        for row in range(b.num_envs):
            steps = row_of(piece, row)
            before = []
            if steps and not steps[0]["env/is_first"]:
                for step in reversed(rows[row]):
                    before.insert(0, step)
                    if step["env/is_first"] or len(before) == history_length:
                        break
            length = int(piece.context.lengths[row])
            found.add(length)
            if steps:
                assert length == len(before)
            for place, step in enumerate(before):
                for key in piece.context.keys():  # noqa: SIM118
                    assert piece.context[key][row, place].tolist() == step[key], (key, row, place)
            rows[row].extend(steps)
        assert {"env/obs", "env/prev_action", "env/prev_reward", "env/is_first", "agent/action"} < set(piece.context)
    return found


SIZES = [(5, 4), (2, 6), (1, 3), (3, 1)]


@pytest.mark.parametrize(
    ("num_steps", "history_length", "workers"), [*((*size, "local") for size in SIZES), (2, 6, "process")]
)
@pytest.mark.parametrize("mode", MODES)
def test_context_holds_the_episodes_own_steps_before_the_piece(
    mode: str, num_steps: int, history_length: int, workers: str
) -> None:
    make_agent = partial(Historian, history_length=history_length)
    with batcher(MODES[mode], make_agent, num_steps=num_steps, workers=workers) as b:
        found = check_context(b, 30 // num_steps + 6, history_length)
    assert found >= {0, 1, history_length}


@pytest.mark.parametrize("mode", ["per_instance", "disabled"])
def test_context_follows_the_one_episode_of_stop_mode_and_is_cleared_by_a_reset(mode: str) -> None:
    with batcher(MODES[mode], Historian, num_steps=2, stop_at_episode_end=True) as b:
        assert check_context(b, 4, 4) >= {0, 2, 4}
        b.reset()
        assert b.collect().context.lengths.sum() == 0
        b.collect()
        b.reset()
        assert b.collect().context.lengths.sum() == 0


def kept(worker) -> dict:
    return worker.rollout.get_state()["context"]


@pytest.mark.parametrize("mode", MODES)
def test_a_state_holds_nothing_of_episodes_that_are_over(mode: str) -> None:
    with batcher(MODES[mode], Historian, num_steps=2) as b:
        b.publish(Historian(b.specs))
        for _ in range(12):
            b.collect()
            for state in b.call(kept):
                for row, length in enumerate(state["lengths"].tolist()):
                    assert all(not value[length:, row].any() for value in state["fields"].values())


def recalled(worker) -> list[list[int]]:
    return worker._rollout.agent.recalled


def test_agents_recall_their_history_when_their_weights_change_and_only_then() -> None:
    with batcher(make_agent=Historian, num_workers=1) as b:
        agent = Historian(b.specs)
        b.publish(agent)
        lengths: list[list[int]] = []
        for number in range(6):
            if number == 3:
                b.publish(agent)
            b.execute(agent_info=DictTensor({"kind": torch.zeros(3)}) if number == 4 else None)
            lengths.append(b.get()[0].context.lengths.tolist())
        assert b.call(recalled) == [[[0, 0, 0], lengths[3], lengths[4]]]
        b.reset()
        b.collect()
        assert b.call(recalled)[0][3:] == [[0, 0, 0]]


def derived(worker) -> list[list[float]]:
    return worker._rollout._state["cache"].tolist()


def test_what_is_derived_is_neither_stored_nor_reset() -> None:
    with batcher(make_agent=Historian) as b:
        b.publish(Historian(b.specs))
        for _ in range(4):
            piece = b.collect()
            assert set(piece.info) == {"agent_state/count"}
        assert b.call(derived) == [[[1.0, 1.0]] * 3] * 2


def test_agents_without_history_have_no_context_and_no_memory_for_it() -> None:
    with batcher() as b, batcher(make_agent=Historian) as with_history:
        piece = b.collect()
        assert piece.context.max_length == 0
        assert not any("context" in name for name in b._layout.slots[0])
        with_history.publish(Historian(with_history.specs))
        with_history.collect()
        slot = with_history._layout.slots[0]
        assert slot["context/env/obs"].shape == (4, 6, 3)


def test_context_travels_with_its_sequences_and_is_handed_back_with_them() -> None:
    with batcher(make_agent=Historian, num_steps=3) as b:
        b.publish(Historian(b.specs))
        b.collect()
        piece = b.collect()
        kept, chosen = piece.clone(), piece.rows(torch.tensor([4, 1]))
        assert torch.equal(chosen.context["env/obs"], piece.context["env/obs"][[4, 1]])
        parts = list(piece.select("env/obs").minibatches(6, torch.Generator().manual_seed(0)))
        assert [part.context.batch_size for part in parts] == [2, 2, 2]
        for part in parts:
            for row in range(2):
                seen = part.steps["env/obs"][row, 0]  # (seed, episode, step): tells which sequence it is
                place = (kept.steps["env/obs"][:, 0] == seen).all(-1).nonzero()[0, 0]
                length = int(kept.context.lengths[place])
                assert int(part.context.lengths[row]) == length
                assert torch.equal(part.context["env/obs"][row, :length], kept.context["env/obs"][place, :length])
        b.collect()
        with pytest.raises(DataRevokedError):
            piece.context["env/obs"]
        assert kept.context["env/obs"].shape == (6, 4, 3)


def test_sequences_that_lost_their_context_are_refused() -> None:
    with batcher(make_agent=Historian, num_steps=3) as b:
        agent = Historian(b.specs)
        b.publish(agent)
        b.collect()
        piece = b.collect()
        assert replay(agent, piece)["count"].shape == (6, 3)
        piece.context = piece.context.slice_time(0, 0)
        with pytest.raises(AgentError, match=r"Historian reads 4 steps of history.*without the steps before"):
            replay(agent, piece)


def test_whole_episodes_need_no_context() -> None:
    with EpisodeBatcher(
        Historian, MODES["per_instance"], num_workers=1, envs_per_worker=3, num_steps=2, seed=3, workers="local"
    ) as b:
        agent = Historian(b.specs)
        b.publish(agent)
        episodes = b.collect()
        assert episodes.context.lengths.tolist() == [0] * 3
        outputs = replay(agent, episodes)
    mask = episodes.steps.mask()
    assert torch.equal(outputs["count"][mask], episodes.steps["agent/count"][mask])


def test_a_wrong_history_length_is_refused() -> None:
    class Wrong(Parity):
        history_length = -1

    with batcher(make_agent=Wrong) as b, pytest.raises(AgentError, match=r"Wrong.history_length: got -1"):
        b.reset()

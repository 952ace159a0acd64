"""The transformer gives at replay what its cache gave while acting, sees its window and no more, at a constant cost."""

import os
import signal
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rlx.agent import TransformerActorCritic, replay, values
from rlx.agent.attention import attend_to_window
from rlx.batcher import Batcher, EpisodeBatcher
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.env import make
from rlx.errors import AgentError
from tests.agent.agents import SPECS, steps_of
from tests.batcher.test_batcher import MODES

NUMBERS = {
    "num_layers": 3, "window": 3, "model_size": 8, "num_heads": 2, "feedforward_size": 16, "activation": "tanh",
    "critic_hidden_sizes": [8], "prev_action": True, "prev_reward": True, "log_std_init": -0.5,
}  # fmt: skip


def maker(**changes) -> partial[TransformerActorCritic]:
    return partial(TransformerActorCritic, **NUMBERS | changes)


def shuffle_weights(agent: TransformerActorCritic, seed: int) -> None:
    """Give the agent other weights altogether."""
    torch.manual_seed(seed)
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.5)


def check_logits(agent: TransformerActorCritic, piece: Trajectories) -> None:
    mask = piece.steps.mask()
    for key in ("logits", "mean"):
        if f"agent/{key}" in piece.steps:
            stored = piece.steps[f"agent/{key}"][mask]
            torch.testing.assert_close(replay(agent, piece)[key][mask], stored, rtol=1e-5, atol=1e-5)
            assert stored.std() > 0.02


@pytest.mark.parametrize("workers", ["local", "process"])
@pytest.mark.parametrize(("num_layers", "window"), [(2, 4), (3, 8)])
def test_replay_gives_acting_logits_in_the_middle_of_episodes_after_changes_of_weights(
    num_layers: int, window: int, workers: str
) -> None:
    make_agent, make_env = maker(num_layers=num_layers, window=window), partial(make, "Pendulum-v1")
    with Batcher(
        make_agent, make_env, num_workers=2, envs_per_worker=2, num_steps=9, seed=0, workers=workers
    ) as batcher:
        agent = make_agent(batcher.specs)
        for number in range(8):  # one episode of 200 steps is not over yet
            if number % 3 != 2:
                shuffle_weights(agent, number)
                batcher.publish(agent)
            piece = batcher.collect()
            assert piece.context.lengths.tolist() == [min(9 * number, num_layers * (window - 1))] * 4
            assert piece.info["agent_state/position"].tolist() == [9 * number] * 4
            check_logits(agent, piece)


@pytest.mark.parametrize("stop", [False, True], ids=["auto-reset", "stop mode"])
@pytest.mark.parametrize("mode", MODES)
def test_replay_gives_acting_logits_in_every_mode_with_resets_inside_pieces(mode: str, stop: bool) -> None:
    with Batcher(
        maker(), MODES[mode], num_workers=1, envs_per_worker=6, num_steps=4, seed=3, workers="local",
        stop_at_episode_end=stop,
    ) as batcher:  # fmt: skip
        agent = maker()(batcher.specs)
        for number in range(2 if stop else 8):
            shuffle_weights(agent, number)
            batcher.publish(agent)
            check_logits(agent, batcher.collect())


def test_whole_episodes_replay_as_they_were_played() -> None:
    with EpisodeBatcher(
        maker(), MODES["per_instance"], num_workers=1, envs_per_worker=6, num_steps=3, seed=3, workers="local"
    ) as batcher:
        agent = maker()(batcher.specs)
        shuffle_weights(agent, 0)
        batcher.publish(agent)
        episodes = batcher.collect()
        assert len(set(episodes.steps.lengths.tolist())) > 2
        check_logits(agent, episodes)


class Keeping(TransformerActorCritic):
    """Keeps the state with which each step began."""

    def forward(self, observation, state, agent_info, taken=None):
        outputs, new_state = super().forward(observation, state, agent_info, taken)
        return outputs | state.select("position"), new_state

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.select("position")

    def actor(self):
        return self


def test_parts_of_whole_episodes_replay_as_they_were_played() -> None:
    make_keeping = partial(Keeping, **maker().keywords)
    with EpisodeBatcher(
        make_keeping, MODES["per_instance"], num_workers=1, envs_per_worker=6, num_steps=3, seed=3, workers="local"
    ) as batcher:
        agent = make_keeping(batcher.specs)
        shuffle_weights(agent, 0)
        batcher.publish(agent)
        episodes = batcher.collect()
    parts = episodes.split_sequences(2, states=episodes.steps.group("agent").select("position"))
    assert parts.context.lengths.any()
    check_logits(agent, parts)


def test_minibatches_of_whole_sequences_keep_their_context() -> None:
    with Batcher(
        maker(), partial(make, "CartPole-v1"), num_workers=1, envs_per_worker=6, num_steps=8, seed=0, workers="local"
    ) as batcher:
        agent = maker()(batcher.specs)
        shuffle_weights(agent, 0)
        batcher.publish(agent)
        batcher.collect()
        piece = batcher.collect()
        assert piece.context.lengths.sum() > 0
        for minibatch in piece.select("env", "agent").minibatches(16, torch.Generator().manual_seed(0)):
            assert minibatch.batch_size == 2
            check_logits(agent, minibatch)
        check_logits(agent, piece.rows(torch.tensor([3, 1])))
        check_logits(agent, piece.clone())


def test_values_at_a_border_are_those_of_the_piece_that_follows() -> None:
    with Batcher(
        maker(), partial(make, "Pendulum-v1"), num_workers=1, envs_per_worker=3, num_steps=5, seed=0, workers="local"
    ) as batcher:
        agent = maker()(batcher.specs)
        shuffle_weights(agent, 0)
        batcher.publish(agent)
        following = None
        for _ in range(4):
            piece = batcher.collect()
            value, after = values(agent, piece)
            if following is not None:
                torch.testing.assert_close(value[:, 0], following, rtol=1e-5, atol=1e-5)
            following = after[:, -1]


def influence(agent: TransformerActorCritic, trajectories: Trajectories, time: int) -> list[int]:
    """Return the steps whose observation reaches the output of step `time` of the one sequence there is."""
    steps = trajectories.steps
    seen = steps["env/obs"].clone().requires_grad_()
    steps = steps.exclude("env/obs") | TemporalDictTensor({"env/obs": seen}, steps.lengths)
    outputs = replay(agent, Trajectories(trajectories.info, steps, trajectories.bootstrap))
    outputs["logits"][0, time].square().sum().backward()
    return (seen.grad[0] != 0).any(-1).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(("num_layers", "window"), [(1, 5), (2, 3), (3, 3), (2, 40)])
def test_a_step_sees_its_own_episode_as_far_back_as_the_declared_history_and_nothing_else(
    num_layers: int, window: int
) -> None:
    agent = maker(num_layers=num_layers, window=window, prev_action=False, prev_reward=False)(SPECS)
    shuffle_weights(agent, 1)
    assert agent.history_length == num_layers * (window - 1)
    trajectories = steps_of([24], 24)
    first = torch.zeros(1, 24, dtype=torch.bool)
    first[0, [0, 4, 6]] = True
    steps = trajectories.steps.exclude("env/is_first") | TemporalDictTensor({"env/is_first": first}, [24])
    info = DictTensor({"agent_state/position": torch.zeros(1, dtype=torch.int64)})
    trajectories = Trajectories(info, steps, trajectories.bootstrap)
    for time in (0, 3, 4, 5, 6, 13, 23):
        start = max(begin for begin in (0, 4, 6) if begin <= time)
        assert influence(agent, trajectories, time) == list(range(max(start, time - agent.history_length), time + 1))


class Costs(TorchDispatchMode):
    """Counts the operations that run inside, and the numbers that they put out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations[str(function)] += 1
        self.numbers += sum(x.numel() for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
        return out


@torch.no_grad()
def test_a_step_costs_the_same_however_long_the_episode_is() -> None:
    agent = maker(window=4, prev_action=False, prev_reward=False)(SPECS)
    actor, nothing, generator = agent.actor(), DictTensor.empty(2), torch.Generator()
    no_steps = TemporalDictTensor({}, [0, 0])
    state = actor.recall(no_steps, actor.initial_state(nothing, 2), nothing)
    memory = [state[f"cache/{layer}"].data_ptr() for layer in range(3)]
    seen = {"obs": torch.randn(2, 3)}
    out = {"action": torch.zeros(2, dtype=torch.int64), "logits": torch.zeros(2, 4)}
    found = []
    for _ in range(60):
        with Costs() as costs:
            state = actor.act_into(DictTensor(seen), state, nothing, generator, out)
        found.append((costs.operations, costs.numbers))
        assert [state[f"cache/{layer}"].data_ptr() for layer in range(3)] == memory  # a ring, written in place
    assert all(cost == found[0] for cost in found)
    assert not any("aten.cat" in name for name in found[0][0])
    assert state["position"].tolist() == [60, 60]


def test_a_piece_costs_the_same_however_long_the_episode_is() -> None:
    with Batcher(
        maker(), partial(make, "Pendulum-v1"), num_workers=1, envs_per_worker=2, num_steps=8, seed=0, workers="local"
    ) as batcher:
        agent = maker()(batcher.specs)
        found = []
        for _ in range(20):  # 160 of an episode's 200 steps
            batcher.publish(agent)
            with Costs() as costs:
                batcher.collect()
            found.append((costs.operations, costs.numbers))
    assert found[1][1] > 0
    assert all(cost == found[1] for cost in found[2:])


def test_a_replay_costs_in_proportion_to_the_steps() -> None:
    agent = maker(window=4)(SPECS)
    numbers = []
    for length in (64, 128, 256):
        with Costs() as costs:
            steps = steps_of([length] * 2, length)
            steps.steps |= TemporalDictTensor({"env/prev_action": steps.steps["agent/action"]}, [length] * 2)
            steps.info = DictTensor({"agent_state/position": torch.zeros(2, dtype=torch.int64)})
            replay(agent, steps)
        numbers.append(costs.numbers)
    assert numbers[2] < 2.05 * numbers[1] < 2.05**2 * numbers[0]


@pytest.mark.parametrize("num_queries", [1, 2, 4, 5, 8, 19])
@pytest.mark.parametrize("window", [2, 4, 7])
def test_window_attention_is_masked_attention_over_all_pairs(window: int, num_queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    total = num_queries + window - 1
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    query, keys, values_, ages = (
        draw(2, 3, num_queries, 5),
        draw(2, 3, total, 5),
        draw(2, 3, total, 5),
        draw(3, window, 5),
    )
    segment = (torch.rand(2, total, generator=generator) < 0.2).long().cumsum(1) - 1
    found = attend_to_window(query, keys, values_, ages, segment)
    expected = torch.zeros_like(query)
    for row in range(2):
        for head in range(3):
            for q in range(num_queries):
                here = q + window - 1
                seen = [k for k in range(q, here + 1) if segment[row, k] == segment[row, here]]
                scores = torch.stack([query[row, head, q] @ (keys[row, head, k] + ages[head, here - k]) for k in seen])
                expected[row, head, q] = scores.softmax(0) @ values_[row, head, seen]
    torch.testing.assert_close(found, expected)


@pytest.mark.faults
def test_replay_gives_acting_logits_after_a_worker_was_replaced() -> None:
    with Batcher(
        maker(), partial(make, "Pendulum-v1"), num_workers=2, envs_per_worker=2, num_steps=5, seed=0
    ) as batcher:
        agent = maker()(batcher.specs)
        shuffle_weights(agent, 0)
        batcher.publish(agent)
        for number in range(6):
            if number == 3:
                os.kill(batcher._handles[0].pid, signal.SIGKILL)
            piece = batcher.collect()
            check_logits(agent, piece)
        assert batcher.restarts == 1
        assert piece.info["agent_state/position"].tolist() == [10, 10, 25, 25]


def test_acting_on_from_inside_an_episode_without_its_past_is_refused() -> None:
    agent = maker(prev_action=False, prev_reward=False)(SPECS)
    seen, nothing = DictTensor({"obs": torch.randn(2, 3)}), DictTensor.empty(2)
    outputs, state = agent.forward(seen, agent.initial_state(nothing, 2), nothing)
    assert outputs["logits"].shape == (2, 4)
    with pytest.raises(AgentError, match=r"recall\(context, state, agent_info\) comes first"):
        agent.forward(seen, state.select("position"), nothing)


def test_with_gradients_one_can_go_back_to_an_earlier_state() -> None:
    agent = maker(prev_action=False, prev_reward=False)(SPECS)
    nothing, observations = DictTensor.empty(2), torch.randn(9, 2, 3)
    states, found = [agent.initial_state(nothing, 2)], []
    for seen in observations:
        outputs, state = agent.forward(DictTensor({"obs": seen}), states[-1], nothing)
        states.append(state)
        found.append(outputs["logits"])
    for time, seen in enumerate(observations):
        outputs, _ = agent.forward(DictTensor({"obs": seen}), states[time], nothing)
        assert torch.equal(outputs["logits"], found[time])
    torch.stack(found).sum().backward()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(AgentError, match=r"agent.num_heads: got 3, expected a divisor of agent.model_size=8"):
        maker(num_heads=3)(SPECS)
    with pytest.raises(AgentError, match=r"agent.activation: got 'tan'.*tanh"):
        maker(activation="tan")(SPECS)

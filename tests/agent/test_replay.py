"""Replay gives at learning time what acting gave, and values see each observation once."""

from functools import partial

import pytest
import torch

from rlx.agent import Agent, GRUActorCritic, TransformerActorCritic, reset_state
from rlx.agent.replay import burn_in, replay, replay_next, replay_with_values, values
from rlx.batcher import Batcher
from rlx.data import DictTensor, Trajectories
from rlx.env import make
from rlx.errors import AgentError
from tests.agent.agents import SPECS, Recurrent, actor_critic, steps_of
from tests.batcher.ledger import ID


@pytest.mark.parametrize("make_agent", [actor_critic, Recurrent], ids=["stateless", "recurrent"])
@pytest.mark.parametrize("stop", [False, True], ids=["auto-reset", "stop mode"])
def test_logits_at_acting_time_equal_logits_at_replay_across_slot_borders(make_agent, stop: bool) -> None:
    with Batcher(
        make_agent, partial(make, ID), num_workers=2, envs_per_worker=3, num_steps=4, seed=0, workers="local",
        stop_at_episode_end=stop,
    ) as batcher:  # fmt: skip
        torch.manual_seed(1)
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        for _ in range(1 if stop else 4):
            piece = batcher.collect()
            outputs = replay(agent, piece)
            mask = piece.steps.mask()
            assert mask.any()
            torch.testing.assert_close(outputs["logits"][mask], piece.steps["agent/logits"][mask], rtol=1e-5, atol=1e-5)
            assert outputs["logits"].requires_grad


def test_states_are_reset_inside_a_sequence_and_only_there() -> None:
    torch.manual_seed(0)
    trajectories = steps_of([6, 6, 6], 6)
    agent = Recurrent(specs_of())
    info = DictTensor({"agent_state/hidden": torch.randn(3, 6)})
    trajectories.info = info
    outputs = replay(agent, trajectories)
    for row in range(3):
        hidden = info["agent_state/hidden"][row : row + 1]
        for t in range(6):
            if trajectories.steps["env/is_first"][row, t]:
                hidden = torch.full((1, 6), 0.1)
            seen = torch.cat(
                [trajectories.steps["env/obs"][row, t], trajectories.steps["env/prev_reward"][row, t : t + 1]]
            )
            hidden = agent.cell(seen.unsqueeze(0), hidden)
            torch.testing.assert_close(outputs["logits"][row, t], agent.head(hidden)[0, :4])


def specs_of():
    from tests.agent.agents import SPECS

    return SPECS


@pytest.mark.parametrize("lengths", [[6, 6, 6], [3, 0, 6]], ids=["full", "ragged"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["stateless", "recurrent"])
def test_values_bootstrap_truncations_and_borders_and_give_zero_after_termination(lengths, recurrent: bool) -> None:
    torch.manual_seed(0)
    trajectories = steps_of(lengths, 6, seed=4)
    agent = Recurrent(specs_of()) if recurrent else actor_critic()
    if recurrent:
        trajectories.info = DictTensor({"agent_state/hidden": torch.randn(3, 6)})
    value, following = values(agent, trajectories)
    steps, empty = trajectories.steps, DictTensor.empty(1)
    kinds = set()
    for row, length in enumerate(lengths):
        state = trajectories.info.group("agent_state")[row : row + 1] if recurrent else empty
        for t in range(length):
            seen = DictTensor(
                {key: steps[f"env/{key}"][row : row + 1, t] for key in ("obs", "prev_reward", "is_first")}
            )
            state = reset_state(agent, state, seen["is_first"], empty)
            outputs, state = agent.forward(seen, state, empty)
            torch.testing.assert_close(value[row, t], outputs["value"][0])
            if steps["next/terminated"][row, t]:
                expected = torch.tensor(0.0)
                kinds.add("terminated")
            else:
                after = DictTensor(
                    {
                        "obs": steps["next/obs"][row : row + 1, t],
                        "prev_reward": steps["next/reward"][row : row + 1, t],
                        "is_first": torch.tensor([False]),
                    }
                )
                inside = not steps["next/truncated"][row, t] and t + 1 < length
                if inside:
                    after = DictTensor(
                        {
                            "obs": after["obs"],
                            "prev_reward": steps["env/prev_reward"][row : row + 1, t + 1],
                            "is_first": after["is_first"],
                        }
                    )
                expected = agent.forward(after, state, empty)[0]["value"][0]
                kinds.add("truncated" if steps["next/truncated"][row, t] else "inside" if inside else "border")
            torch.testing.assert_close(following[row, t], expected)
    assert kinds == {"terminated", "truncated", "inside", "border"}


@pytest.mark.parametrize("recurrent", [False, True])
def test_what_followed_is_seen_as_the_environment_showed_it_with_the_state_after_the_step(recurrent: bool) -> None:
    torch.manual_seed(0)
    trajectories = steps_of([6, 4, 1], 6, seed=3)
    trajectories.info = DictTensor({"agent_state/hidden": torch.randn(3, 6)})
    agent = Recurrent(SPECS) if recurrent else actor_critic()
    found, steps = replay_next(agent, trajectories)["logits"], trajectories.steps
    compared = 0
    for row, length in enumerate(steps.lengths.tolist()):
        info = DictTensor.empty(1)
        state = trajectories.info[row].group("agent_state") if recurrent else DictTensor.empty(1)
        for t in range(length):
            seen = steps.at(t)[row].group("env")
            state = reset_state(agent, state, seen["is_first"], info)
            _, state = agent.forward(seen, state, info)
            if steps["next/terminated"][row, t]:
                continue
            goes_on = t + 1 < length and not steps["next/truncated"][row, t]
            paid = steps["env/prev_reward"][row, t + 1] if goes_on else steps["next/reward"][row, t]
            after = {"obs": steps["next/obs"][row, t : t + 1], "prev_reward": paid.unsqueeze(0)}
            expected = agent.forward(DictTensor(after), state, info)[0]["logits"][0]
            torch.testing.assert_close(found[row, t], expected)
            compared += 1
    assert compared > 5


MEMORY = {
    "activation": "tanh", "critic_hidden_sizes": [8], "prev_action": True, "prev_reward": False, "log_std_init": 0.0,
}  # fmt: skip
make_gru = {"kind": GRUActorCritic, "hidden_sizes": [8], "state_size": 8} | MEMORY
make_transformer = {
    "kind": TransformerActorCritic, "num_layers": 2, "window": 3, "model_size": 8, "num_heads": 2,
    "feedforward_size": 8,
} | MEMORY  # fmt: skip


class SeesAll(Agent):
    """Puts out what it sees, without a state."""

    inputs = ("obs", "prev_reward", "prev_action", "is_first")

    def forward(self, observation, state, agent_info, taken=None):
        first = observation["is_first"].float()
        seen = torch.stack([observation["obs"][:, 0], observation["prev_reward"], first], dim=-1)
        return DictTensor({"seen": seen, "prev_action": observation["prev_action"]}, len(first)), state


@pytest.mark.parametrize("length", [1, 6])
def test_what_followed_a_step_is_in_its_episode_and_comes_with_what_the_step_did_and_was_paid(length: int) -> None:
    steps = steps_of([length] * 3, length, seed=3).steps
    trajectories = Trajectories(DictTensor.empty(3), steps, DictTensor.empty(0))
    found = replay_next(SeesAll(), trajectories)
    assert torch.equal(found["seen"][..., 0], steps["next/obs"][..., 0])
    assert torch.equal(found["seen"][..., 1], steps["next/reward"])
    assert not found["seen"][..., 2].any()
    assert torch.equal(found["prev_action"], steps["agent/action"])


def sample_skill(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"skill": torch.randint(3, (), generator=generator)}


def count_forwards(kind: type) -> type:
    class Counted(kind):
        forwards = 0

        def memorise(self, seen, state):
            type(self).forwards += 1
            return super().memorise(seen, state)

    return Counted


def lean_by_skill(kind: type) -> type:
    class Skilled(kind):
        def forward(self, observation, state, agent_info, taken=None):
            outputs, state = super().forward(observation, state, agent_info, taken)
            logits = outputs["logits"] + 2.0 * agent_info["skill"].unsqueeze(1) * torch.arange(
                outputs["logits"].shape[1]
            )
            return outputs.exclude("logits") | DictTensor({"logits": logits}), state

        def actor(self):
            return self

    return Skilled


@pytest.mark.parametrize("settings", [make_gru, make_transformer], ids=["gru", "transformer"])
@pytest.mark.parametrize("change", [count_forwards, lean_by_skill])
def test_what_a_sampler_drew_is_replayed_at_once_unless_forward_alone_is_overridden(change, settings) -> None:
    kind = change(settings["kind"])
    make_agent = partial(kind, **{key: value for key, value in settings.items() if key != "kind"})
    with Batcher(
        make_agent, partial(make, ID), num_workers=1, envs_per_worker=4, num_steps=7, seed=0, workers="local"
    ) as batcher:
        batcher.reset(agent_info=sample_skill)
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        for _ in range(3):
            piece = batcher.collect()
            kind.forwards = 0
            outputs = replay(agent, piece)
            torch.testing.assert_close(outputs["logits"], piece.steps["agent/logits"], rtol=1e-5, atol=1e-5)
            assert kind.forwards == 0  # no single steps
        skills = piece.steps["agent_info/skill"]
        assert (skills[:, 1:] != skills[:, :-1]).any()


class Moved(Recurrent):
    """Its memory is moved by the skill."""

    def forward(self, observation, state, agent_info, taken=None):
        outputs, after = super().forward(observation, state, agent_info, taken)
        return outputs, DictTensor({"hidden": after["hidden"] + 0.5 * agent_info["skill"].unsqueeze(1)})

    def actor(self):
        return self


def test_a_burn_in_follows_the_skill_of_each_episode() -> None:
    with Batcher(
        Moved, partial(make, ID), num_workers=1, envs_per_worker=4, num_steps=12, seed=0, workers="local"
    ) as batcher:
        batcher.reset(agent_info=sample_skill)
        agent = Moved(batcher.specs)
        batcher.publish(agent)
        changed = False
        for _ in range(4):
            piece = batcher.collect()
            rest = burn_in(agent, piece, 6)
            mask = rest.steps.mask()
            torch.testing.assert_close(replay(agent, rest)["logits"][mask], rest.steps["agent/logits"][mask])
            inside = ~piece.steps["env/is_first"][:, 0] & ~piece.steps["env/is_first"][:, 6]
            skill = piece.steps["agent_info/skill"]
            changed |= bool(((skill[:, 0] != skill[:, 5]) & inside).any())
        assert changed  # in the steps that were run over, and the memory went on behind them


class Keeping:
    """Before an agent's class: it keeps the state with which each step begins as an output."""

    def forward(self, observation, state, agent_info, taken=None):
        outputs, after = super().forward(observation, state, agent_info, taken)
        return outputs | state.select(*self.initial_state(agent_info, 1)).add_prefix("state"), after

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.group("state").add_prefix("state")

    def actor(self):
        return self


class KeepingRecurrent(Keeping, Recurrent):
    pass


class KeepingTransformer(Keeping, TransformerActorCritic):
    pass


@pytest.mark.parametrize("kind", ["recurrent", "history"])
def test_sequences_cut_in_time_are_replayed_as_the_whole(kind: str) -> None:
    options = {"num_layers": 2, "num_heads": 2, "model_size": 8, "feedforward_size": 8, "window": 3}
    options |= {"activation": "tanh", "critic_hidden_sizes": [8], "log_std_init": 0.0}
    options |= {"prev_action": True, "prev_reward": True}
    make_agent = KeepingRecurrent if kind == "recurrent" else partial(KeepingTransformer, **options)
    with Batcher(
        make_agent, partial(make, ID), num_workers=1, envs_per_worker=4, num_steps=11, seed=0, workers="local"
    ) as batcher:
        torch.manual_seed(1)
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        batcher.collect()
        whole = batcher.collect()
        parts = whole.split_sequences(4, whole.steps.group("agent/state"))
        assert parts.steps.lengths.tolist() == [4, 4, 3] * 4

        def joined(value: torch.Tensor) -> torch.Tensor:
            return value.view(4, 12, *value.shape[2:])[:, :11]

        found, expected = replay(agent, parts), replay(agent, whole)
        torch.testing.assert_close(joined(found["logits"]), expected["logits"], rtol=1e-5, atol=1e-5)
        for part, one in zip(values(agent, parts), values(agent, whole), strict=True):
            torch.testing.assert_close(joined(part), one, rtol=1e-5, atol=1e-5)
        after, one = replay_next(agent, parts)["value"], replay_next(agent, whole)["value"]
        goes_on = ~whole.steps["next/terminated"]
        torch.testing.assert_close(joined(after)[goes_on], one[goes_on], rtol=1e-5, atol=1e-5)


class Counted(Agent):
    """Another agent, with a second value beside its own, that counts the observations it has seen."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent, self.inputs, self.seen = agent, agent.inputs, 0
        self.initial_state, self.act = agent.initial_state, agent.act

    def forward(self, observation, state, agent_info, taken=None):
        self.seen += observation.batch_size
        outputs, state = self.agent.forward(observation, state, agent_info, taken)
        return outputs | DictTensor({"intrinsic": outputs["logits"].sum(-1)}), state


@pytest.mark.parametrize("recurrent", [False, True], ids=["stateless", "recurrent"])
def test_several_values_come_out_of_the_same_pass_each_as_alone(recurrent: bool) -> None:
    torch.manual_seed(0)
    trajectories = steps_of([6, 4, 1], 6)
    agent = Counted(Recurrent(SPECS) if recurrent else actor_critic())
    if recurrent:
        trajectories.info = DictTensor({"agent_state/hidden": torch.randn(3, 6)})
    value, following = values(agent, trajectories)
    once, agent.seen = agent.seen, 0
    outputs, now, then = replay_with_values(agent, trajectories, output=["value", "intrinsic"])
    assert agent.seen == once
    assert torch.equal(now["value"], value)
    assert torch.equal(then["value"], following)
    assert torch.equal(now["intrinsic"], outputs["intrinsic"])
    assert torch.equal(now.lengths, trajectories.steps.lengths)
    for name, found in zip(("now", "then"), values(agent, trajectories, output="intrinsic"), strict=True):
        assert torch.equal(found, {"now": now, "then": then}[name]["intrinsic"])
    with torch.no_grad():
        expected = replay_next(agent, trajectories)["intrinsic"].masked_fill(trajectories.steps["next/terminated"], 0.0)
    mask = trajectories.steps.mask()
    torch.testing.assert_close(then["intrinsic"][mask], expected[mask])
    assert outputs["intrinsic"].requires_grad
    assert not then["intrinsic"].requires_grad


def test_a_value_that_the_agent_does_not_put_out_is_named() -> None:
    with pytest.raises(KeyError, match="intrnsic"):
        values(Counted(actor_critic()), steps_of([2], 2), output=["value", "intrnsic"])


def test_values_of_sequences_that_nothing_says_what_follows_are_refused() -> None:
    agent, trajectories = Recurrent(SPECS), steps_of([6, 6], 6)
    trajectories.info = DictTensor({"agent_state/hidden": torch.zeros(2, 6)})
    alone = actor_critic(SPECS)
    for cut in (trajectories.split_steps(), next(trajectories.minibatches(6, torch.Generator()))):
        with pytest.raises(AgentError, match=r"take the values before minibatches\(\) and split_steps\(\)"):
            values(alone, cut)
    with pytest.raises(AgentError, match="nothing says what follows"):
        values(agent, next(trajectories.minibatches(6, torch.Generator())))


@pytest.mark.parametrize("make_agent", [actor_critic, Recurrent], ids=["stateless", "recurrent"])
def test_trajectories_made_by_hand_have_the_values_of_the_piece_that_they_repeat(make_agent) -> None:
    with Batcher(
        make_agent, partial(make, ID), num_workers=1, envs_per_worker=3, num_steps=30, seed=0, workers="local"
    ) as batcher:
        torch.manual_seed(1)
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        piece = batcher.collect()
        assert piece.steps["next/truncated"].any()
        again = Trajectories(piece.info, piece.steps.clone())
        for found, expected in zip(values(agent, again), values(agent, piece), strict=True):
            torch.testing.assert_close(found, expected)


def test_sequences_that_begin_with_their_episodes_need_no_state() -> None:
    agent, trajectories = Recurrent(SPECS), steps_of([6, 6], 6)
    trajectories.steps["env/is_first"][:, 0] = True
    trajectories.info = DictTensor({"agent_state/hidden": torch.full((2, 6), 0.1)})
    expected = replay(agent, trajectories)["logits"]
    trajectories.info = DictTensor.empty(2)
    assert torch.equal(replay(agent, trajectories)["logits"], expected)
    trajectories.steps["env/is_first"][1, 0] = False
    with pytest.raises(AgentError, match=r"Recurrent has a state \(hidden\).*expected info with 'agent_state/hidden'"):
        replay(agent, trajectories)

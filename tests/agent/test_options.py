"""Options are held for as long as they should be, and the log-probability is that of all that was decided."""

import itertools
from functools import partial

import pytest
import torch

from rlx.agent import OptionActorCritic
from rlx.batcher import Batcher
from rlx.data import DictTensor, TemporalDictTensor
from rlx.env import make
from tests.agent.agents import SPECS
from tests.agent.environments import ID

SETTINGS = {
    "num_options": 3, "termination_init": 0.3, "hidden_sizes": [16], "activation": "tanh", "log_std_init": -0.5,
}  # fmt: skip


def collect(option_steps: int | None, **changes) -> tuple[OptionActorCritic, TemporalDictTensor]:
    """Return an agent and 60 steps of each of 6 environments: pieces of 12 steps, put together."""
    make_agent = partial(OptionActorCritic, **SETTINGS | {"option_steps": option_steps} | changes)
    with Batcher(
        make_agent, partial(make, ID), num_workers=1, envs_per_worker=6, num_steps=12, seed=0, workers="local"
    ) as batcher:
        torch.manual_seed(0)
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        pieces = [batcher.collect().clone().steps for _ in range(5)]
    keys = ("env/is_first", "agent/option", "agent/new_option", "agent/must_choose", "agent/termination_logit")
    fields = {key: torch.cat([piece[key] for piece in pieces], dim=1) for key in keys if key in pieces[0]}
    return agent, TemporalDictTensor(fields, [60] * 6)


def test_an_option_is_held_for_its_steps_across_pieces_and_chosen_anew_in_each_episode() -> None:
    _, steps = collect(option_steps=5)
    ran_out = 0
    for row in range(6):
        held = 0
        for t in range(60):
            first, new = bool(steps["env/is_first"][row, t]), bool(steps["agent/new_option"][row, t])
            assert new == (first or held == 5)
            assert new == bool(steps["agent/must_choose"][row, t])
            ran_out += new and not first
            if not new:
                assert steps["agent/option"][row, t] == steps["agent/option"][row, t - 1]
            held = 1 if new else held + 1
    assert ran_out > 10
    assert len(steps["agent/option"].unique()) == 3


def test_a_learned_end_comes_as_often_as_its_head_says() -> None:
    _, steps = collect(option_steps=None)
    forced, new = steps["agent/must_choose"], steps["agent/new_option"]
    assert torch.equal(forced, steps["env/is_first"])
    assert new[forced].all()
    kept = ~new[:, 1:]
    assert torch.equal(steps["agent/option"][:, 1:][kept], steps["agent/option"][:, :-1][kept])
    probability = steps["agent/termination_logit"][~forced].sigmoid()
    assert probability.mean().item() == pytest.approx(0.3, abs=0.02)
    assert new[~forced].float().mean().item() == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("held", [0, 2], ids=["must choose", "may end"])
@pytest.mark.parametrize("option_steps", [None, 4], ids=["learned end", "4 steps"])
def test_probabilities_of_all_that_can_be_decided_sum_to_one(option_steps: int | None, held: int) -> None:
    torch.manual_seed(0)
    agent = OptionActorCritic(SPECS, **SETTINGS | {"option_steps": option_steps})
    for parameter in agent.parameters():
        parameter.data.normal_()
    observation, empty = DictTensor({"obs": torch.randn(1, 3)}), DictTensor.empty(1)
    state = DictTensor({"option": torch.tensor([1]), "held": torch.tensor([held])})
    outputs, _ = agent.forward(observation, state, empty)
    must = bool(outputs["must_choose"])
    assert must == (held == 0)
    decided = [(True, option) for option in range(3)] if must or option_steps is None else []
    decided += [] if must else [(False, 1)]
    total, mean_log_prob = 0.0, torch.tensor(0.0)
    for (new, option), action in itertools.product(decided, range(4)):
        taken = DictTensor(
            {
                "action": torch.tensor([action]),
                "option": torch.tensor([option]),
                "new_option": torch.tensor([new]),
                "must_choose": torch.tensor([must]),
            }
        )
        replayed, after = agent.forward(observation, state, empty, taken)
        log_prob = agent.log_prob(replayed, taken)
        total += log_prob.exp().item()
        mean_log_prob = mean_log_prob + log_prob.exp().detach() * log_prob
        assert after["option"].item() == option
        assert after["held"].item() == (1 if new else held + 1)
        assert replayed["value"] == outputs["value"]  # known before anything is decided
    assert total == pytest.approx(1.0, abs=1e-5)
    mean_log_prob.sum().backward()
    upper = agent.network.weights[-1].grad[1]
    assert bool(upper[:, :3].any()) == bool(must or option_steps is None)  # the choice is open, or it is not
    if option_steps is None:
        assert bool(upper[:, 3:].any()) == (not must)


def test_deterministic_rows_take_the_modes_of_both_levels() -> None:
    torch.manual_seed(0)
    agent = OptionActorCritic(SPECS, **SETTINGS | {"option_steps": None})
    for parameter in agent.parameters():
        parameter.data.normal_()
    size = 50
    observation = DictTensor({"obs": torch.randn(size, 3)})
    state = DictTensor({"option": torch.arange(size) % 3, "held": torch.arange(size) % 2})
    info = DictTensor({"deterministic": torch.ones(size, dtype=torch.bool)})
    outputs, unchanged = agent.forward(observation, state, info)
    taken = agent.act(outputs, info, torch.Generator().manual_seed(0))
    ends = (state["held"] == 0) | (outputs["termination_logit"] > 0)
    option = torch.where(ends, outputs["option_logits"].argmax(-1), state["option"])
    assert torch.equal(taken["new_option"], ends)
    assert 0 < ends.sum() < size
    assert torch.equal(taken["option"], option)
    assert torch.equal(taken["action"], outputs["policies"][torch.arange(size), option].argmax(-1))
    after = agent.remember(unchanged, taken)
    assert torch.equal(after["option"], option)
    actor, empty = agent.actor(), DictTensor.empty(size)
    alone, _ = actor.forward(observation, state, empty)
    assert set(outputs.keys()) - set(alone.keys()) == {"value"}
    for key in alone.keys():  # noqa: SIM118
        torch.testing.assert_close(alone[key], outputs[key])

"""Every ready-made agent gives at replay what it gave while acting: across pieces, resets and kinds of actions."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from rlx.agent import (
    ActorCritic,
    ActorCriticAgent,
    Agent,
    GRUActorCritic,
    LSTMActorCritic,
    MixtureAgent,
    OptionActorCritic,
    TransformerActorCritic,
    replay,
    reset_state,
    values,
)
from rlx.batcher import Batcher
from rlx.data import DictTensor, EnvSpecs, Trajectories
from rlx.env import make
from tests.agent.environments import ACTION_SPACES, ID

MLP = {"hidden_sizes": [16], "activation": "tanh", "log_std_init": -0.5}
MEMORY = MLP | {"state_size": 8, "critic_hidden_sizes": [8], "prev_action": True, "prev_reward": True}
TRANSFORMER = MEMORY | {"num_layers": 2, "window": 3, "model_size": 8, "num_heads": 2, "feedforward_size": 16}
del TRANSFORMER["hidden_sizes"], TRANSFORMER["state_size"]
OPTIONS = MLP | {"num_options": 3, "option_steps": None, "termination_init": 0.2}
MAKERS: dict[str, Callable[[EnvSpecs], ActorCriticAgent]] = {
    "mlp": partial(ActorCritic, **MLP),
    "gru": partial(GRUActorCritic, **MEMORY),
    "gru, observation only": partial(GRUActorCritic, **MEMORY | {"prev_action": False, "prev_reward": False}),
    "lstm": partial(LSTMActorCritic, **MEMORY),
    "transformer": partial(TransformerActorCritic, **TRANSFORMER),
    "transformer, observation only": partial(
        TransformerActorCritic, **TRANSFORMER | {"prev_action": False, "prev_reward": False}
    ),
    "transformer, 1 layer over all": partial(TransformerActorCritic, **TRANSFORMER | {"num_layers": 1, "window": 12}),
    "transformer, 3 layers": partial(TransformerActorCritic, **TRANSFORMER | {"num_layers": 3, "window": 2}),
    "options, 3 steps": partial(OptionActorCritic, **OPTIONS | {"option_steps": 3}),
    "options, learned ends": partial(OptionActorCritic, **OPTIONS),
}
MAKERS |= {
    "mixture of mlps": partial(MixtureAgent, members={"a": MAKERS["mlp"], "b": MAKERS["mlp"]}),
    "mixture of mlp, gru, lstm": partial(MixtureAgent, members={key: MAKERS[key] for key in ("mlp", "gru", "lstm")}),
    "mixture of options": partial(
        MixtureAgent, members={"a": MAKERS["options, 3 steps"], "b": MAKERS["options, 3 steps"]}
    ),
    "mixture of two transformers and a gru": partial(
        MixtureAgent,
        members={key: MAKERS[key] for key in ("transformer", "gru")}
        | {"longer": MAKERS["transformer, 1 layer over all"]},
    ),
}
STATEFUL = [name for name in MAKERS if name not in ("mlp", "mixture of mlps")]


def wild(make_agent: Callable[[EnvSpecs], ActorCriticAgent], specs: EnvSpecs) -> ActorCriticAgent:
    """Return an agent whose every parameter matters: none zero, outputs far from each other."""
    torch.manual_seed(3)
    agent = make_agent(specs)
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.4)
    return agent


def all_kept(make_agent: Callable[[EnvSpecs], ActorCriticAgent], specs: EnvSpecs) -> ActorCriticAgent:
    """Return the agent with its critic kept while acting, so that values of acting time are stored, too."""
    agent = make_agent(specs)
    kind = type(agent)

    class Kept(kind):
        def actor(self) -> Agent:
            return self

        def act(self, outputs, agent_info, generator):
            return super().act(outputs, agent_info, generator) | outputs.select("value")

    agent.__class__ = Kept
    return agent


def pieces_of(make_agent, action: str, count: int = 5, workers: str = "local") -> tuple[Agent, list[Trajectories]]:
    """Return an agent and consecutive pieces of 6 steps that it collected."""
    with Batcher(
        make_agent, partial(make, ID, kwargs={"action": action}), num_workers=2, envs_per_worker=3, num_steps=6,
        seed=0, workers=workers,
    ) as batcher:  # fmt: skip
        agent = wild(make_agent, batcher.specs)
        batcher.publish(agent)
        return agent, [batcher.collect().clone() for _ in range(count)]


def resets_and_borders(pieces: list[Trajectories]) -> tuple[bool, bool]:
    """Return whether an episode begins inside a piece, and whether one goes on across a border."""
    first = [piece.steps["env/is_first"] for piece in pieces]
    return any(bool(f[:, 1:].any()) for f in first), any(bool((~f[:, 0]).any()) for f in first)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("name", MAKERS)
def test_replay_gives_what_acting_gave(name: str, action: str) -> None:
    agent, pieces = pieces_of(partial(all_kept, MAKERS[name]), action)
    assert resets_and_borders(pieces) == (True, True)
    for piece in pieces:
        outputs, stored = replay(agent, piece), piece.steps.group("agent")
        mask = piece.steps.mask()
        both = [key for key in outputs.keys() if key in stored]  # noqa: SIM118
        assert "value" in both
        assert any(key.startswith(("logits", "mean")) for key in both)
        for key in both:
            torch.testing.assert_close(outputs[key][mask], stored[key][mask], rtol=1e-5, atol=1e-5, msg=key)
        torch.testing.assert_close(agent.log_prob(outputs, stored)[mask], agent.log_prob(stored, stored)[mask])


@pytest.mark.parametrize("name", MAKERS)
def test_replay_gives_what_actors_in_processes_gave(name: str) -> None:
    agent, pieces = pieces_of(MAKERS[name], "dict", count=3, workers="process")
    for piece in pieces:
        stored, mask = piece.steps.group("agent"), piece.steps.mask()
        assert "value" not in stored
        outputs = replay(agent, piece)
        torch.testing.assert_close(agent.log_prob(outputs, stored)[mask], agent.log_prob(stored, stored)[mask])
        for key in ("logits/gear", "mean/steer"):
            torch.testing.assert_close(outputs[key][mask], stored[key][mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STATEFUL)
def test_whole_sequences_equal_single_steps_with_their_gradients(name: str) -> None:
    agent, pieces = pieces_of(MAKERS[name], "discrete")
    piece = pieces[-1]
    lengths = torch.tensor([6, 4, 6, 0, 1, 6])  # ragged, as whole episodes are
    steps = type(piece.steps)({key: piece.steps[key] for key in piece.steps}, lengths)
    arguments = (steps.group("env"), piece.info.group("agent_state"), DictTensor.empty(6), steps.group("agent"))
    at_once, one_by_one = agent.forward_sequence, partial(Agent.forward_sequence, agent)
    if agent.history_length:
        at_once = partial(agent.forward_history, piece.context)
        one_by_one = partial(Agent.forward_history, agent, piece.context)
    gradients = []
    for run in (at_once, one_by_one):
        agent.zero_grad()
        outputs = run(*arguments)
        mask = steps.mask()
        assert outputs["value"].shape == (6, 6)
        (outputs["logits"][mask].square().sum() + outputs["value"][mask].square().sum()).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in agent.parameters()])
    for fused, single in zip(*gradients, strict=True):
        assert (fused is None) == (single is None)
        if fused is not None:
            torch.testing.assert_close(fused, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_values_see_what_follows_with_the_memory_of_what_came_before(name: str) -> None:
    agent, pieces = pieces_of(partial(all_kept, MAKERS[name]), "discrete")
    compared = 0
    for piece, after in itertools.pairwise(pieces):
        value, following = values(agent, piece)
        torch.testing.assert_close(value, piece.steps["agent/value"], rtol=1e-5, atol=1e-5)
        goes_on = ~after.steps["env/is_first"][:, 0]
        compared += int(goes_on.sum())
        torch.testing.assert_close(
            following[:, -1][goes_on], after.steps["agent/value"][:, 0][goes_on], rtol=1e-5, atol=1e-5
        )
        assert (following[piece.steps["next/terminated"]] == 0).all()
        check_truncations(agent, piece, following)
    assert compared


def check_truncations(agent: ActorCriticAgent, piece: Trajectories, following: torch.Tensor) -> None:
    """Check the values after truncations one at a time: the final observation, seen with the state after the step."""
    steps, info = piece.steps, piece.info
    for row, time in (steps["next/truncated"] & ~steps["next/terminated"]).nonzero().tolist():
        state, empty = info.group("agent_state")[row], DictTensor.empty(1)
        if agent.history_length:
            state = agent.recall(piece.context[row], state, empty)
        for t in range(time + 1):
            seen = steps.group("env").at(t)[row]
            state = reset_state(agent, state, seen["is_first"], empty)
            _, state = agent.forward(seen, state, empty, steps.group("agent").at(t)[row])
        final = {
            key.removeprefix("next/"): steps[key][row : row + 1, time] for key in steps if key.startswith("next/obs")
        }
        final |= {f"prev_{key}": steps[f"agent/{key}"][row : row + 1, time] for key in ("action",)}
        final |= {"prev_reward": steps["next/reward"][row : row + 1, time]}
        taken = steps.group("agent").at(time)[row]  # tells a mixture whose the row is
        expected = agent.forward(DictTensor(final), state, empty, taken)[0]["value"][0]
        torch.testing.assert_close(following[row, time], expected, rtol=1e-5, atol=1e-5)


def test_a_memory_sees_the_action_and_reward_before_only_where_asked() -> None:
    specs = EnvSpecs.from_dict(make(ID, num_envs=1).specs.to_dict())
    full, plain = MAKERS["gru"](specs), MAKERS["gru, observation only"](specs)
    assert full.inputs == ("obs", "prev_action", "prev_reward")
    assert plain.inputs == ("obs",)
    assert full.encoder.num_features == plain.encoder.num_features + 3 + 1

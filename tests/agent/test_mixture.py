"""A mixture's members act and learn on their own rows only, and have to be alike."""

from functools import partial

import pytest
import torch

from rlx.agent import ActorCritic, GRUActorCritic, MixtureAgent, TransformerActorCritic, replay, update_normalizers
from rlx.agent.agent import ActorCriticAgent
from rlx.algo import a2c, ppo, reinforce
from rlx.batcher import Batcher
from rlx.data import DictTensor, Trajectories
from rlx.env import make
from rlx.errors import AgentError, ConfigError
from tests.agent.agents import SPECS, Recurrent, steps_of
from tests.agent.environments import ID
from tests.batcher.ledger import Parity

MLP = {"hidden_sizes": [8], "activation": "tanh", "log_std_init": 0.0}
make_mlp = partial(ActorCritic, **MLP)
make_gru = partial(
    GRUActorCritic, **MLP, state_size=8, critic_hidden_sizes=[8], prev_action=False, prev_reward=False
)  # fmt: skip
make_transformer = partial(
    TransformerActorCritic, num_layers=2, window=3, model_size=8, num_heads=2, feedforward_size=8, activation="tanh",
    critic_hidden_sizes=[8], prev_action=True, prev_reward=False, log_std_init=0.0,
)  # fmt: skip
make_agent = partial(MixtureAgent, members={"one": make_mlp, "two": make_gru, "three": make_mlp})


def test_rows_go_to_the_member_that_they_name_and_come_back_in_order() -> None:
    torch.manual_seed(0)
    agent = make_agent(SPECS)
    policy = torch.tensor([2, 0, 1, 0, 2, 1, 1])
    info, obs = DictTensor({"policy": policy}), torch.randn(7, 3)
    state = agent.initial_state(info, 7)
    state = DictTensor({key: torch.randn(7, 8) for key in state.keys()})  # noqa: SIM118
    outputs, after = agent.forward(DictTensor({"obs": obs}), state, info)
    assert outputs["policy"].tolist() == policy.tolist()
    for row, index in enumerate(policy.tolist()):
        name, member = list(agent.members.items())[index]
        seen, empty = DictTensor({"obs": obs[row : row + 1]}), DictTensor.empty(1)
        alone, new_state = member.forward(seen, state.group(name)[row], empty)
        for key in ("logits", "value"):
            torch.testing.assert_close(outputs[key][row], alone[key][0])
        expected = new_state["hidden"][0] if name == "two" else state["two/hidden"][row]
        torch.testing.assert_close(after["two/hidden"][row], expected)
    taken = agent.act(outputs, info, torch.Generator().manual_seed(0))
    for row, index in enumerate(policy.tolist()):
        member = list(agent.members.values())[index]
        torch.testing.assert_close(agent.log_prob(outputs, taken)[row], member.log_prob(outputs, taken)[row])
        torch.testing.assert_close(agent.entropy(outputs)[row], member.entropy(outputs)[row])


def test_of_no_rows_it_puts_out_the_same_fields_as_of_some() -> None:
    """As where every episode of a batch was terminated, and nothing is left to bootstrap from."""
    agent = make_agent(SPECS)
    info, obs = DictTensor({"policy": torch.tensor([2, 0, 1])}), DictTensor({"obs": torch.randn(3, 3)})
    state = agent.initial_state(info, 3)
    some, _ = agent.forward(obs, state, info)
    outputs, after = agent.forward(obs[:0], state[:0], info[:0], some[:0])
    assert outputs.specs() == some.specs()
    assert after.specs() == state.specs()
    assert {len(value) for value in (*outputs.values(), *after.values())} == {0}


def test_gradients_reach_a_member_from_its_own_rows_only() -> None:
    torch.manual_seed(0)
    agent = make_agent(SPECS)
    info = DictTensor({"policy": torch.tensor([0, 1, 1, 0])})
    obs = torch.randn(4, 3)

    def gradient(rows: list[int]) -> list[torch.Tensor]:
        agent.zero_grad()
        outputs, _ = agent.forward(DictTensor({"obs": obs}), agent.initial_state(info, 4), info)
        taken = agent.act(outputs.detach(), info, torch.Generator().manual_seed(0))
        (agent.log_prob(outputs, taken) + outputs["value"])[rows].sum().backward()
        return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in agent.members["one"].parameters()]

    own, others, everything = gradient([0, 3]), gradient([1, 2]), gradient([0, 1, 2, 3])
    assert any(bool(g.any()) for g in own)
    assert not any(bool(g.any()) for g in others)
    for one, all_rows in zip(own, everything, strict=True):
        torch.testing.assert_close(one, all_rows)
    assert all(p.grad is None for p in agent.members["three"].parameters())


def test_rows_are_dealt_in_turn_and_stay_with_their_member_in_any_minibatch() -> None:
    members = {"one": make_mlp, "two": make_mlp}
    with Batcher(
        partial(MixtureAgent, members=members), partial(make, ID), num_workers=2, envs_per_worker=3, num_steps=8,
        seed=0, workers="local",
    ) as batcher:  # fmt: skip
        torch.manual_seed(0)
        agent = MixtureAgent(batcher.specs, members=members)
        for parameter in agent.parameters():
            parameter.data.normal_()
        batcher.publish(agent)
        piece = batcher.collect().clone()
    assert piece.steps["agent/policy"][:, 0].tolist() == [0, 1, 0, 0, 1, 0]
    for minibatch in piece.split_steps().minibatches(7, torch.Generator().manual_seed(0)):
        outputs, stored = replay(agent, minibatch), minibatch.steps.group("agent")
        torch.testing.assert_close(outputs["logits"], stored["logits"])
        torch.testing.assert_close(agent.log_prob(outputs, stored), agent.log_prob(stored, stored))


def mixture_of(member, **members):
    return partial(MixtureAgent, members={"one": member, "two": member} | members)


@pytest.mark.parametrize("make_mixture", [mixture_of(make_gru), mixture_of(make_transformer, three=make_gru)])
def test_a_row_that_changes_its_member_inside_an_episode_is_replayed_as_it_acted(make_mixture) -> None:
    with Batcher(
        make_mixture, partial(make, ID), num_workers=1, envs_per_worker=4, num_steps=5, seed=0, workers="local"
    ) as batcher:
        torch.manual_seed(0)
        agent = make_mixture(batcher.specs)
        for parameter in agent.parameters():
            parameter.data.normal_()
        batcher.publish(agent)
        pieces, last = [], len(agent.members) - 1
        batcher.reset(agent_info=DictTensor({"policy": torch.tensor([0, 1, 0, 1])}))
        for policy in ([0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, last], [0, 1, 0, 0]):
            batcher.execute(agent_info=DictTensor({"policy": torch.tensor(policy)}))
            pieces.append(batcher.get()[0].clone())
    assert any(bool((~piece.steps["env/is_first"][:, 0]).any()) for piece in pieces[1:])
    for piece in pieces:
        outputs, stored = replay(agent, piece), piece.steps.group("agent")
        torch.testing.assert_close(outputs["logits"], stored["logits"], rtol=1e-5, atol=1e-5)
    before, after = pieces[:2]
    keys = [key for key in before.steps if key.startswith(("env/", "agent/"))]
    joined = type(before.steps)(
        {key: torch.cat([before.steps[key], after.steps[key]], dim=1) for key in keys}, [10] * 4
    )
    before.steps = joined
    outputs = replay(agent, before)  # step by step: rows pass from one member to another inside it
    assert outputs["policy"].tolist() == joined["agent/policy"].tolist()
    torch.testing.assert_close(outputs["logits"], joined["agent/logits"], rtol=1e-5, atol=1e-5)


class _Biased(ActorCriticAgent):
    """Overrides `forward` alone: prefers the first action."""

    def forward(self, observation, state, agent_info, taken=None):
        outputs, state = super().forward(observation, state, agent_info, taken)
        bias = torch.eye(outputs["logits"].shape[1])[0]
        return outputs.exclude("logits") | DictTensor({"logits": outputs["logits"] + bias}), state

    def actor(self):
        return self


class BiasedGRU(_Biased, GRUActorCritic):
    pass


class BiasedTransformer(_Biased, TransformerActorCritic):
    pass


@pytest.mark.parametrize(
    "kinds", [(BiasedGRU, make_gru), (BiasedTransformer, make_transformer)], ids=["state", "history"]
)
def test_a_member_that_overrides_forward_alone_is_replayed_as_it_acted(kinds) -> None:
    biased, usual = kinds
    make_mixture = partial(MixtureAgent, members={"one": partial(biased, **usual.keywords), "two": usual})
    with Batcher(
        make_mixture, partial(make, ID), num_workers=1, envs_per_worker=4, num_steps=6, seed=0, workers="local"
    ) as batcher:
        agent = make_mixture(batcher.specs)
        batcher.publish(agent)
        for _ in range(2):
            piece = batcher.collect()
            outputs, stored = replay(agent, piece), piece.steps.group("agent")
            torch.testing.assert_close(outputs["logits"], stored["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algo", ["ppo", "a2c", "reinforce"])
def test_each_members_returns_are_its_own(algo: str) -> None:
    torch.manual_seed(0)
    member = partial(ActorCritic, **MLP, normalize_observation=True, normalize_return=True)
    agent = MixtureAgent(SPECS, members={"one": member, "two": member})
    batch = steps_of([4, 3, 4, 2], 4)  # padding, which says nothing
    policy = torch.tensor([[0], [1], [0], [1]]).expand(4, 4)
    batch = batch.with_steps(**{"agent/policy": policy})
    returns = 100.0 * torch.randn(4, 4) + 1000.0 * policy
    update_normalizers(agent, batch, returns)
    own = [batch.steps.mask() & (policy == index) for index in range(2)]
    for index, name in enumerate(("one", "two")):
        mine = agent.members[name]
        torch.testing.assert_close(mine.return_normalizer.scale, returns[own[index]].std(unbiased=False))
        seen = mine.encoder.normalizers[0]
        torch.testing.assert_close(seen.shift, batch.steps["env/obs"][own[index]].mean(0))

    def loss(batch: Trajectories, agent: ActorCriticAgent) -> dict[str, torch.Tensor]:
        numbers = {"ent_coef": 0.0, "vf_coef": 1.0, "normalize_advantage": False}
        if algo == "ppo":
            zeros = torch.zeros(batch.steps.leading_shape)
            added = {"advantage": zeros, "value": zeros, "log_prob": zeros, "return": zeros + 500.0}
            return ppo.loss(agent, batch.with_steps(**added), clip_coef=0.1, clip_vf=False, **numbers)
        if algo == "a2c":
            return a2c.loss(agent, batch, gamma=0.9, gae_lambda=0.9, vtrace=False, **numbers)
        return reinforce.loss(agent, batch, baseline=True, gamma=0.9, **numbers)

    found = loss(batch, agent)["loss/value"]
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in agent.parameters() if parameter.grad is not None)
    parts = [loss(batch.rows(policy[:, 0] == index), agent.members[name])["loss/value"] * own[index].sum()
             for index, name in enumerate(("one", "two"))]  # fmt: skip
    torch.testing.assert_close(found, sum(parts) / batch.num_steps)


def draw_policy(row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"policy": torch.randint(2, (), generator=generator)}


@pytest.mark.parametrize("member", [make_gru, make_transformer])
def test_each_episode_may_draw_its_member(member) -> None:
    with Batcher(
        mixture_of(member), partial(make, ID), num_workers=1, envs_per_worker=6, num_steps=8, seed=0, workers="local"
    ) as batcher:
        batcher.reset(agent_info=draw_policy)
        torch.manual_seed(0)
        agent = mixture_of(member)(batcher.specs)
        for parameter in agent.parameters():
            parameter.data.normal_()
        batcher.publish(agent)
        pieces = [batcher.collect().clone() for _ in range(3)]
    passed_on = 0
    for piece in pieces:
        outputs, stored = replay(agent, piece), piece.steps.group("agent")
        assert torch.equal(stored["policy"], piece.steps["agent_info/policy"])
        passed_on += int((stored["policy"][:, 1:] != stored["policy"][:, :-1]).sum())
        torch.testing.assert_close(outputs["logits"], stored["logits"], rtol=1e-5, atol=1e-5)
    assert passed_on > 3


def test_members_that_put_out_different_things_are_refused_with_both_shown() -> None:
    with pytest.raises(AgentError, match=r"'one' gives .*value float32 \[\].*'two' .*seen float32 \[3\]"):
        MixtureAgent(SPECS, members={"one": make_mlp, "two": Parity})
    MixtureAgent(SPECS, members={"one": make_gru, "two": make_mlp})  # other states, the same outputs


class NoLogProb(Recurrent):
    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator).exclude("value")


def test_what_cannot_be_a_member_is_refused_by_name() -> None:
    target = {"_target_": "rlx.agent.ActorCritic"}
    made = MixtureAgent(SPECS, members={"one": target | MLP})
    assert isinstance(made.members["one"], ActorCritic)
    with pytest.raises(AgentError, match="expected at least one"):
        MixtureAgent(SPECS, members={})
    with pytest.raises(AgentError, match=r"second\._target_: got 'os\.system'"):
        MixtureAgent(SPECS, members={"second": {"_target_": "os.system", "command": "true"}})
    with pytest.raises(ConfigError, match=r"Did you mean 'agent\.members\.one\.hidden_sizes'"):
        MixtureAgent(SPECS, members={"one": target | MLP | {"hiden_sizes": [8]}})
    with pytest.raises(AgentError, match=r"agent\.members\.one: got None, .*; to do without: ~agent\.members\.one"):
        MixtureAgent(SPECS, members={"one": None})
    with pytest.raises(AgentError, match="'keys' can be no member's name"):
        MixtureAgent(SPECS, members={"keys": make_mlp})
    agent = MixtureAgent(SPECS, members={"one": make_mlp, "two": NoLogProb})
    outputs, empty = DictTensor({"policy": torch.tensor([1]), "logits": torch.zeros(1, 4)}), DictTensor.empty(1)
    with pytest.raises(AgentError, match=r"agent\.members\.two: NoLogProb has no log_prob"):
        agent.entropy(outputs)
    with pytest.raises(AgentError, match="2 policies are dealt to 1 environments a worker"):
        agent.act(outputs, empty, torch.Generator())
    with pytest.raises(AgentError, match=r"agent_info\['policy'\]: got 2, expected 0 to 1"):
        agent.forward(
            DictTensor({"obs": torch.zeros(1, 3), "prev_reward": torch.zeros(1)}),
            agent.initial_state(empty, 1),
            DictTensor({"policy": torch.tensor([2])}),
        )

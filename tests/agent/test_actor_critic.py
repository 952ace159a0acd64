"""The ready-made actor-critic: its distributions against torch's, its networks against plain ones."""

import math
from functools import partial

import pytest
import torch
from torch import distributions as reference

from rlx.agent import ActorCritic, Agent, flatten_parameters
from rlx.agent.convolution import Convolutions
from rlx.agent.distribution import make_distributions
from rlx.agent.networks import TwinMLP
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError
from tests.agent.agents import SPECS, actor_critic

OBS = {"obs": Spec((3,), torch.float32)}
ACTIONS = {
    "discrete": Spec((), torch.int64, "discrete", nvec=(4,)),
    "multi_discrete": Spec((3,), torch.int64, "multi_discrete", nvec=(2, 5, 3)),
    "multi_discrete grid": Spec((2, 2), torch.int64, "multi_discrete", nvec=(2, 3, 4, 5)),
    "multi_binary": Spec((5,), torch.int8, "multi_binary"),
    "bounded": Spec((2,), torch.float32, low=(-2.0, 0.0), high=(2.0, 1.0)),
    "unbounded": Spec((2,), torch.float32, low=(-math.inf, -1.0), high=(math.inf, 1.0)),
}


def torch_distribution(kind: str, outputs: DictTensor) -> list[reference.Distribution]:
    """Return torch's own distributions, one an independent part."""
    if kind == "discrete":
        return [reference.Categorical(logits=outputs["logits"])]
    if kind.startswith("multi_discrete"):
        pieces = outputs["logits"].split(ACTIONS[kind].nvec, dim=-1)
        return [reference.Categorical(logits=piece) for piece in pieces]
    if kind == "multi_binary":
        return [reference.Bernoulli(logits=logit) for logit in outputs["logits"].unbind(-1)]
    normal = reference.Normal(outputs["mean"], outputs["log_std"].exp())
    return [reference.Independent(normal, 1)]


@pytest.mark.parametrize("kind", ACTIONS)
def test_log_prob_and_entropy_are_those_of_torchs_distributions(kind: str) -> None:
    torch.manual_seed(0)
    agent = actor_critic(EnvSpecs(OBS, {"action": ACTIONS[kind]}))
    for parameter in agent.parameters():
        parameter.data.normal_()
    observation = DictTensor({"obs": torch.randn(50, 3)})
    outputs, state = agent.forward(observation, DictTensor.empty(50), DictTensor.empty(50))
    assert state.is_empty
    assert outputs["value"].shape == (50,)
    taken = agent.act(outputs, DictTensor.empty(50), torch.Generator().manual_seed(0))
    spec = ACTIONS[kind]
    assert taken["action"].shape == (50, *spec.shape)
    assert taken["action"].dtype == spec.dtype
    parts = torch_distribution(kind, outputs)
    kept = taken["raw_action"] if "raw_action" in taken else taken["action"].reshape(50, -1).float()
    pieces = [kept] if kind in ("bounded", "unbounded") else list(kept.reshape(50, -1).unbind(-1))
    expected = sum(part.log_prob(piece) for part, piece in zip(parts, pieces, strict=True))
    torch.testing.assert_close(agent.log_prob(outputs, taken), expected)
    torch.testing.assert_close(agent.log_prob(taken, taken), expected)  # what was stored is enough
    torch.testing.assert_close(agent.entropy(outputs), sum(part.entropy() for part in parts))


@pytest.mark.parametrize("kind", ACTIONS)
def test_draws_follow_the_distribution_and_deterministic_rows_take_its_mode(kind: str) -> None:
    torch.manual_seed(0)
    agent = actor_critic(EnvSpecs(OBS, {"action": ACTIONS[kind]}))
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.5)
    size = 20_000
    observation = DictTensor({"obs": torch.randn(1, 3).expand(size, 3)})
    outputs, _ = agent.forward(observation, DictTensor.empty(size), DictTensor.empty(size))
    deterministic = torch.arange(size) % 2 == 0
    taken = agent.act(outputs, DictTensor({"deterministic": deterministic}), torch.Generator().manual_seed(0))
    modes, draws = taken["action"][deterministic], taken["action"][~deterministic]
    assert (modes == modes[0]).all()
    parts = torch_distribution(kind, outputs[:1])
    if kind in ("bounded", "unbounded"):
        raw = taken["raw_action"][~deterministic]
        torch.testing.assert_close(raw.mean(0), outputs["mean"][0], atol=0.03, rtol=0)
        torch.testing.assert_close(raw.std(0), outputs["log_std"][0].exp(), atol=0.03, rtol=0)
    else:
        for part, column in zip(parts, draws.reshape(len(draws), -1).unbind(-1), strict=True):
            for value in part.enumerate_support().flatten().tolist():
                probability = part.log_prob(torch.tensor([value])).exp().item()
                assert (column == value).float().mean().item() == pytest.approx(probability, abs=0.02)


def test_continuous_actions_cover_the_box_and_never_leave_it() -> None:
    agent = actor_critic(EnvSpecs(OBS, {"action": ACTIONS["bounded"]}))
    outputs = DictTensor(
        {"mean": torch.tensor([[0.0, 0.0], [9.0, -9.0], [0.5, 1.0]]), "log_std": torch.full((3, 2), -9.0)}
    )
    taken = agent.act(outputs, DictTensor({"deterministic": torch.ones(3, dtype=torch.bool)}), torch.Generator())
    torch.testing.assert_close(taken["action"], torch.tensor([[0.0, 0.5], [2.0, 0.0], [1.0, 1.0]]))


def test_bounds_so_wide_that_they_bound_nothing_let_draws_pass_as_they_are() -> None:
    most = torch.finfo(torch.float32).max
    agent = actor_critic(EnvSpecs(OBS, {"action": Spec((2,), torch.float32, low=(-most, -1.0), high=(most, 3.0))}))
    outputs = DictTensor({"mean": torch.tensor([[0.5, 0.5]]), "log_std": torch.zeros(1, 2)})
    taken = agent.act(outputs, DictTensor({"deterministic": torch.ones(1, dtype=torch.bool)}), torch.Generator())
    assert taken["action"].tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(torch.uint8, 0, 255), (torch.int8, -128, 127), (torch.int32, 0, 2**31 - 1), (torch.int64, 0, 2**63 - 1)],
)
def test_whole_numbers_beyond_their_dtypes_limit_stay_at_that_end(dtype: torch.dtype, low: int, high: int) -> None:
    (box,) = make_distributions({"action": Spec((2,), dtype, low=(low, low), high=(high, high))})
    far = {"mean": torch.tensor([[-3.0, 3.0]]), "log_std": torch.zeros(1, 2)}
    drawn = box.sample(far, torch.tensor([True]), torch.Generator())["action"]
    assert drawn[0, 0] == low
    assert high - int(drawn[0, 1]) <= high * 2**-24


def test_an_action_without_a_place_is_refused_by_name() -> None:
    nothing = Spec((0,), torch.float32)
    with pytest.raises(AgentError, match=r"is empty \('action/arm' has shape \(0,\)\)"):
        actor_critic(EnvSpecs(OBS, {"action/move": ACTIONS["discrete"], "action/arm": nothing}))
    with pytest.raises(AgentError, match="is empty: there is nothing to decide"):
        actor_critic(EnvSpecs(OBS, {}))


def test_the_actor_acts_as_the_whole_agent_does_and_follows_its_weights() -> None:
    for spec in ACTIONS.values():
        agent = actor_critic(EnvSpecs(OBS, {"action": spec}))
        actor = agent.actor()
        for parameter in agent.parameters():
            parameter.data.normal_()
        observation, empty = DictTensor({"obs": torch.randn(7, 3)}), DictTensor.empty(7)
        whole, _ = agent.forward(observation, empty, empty)
        alone, _ = actor.forward(observation, empty, empty)
        assert "value" not in alone
        for key in alone.keys():  # noqa: SIM118
            torch.testing.assert_close(alone[key], whole[key])
        drawn = [a.act(o, empty, torch.Generator().manual_seed(3)) for a, o in ((agent, whole), (actor, alone))]
        torch.testing.assert_close(drawn[0]["action"], drawn[1]["action"])


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_acting_into_memory_equals_forward_then_act(kind: str, share: float) -> None:
    torch.manual_seed(0)
    whole = actor_critic(EnvSpecs(OBS, {"action": ACTIONS[kind]}))
    for parameter in whole.parameters():
        parameter.data.normal_()
    agent, state = whole.actor(), DictTensor.empty(50)
    info = DictTensor({"deterministic": torch.rand(50) < share}) if share else DictTensor.empty(50)
    with torch.no_grad():
        for size in (50, 50, 7):
            observation = DictTensor({"obs": torch.randn(size, 3)})
            rows, nothing = info[:size], state[:size]
            outputs, _ = agent.forward(observation, nothing, rows)
            expected = agent.act(outputs, rows, torch.Generator().manual_seed(1))
            written = {key: torch.empty_like(value) for key, value in expected.items()}
            agent.act_into(observation, nothing, rows, torch.Generator().manual_seed(1), written)
            for key, value in expected.items():
                torch.testing.assert_close(written[key], value)


def test_what_is_drawn_for_a_piece_is_drawn_anew_for_the_next_one() -> None:
    """A resumed run begins at a piece's start: nothing that was drawn before may be left for it."""
    specs = EnvSpecs(OBS, {"action": Spec((), torch.int64, "discrete", nvec=(5,))})
    agent, nothing, seen = actor_critic(specs), DictTensor.empty(6), DictTensor({"obs": torch.randn(6, 3)})
    out = {"action": torch.empty(6, dtype=torch.int64), "logits": torch.empty(6, 5)}

    def play(actor: Agent, generator: torch.Generator, steps: int) -> list[list[int]]:
        actor.begin_piece(4, nothing, generator)
        found: list[list[int]] = []
        for _ in range(steps):
            actor.act_into(seen, nothing, nothing, generator, out)
            found.append(out["action"].tolist())
        return found

    with torch.no_grad():
        one, first = agent.actor(), torch.Generator().manual_seed(1)
        cut_short = play(one, first, 2)
        later = torch.Generator()
        later.set_state(first.get_state())
        following = play(one, first, 4)
        assert following == play(agent.actor(), later, 4)
        assert following[:2] != cut_short
        assert len({tuple(step) for step in following}) > 1


def test_actions_drawn_for_a_piece_come_as_often_as_their_probabilities_say() -> None:
    specs = EnvSpecs(OBS, {"action": Spec((), torch.int64, "discrete", nvec=(3,))})
    agent = actor_critic(specs)
    weights = torch.Generator().manual_seed(0)
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.3, generator=weights)
    rows, steps = 2000, 20
    seen, nothing = DictTensor({"obs": torch.ones(rows, 3)}), DictTensor.empty(rows)
    out = {"action": torch.empty(rows, dtype=torch.int64), "logits": torch.empty(rows, 3)}
    counts, generator = torch.zeros(3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        actor = agent.actor()
        actor.begin_piece(steps, nothing, generator)
        for _ in range(steps):
            actor.act_into(seen, nothing, nothing, generator, out)
            counts += out["action"].bincount(minlength=3)
    expected = out["logits"][0].softmax(-1)
    assert expected.max() - expected.min() > 0.1
    torch.testing.assert_close(counts / counts.sum(), expected, atol=0.01, rtol=0)  # four standard errors


def test_mixed_action_spaces_sum_their_parts() -> None:
    specs = EnvSpecs(OBS, {"action/gear": ACTIONS["discrete"], "action/steer/angle": ACTIONS["bounded"]})
    agent = actor_critic(specs)
    empty = DictTensor.empty(5)
    outputs, _ = agent.forward(DictTensor({"obs": torch.randn(5, 3)}), empty, empty)
    taken = agent.act(outputs, empty, torch.Generator().manual_seed(0))
    assert set(specs.action) <= set(taken.keys())
    parts = make_distributions(specs.action)
    torch.testing.assert_close(agent.log_prob(outputs, taken), sum(p.log_prob(outputs, taken) for p in parts))


def test_observations_of_every_kind_become_one_vector() -> None:
    specs = {
        "obs/image": Spec((2, 2), torch.uint8),
        "obs/one": Spec((), torch.int64, "discrete", nvec=(3,)),
        "obs/two": Spec((2,), torch.int64, "multi_discrete", nvec=(2, 3)),
        "obs/bits": Spec((2,), torch.int8, "multi_binary"),
        "obs/number": Spec((), torch.float32),
    }
    agent = actor_critic(EnvSpecs(specs, SPECS.action))
    observation = DictTensor(
        {
            "obs/image": torch.full((1, 2, 2), 255, dtype=torch.uint8),
            "obs/one": torch.tensor([2]),
            "obs/two": torch.tensor([[1, 0]]),
            "obs/bits": torch.tensor([[1, 0]], dtype=torch.int8),
            "obs/number": torch.tensor([0.5]),
        }
    )
    expected = [1.0] * 4 + [0, 0, 1] + [0, 1] + [1, 0, 0] + [1, 0] + [0.5]
    assert agent.encoder(observation)[0].tolist() == expected
    agent.forward(observation, DictTensor.empty(1), DictTensor.empty(1))


def test_twin_networks_are_separate_orthogonal_networks() -> None:
    torch.manual_seed(0)
    twin = TwinMLP(16, (4, 1), hidden_sizes=[8, 8], activation="tanh", output_gains=(0.01, 1.0))
    x = torch.randn(5, 16)
    for k, width in enumerate((4, 1)):
        hidden = x
        for weight, bias in list(zip(twin.weights, twin.biases, strict=True))[:-1]:
            hidden = torch.tanh(hidden @ weight[k] + bias[k])
        expected = (hidden @ twin.weights[-1][k] + twin.biases[-1][k])[:, :width]
        torch.testing.assert_close(twin(x)[k], expected)
        torch.testing.assert_close(twin.single(k)(x), expected)
    inner = twin.weights[1][0]
    torch.testing.assert_close(inner.T @ inner, 2 * torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(twin.weights[2][0].T @ twin.weights[2][0], 1e-4 * torch.eye(4), atol=1e-7, rtol=0)
    assert (twin.weights[2][1, :, 1:] == 0).all()
    assert all((bias == 0).all() for bias in twin.biases)


def test_flat_parameters_share_memory_with_the_module() -> None:
    agent = actor_critic()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    flat = flatten_parameters(agent)
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    for _ in range(2):
        flat.grad.zero_()
        agent.network.weights[0].sum().backward()
        assert flat.grad is not None
        assert flat.grad.sum() == agent.network.weights[0].numel()
    flat.data.zero_()
    assert all((parameter == 0).all() for parameter in agent.parameters())


def test_a_dictionary_of_one_vector_is_seen_like_the_vector() -> None:
    action = {"action": Spec((), torch.int64, kind="discrete", nvec=(3,))}
    agent = ActorCritic(
        EnvSpecs({"obs/speed": Spec((2,), torch.float32)}, action),
        hidden_sizes=[4],
        activation="tanh",
        log_std_init=0.0,
    )
    seen, nothing = DictTensor({"obs/speed": torch.randn(5, 2)}), DictTensor.empty(5)
    outputs, _ = agent(seen, nothing, nothing)
    acted = {"action": torch.zeros(5, dtype=torch.int64), "logits": torch.zeros(5, 3)}
    with torch.no_grad():
        agent.actor().act_into(seen, nothing, nothing, torch.Generator(), acted)
    torch.testing.assert_close(acted["logits"], outputs["logits"].detach())


def test_keys_that_differ_by_a_slash_alone_have_each_their_own_parameters() -> None:
    box = partial(Spec, dtype=torch.float32)
    sizes = {"action/a/b": 2, "action/a_b": 3}
    actions = {key: box((size,), low=(-1.0,) * size, high=(1.0,) * size) for key, size in sizes.items()}
    agent = actor_critic(EnvSpecs({"obs": box((3,))}, actions))
    outputs, _ = agent.forward(DictTensor({"obs": torch.randn(4, 3)}), DictTensor.empty(4), DictTensor.empty(4))
    assert {key: tuple(outputs[key].shape) for key in outputs if key.startswith("log_std")} == {
        "log_std/a/b": (4, 2), "log_std/a_b": (4, 3),
    }  # fmt: skip
    assert sorted(parameter.shape for name, parameter in agent.named_parameters() if "log_std" in name) == [(2,), (3,)]
    camera = Spec((1, 16, 16), torch.uint8)
    body = Convolutions(EnvSpecs({"obs/cam/left": camera, "obs/cam_left": camera}, actions), filters=[2],
                        kernel_sizes=[4], strides=[4], activation="relu")  # fmt: skip
    assert len(body.convolutions) == 2

"""What is not allowed is never taken, has a probability of 0, and leaves every number finite."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from rlx.agent import (
    ActorCritic,
    ActorCriticAgent,
    ConvActorCritic,
    MixtureAgent,
    apply_mask,
    draw_allowed,
    find_mask,
    replay,
)
from rlx.agent.distribution import make_distributions
from rlx.agent.masking import ActionMasking
from rlx.agent.networks import Encoder
from rlx.batcher import Batcher
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.env import make
from rlx.errors import AgentError, SpecError
from tests.agent.environments import MASKED_ACTION_SPACES, MASKED_ID
from tests.agent.test_acting_and_replay import MAKERS, MLP, wild

DISCRETE = Spec((), torch.int64, "discrete", nvec=(4,))
MULTI = Spec((2,), torch.int64, "multi_discrete", nvec=(2, 3))
BOX = Spec((3,), torch.float32)
PLACE = Spec((3,), torch.float32)
LOG = math.log


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small products gain nothing from threads, and lose much where other programs use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mask_of(size: int, dtype: torch.dtype = torch.int8) -> Spec:
    return Spec((size,), dtype, "multi_binary" if dtype is torch.int8 else "continuous")


def specs_of(mask: Spec, **action: Spec) -> EnvSpecs:
    return EnvSpecs({"obs/action_mask": mask, "obs/observation": PLACE}, action)


# Probabilities, by hand.


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_what_is_allowed_shares_the_probability(dtype: torch.dtype) -> None:
    only = make_distributions({"action": DISCRETE})[0]
    logits = torch.tensor([[LOG(1), LOG(2), LOG(3), LOG(4)]], requires_grad=True)
    outputs = {"logits": apply_mask(logits, torch.tensor([[1, 0, 1, 0]]).to(dtype))}
    log_probs = torch.cat([only.log_prob(outputs, {"action": torch.tensor([a])}) for a in range(4)])
    assert log_probs.exp().tolist() == pytest.approx([1 / 4, 0, 3 / 4, 0])
    assert log_probs.exp()[[1, 3]].tolist() == [0.0, 0.0]
    entropy = only.entropy(outputs)
    assert entropy.item() == pytest.approx(1 / 4 * LOG(4) + 3 / 4 * LOG(4 / 3))
    (log_probs[2] + entropy.sum()).backward()
    # d log p2 / dz = (-p0, 1 - p2) and dH / dz = -p (log p + H), each over what is allowed.
    gradient = [-p * (LOG(p) + entropy.item()) - p for p in (1 / 4, 3 / 4)]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([gradient[0], 0, gradient[1] + 1, 0], abs=1e-6)
    assert logits.grad[0, [1, 3]].tolist() == [0.0, 0.0]


def test_draws_and_the_mode_are_among_what_is_allowed_in_the_right_shares() -> None:
    only = make_distributions({"action": DISCRETE})[0]
    logits = torch.tensor([LOG(1), LOG(2), LOG(3), 50.0]).repeat(40_000, 1)
    outputs = {"logits": apply_mask(logits, torch.tensor([1, 0, 1, 0]))}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.bincount(only.sample(outputs, None, generator)["action"], minlength=4) / 40_000
    assert drawn.tolist() == pytest.approx([1 / 4, 0, 3 / 4, 0], abs=0.01)
    assert drawn[[1, 3]].tolist() == [0.0, 0.0]
    modes = only.sample(outputs, torch.ones(40_000, dtype=torch.bool), generator)["action"]
    assert (modes == 2).all()


def test_the_choices_of_a_multi_discrete_action_are_masked_one_after_the_other() -> None:
    only = make_distributions({"action": MULTI})[0]
    logits = torch.tensor([[5.0, 0.0, LOG(1), 9.0, LOG(3)]], requires_grad=True)
    outputs = {"logits": apply_mask(logits, torch.tensor([[0, 1, 1, 0, 1]]))}
    log_prob = only.log_prob(outputs, {"action": torch.tensor([[1, 2]])})
    assert log_prob.item() == pytest.approx(LOG(3 / 4))
    entropy = only.entropy(outputs)
    assert entropy.item() == pytest.approx(1 / 4 * LOG(4) + 3 / 4 * LOG(4 / 3))
    for forbidden in ([0, 2], [1, 1]):
        assert only.log_prob(outputs, {"action": torch.tensor([forbidden])}).exp().item() == 0.0
    (log_prob + entropy).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, [0, 3]].tolist() == [0.0, 0.0]
    many = {"logits": outputs["logits"].detach().repeat(20_000, 1)}
    action = only.sample(many, None, torch.Generator().manual_seed(0))["action"]
    assert (action[:, 0] == 1).all()
    assert (torch.bincount(action[:, 1], minlength=3) / 20_000).tolist() == pytest.approx([1 / 4, 0, 3 / 4], abs=0.015)


def test_one_allowed_action_is_certain() -> None:
    only = make_distributions({"action": DISCRETE})[0]
    outputs = {"logits": apply_mask(torch.tensor([[3.0, -80.0, 60.0, 0.0]]), torch.tensor([[0, 1, 0, 0]]))}
    assert only.log_prob(outputs, {"action": torch.tensor([1])}).item() == 0.0
    assert only.entropy(outputs).item() == 0.0


@pytest.mark.parametrize("spec", [DISCRETE, MULTI], ids=["discrete", "multi_discrete"])
def test_where_nothing_is_allowed_numbers_stay_finite_and_actions_in_range(spec: Spec) -> None:
    only = make_distributions({"action": spec})[0]
    outputs = {"logits": apply_mask(torch.randn(1000, sum(spec.nvec)), torch.zeros(sum(spec.nvec)))}
    taken = only.sample(outputs, None, torch.Generator().manual_seed(0))
    assert (taken["action"] < torch.tensor(spec.nvec)).all()
    assert only.log_prob(outputs, taken).isfinite().all()
    uniform = sum(LOG(n) for n in spec.nvec)  # over the values that there are
    assert only.entropy(outputs).tolist() == pytest.approx([uniform] * 1000)
    assert (0.0 * outputs["logits"].amax(-1) == 0.0).all()  # as in a value's target, behind an episode's end


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_precision_can_be_masked(dtype: torch.dtype) -> None:
    masked = apply_mask(torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([1, 0]))
    assert masked.dtype is dtype
    assert masked.softmax(-1).tolist() == [1.0, 0.0]


def test_any_allowed_action_is_as_likely_as_the_others() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.int8).repeat(20_000, 1)
    drawn = draw_allowed(mask, torch.Generator().manual_seed(0))
    assert drawn.dtype is torch.int64
    assert (torch.bincount(drawn[::2], minlength=4) / 20_000).tolist() == pytest.approx([0, 0.5, 0.5, 0], abs=0.015)
    assert (drawn[1::2] == 0).all()
    assert mask.gather(1, drawn.unsqueeze(1)).all()


# Which field it is, and what it has to look like.


def test_the_mask_is_found_by_its_name() -> None:
    assert find_mask(EnvSpecs({"obs": PLACE}, {"action": BOX})) is None
    assert find_mask(EnvSpecs({"obs/arm/action_mask": PLACE}, {"action": BOX})) is None
    for dtype in (torch.bool, torch.int8, torch.uint8, torch.int64):
        assert find_mask(specs_of(mask_of(4, dtype), action=DISCRETE)) == "obs/action_mask"
    assert find_mask(specs_of(mask_of(5), action=MULTI)) == "obs/action_mask"
    assert find_mask(specs_of(mask_of(4), **{"action/gear": DISCRETE, "action/steer": BOX})) == "obs/action_mask"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (specs_of(mask_of(3), action=DISCRETE), r"shape \(3,\); expected .* 'action', shape \(4,\)"),
        (specs_of(mask_of(3), action=MULTI), r"shape \(3,\); expected .* shape \(5,\)"),
        (specs_of(mask_of(4, torch.float32), action=DISCRETE), "is torch.float32; expected .* integer"),
        (specs_of(mask_of(3), action=BOX), r"Discrete or MultiDiscrete actions, .* takes action \(continuous\)"),
        (specs_of(mask_of(3), action=Spec((3,), torch.int8, "multi_binary")), r"takes action \(multi_binary\)"),
        (specs_of(mask_of(8), **{"action/0": DISCRETE, "action/1": DISCRETE}), "takes 2: action/0 .* MultiDiscrete"),
        (EnvSpecs({"obs/action_mask/gear": mask_of(4)}, {"action/gear": DISCRETE}), "has parts; expected one array"),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "gru", "transformer", "options, 3 steps", "mixture of mlps"])
def test_a_mask_that_does_not_fit_is_refused_by_every_agent(name: str, specs: EnvSpecs, message: str) -> None:
    with pytest.raises(SpecError, match=f"'obs/action_mask'.*{message}"):
        MAKERS[name](specs)


def test_a_convolutional_agent_refuses_it_too() -> None:
    image = Spec((12, 12), torch.uint8)
    with pytest.raises(SpecError, match=r"'obs/action_mask' has shape \(3,\)"):
        conv(EnvSpecs({"obs/action_mask": mask_of(3), "obs/image": image}, {"action": DISCRETE}))


def test_a_mask_alone_is_no_observation() -> None:
    with pytest.raises(AgentError, match="'obs/action_mask' alone"):
        MAKERS["mlp"](EnvSpecs({"obs/action_mask": mask_of(4)}, {"action": DISCRETE}))


# In the agents.

conv = partial(
    ConvActorCritic, filters=[4], kernel_sizes=[4], strides=[2], hidden_size=16, activation="relu", log_std_init=0.0
)
MASKING = {
    name: MAKERS[name]
    for name in ("mlp", "gru", "lstm", "transformer", "options, 3 steps", "options, learned ends", "mixture of options")
} | {"mixture of mlp, gru": partial(MixtureAgent, members={key: MAKERS[key] for key in ("mlp", "gru")})}


def taken_and_allowed(
    make_agent: Callable[[EnvSpecs], ActorCriticAgent], action: str, road: str, shown: str, workers: str = "local"
) -> None:
    """Collect with an agent, and check all that a mask has to do in what was collected and in its replay."""
    kwargs = {"action": action, "road": road, "shown": shown}
    make_env = partial(make, MASKED_ID, kwargs=kwargs, action_mask=road == "info")
    with Batcher(
        make_agent, make_env, num_workers=2, envs_per_worker=4, num_steps=32, seed=0, workers=workers
    ) as batcher:
        agent = wild(make_agent, batcher.specs)
        choices = next(spec for spec in batcher.specs.action.values() if spec.nvec).nvec
        suffix = "/gear" if action == "dict" else ""
        batcher.reset(agent_info=DictTensor({"deterministic": torch.arange(8) % 4 == 0}))
        batcher.publish(agent)
        for _ in range(4):
            piece = batcher.collect()
            stored, mask = piece.steps.group("agent"), piece.steps["env/obs/action_mask"] != 0
            actions = stored[f"action{suffix}"].reshape(8, 32, -1).unbind(-1)
            for drawn, allowed in zip(actions, mask.split(list(choices), -1), strict=True):
                assert not allowed.all()
                assert allowed.gather(-1, drawn.unsqueeze(-1)).all()
            logits = stored[f"logits{suffix}"]
            assert (logits[~mask] == -1e9).all()
            assert (logits[mask] > -1e3).all()
            outputs = replay(agent, piece)
            torch.testing.assert_close(outputs[f"logits{suffix}"], logits, rtol=1e-5, atol=1e-5)
            log_prob, entropy = agent.log_prob(outputs, stored), agent.entropy(outputs)
            torch.testing.assert_close(log_prob, agent.log_prob(stored, stored), rtol=1e-4, atol=1e-4)
            assert log_prob.isfinite().all()
            assert log_prob.min() > -1e3
            assert entropy.isfinite().all()
            agent.zero_grad()
            (log_prob.mean() + entropy.mean() + outputs["value"].mean()).backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in agent.parameters())


@pytest.mark.parametrize(
    ("action", "road", "shown"),
    [
        ("discrete", "observation", "numbers"),
        ("discrete", "info", "dict"),
        ("multi_discrete", "info", "numbers"),
        ("dict", "observation", "dict"),
    ],
)
@pytest.mark.parametrize("name", MASKING)
def test_agents_take_what_is_allowed_and_replay_gives_their_logits(
    name: str, action: str, road: str, shown: str
) -> None:
    taken_and_allowed(MASKING[name], action, road, shown)


@pytest.mark.parametrize("road", ["observation", "info"])
@pytest.mark.parametrize("action", MASKED_ACTION_SPACES)
def test_agents_that_look_at_images_do_likewise(action: str, road: str) -> None:
    taken_and_allowed(conv, action, road, "image")


@pytest.mark.parametrize("road", ["observation", "info"])
def test_worker_processes_do_likewise(road: str) -> None:
    taken_and_allowed(MASKING["mlp"], "discrete", road, "numbers", "process")


@pytest.mark.parametrize("name", MASKING)
def test_no_network_sees_the_mask(name: str) -> None:
    specs, without = specs_of(mask_of(4), action=DISCRETE), EnvSpecs({"obs/observation": PLACE}, {"action": DISCRETE})
    agent, other = wild(MASKING[name], specs), wild(MASKING[name], without)
    assert [p.shape for p in agent.parameters()] == [p.shape for p in other.parameters()]
    empty = DictTensor.empty(2)
    state = agent.initial_state(empty, 2)
    place = torch.randn(1, 3).repeat(2, 1)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]], dtype=torch.int8)
    seen = {"obs/observation": place, "obs/action_mask": mask}
    seen |= {"prev_action": torch.zeros(2, dtype=torch.int64), "prev_reward": torch.zeros(2)}
    seen |= {"is_first": torch.ones(2, dtype=torch.bool)}
    info = DictTensor({"policy": torch.zeros(2, dtype=torch.int64)}) if "mixture" in name else empty
    outputs, _ = agent.forward(DictTensor(seen), state, info)
    assert outputs["value"][0] == outputs["value"][1]
    logits = outputs["policies"][:, 0] if "options" in name else outputs["logits"]
    assert torch.equal(logits == -1e9, mask == 0)
    assert logits[0, 1] == logits[1, 1]


@pytest.mark.parametrize("masked", [True, False])
def test_the_short_way_of_acting_gives_what_the_long_way_gives(masked: bool) -> None:
    observation = {"obs/observation": torch.randn(64, 3)}
    specs = EnvSpecs({"obs/observation": PLACE}, {"action": DISCRETE})
    if masked:
        specs = specs_of(mask_of(4), action=DISCRETE)
        observation["obs/action_mask"] = (torch.rand(64, 4) < 0.5).to(torch.int8)
    actor = wild(partial(ActorCritic, **MLP), specs).actor()
    seen, empty = DictTensor(observation), DictTensor.empty(64)
    out = {"action": torch.full((64,), -1), "logits": torch.full((64, 4), math.nan)}
    with torch.inference_mode():
        actor.act_into(seen, empty, empty, torch.Generator().manual_seed(0), out)
        expected = actor.act(actor.forward(seen, empty, empty)[0], empty, torch.Generator().manual_seed(0))
    assert torch.equal(out["action"], expected["action"])
    torch.testing.assert_close(out["logits"], expected["logits"])


def test_an_agent_of_ones_own_masks_the_outputs_of_one_key() -> None:
    specs = specs_of(mask_of(4), **{"action/a": BOX, "action/b": DISCRETE, "action/c": BOX})
    masking = ActionMasking(specs)
    observation = DictTensor({"obs/action_mask": torch.tensor([[1, 0, 1, 0]], dtype=torch.int8)})
    masked = masking.apply(torch.ones(1, 2, 10), masking.of(observation))
    assert (masked[0] == torch.tensor([1, 1, 1, 1, -1e9, 1, -1e9, 1, 1, 1])).all()
    nothing = ActionMasking(EnvSpecs({"obs": PLACE}, {"action": DISCRETE}))
    parameters = torch.ones(1, 4)
    assert nothing.apply(parameters, nothing.of(observation)) is parameters


def test_no_rows_are_encoded_as_no_rows() -> None:
    specs = {
        "obs/place": PLACE,
        "obs/number": Spec((), torch.float32),
        "obs/image": Spec((2, 2), torch.uint8),
        "obs/byte": Spec((), torch.uint8),
        "obs/kind": DISCRETE,
        "obs/kinds": MULTI,
    }
    encoder = Encoder(specs)
    for rows in (0, 2):
        seen = DictTensor({key: spec.zeros(rows) for key, spec in specs.items()}, rows)
        assert encoder(seen).shape == (rows, 3 + 1 + 4 + 1 + 4 + 5)

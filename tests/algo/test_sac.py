"""SAC's losses: the exact log-probability, cases by hand, finite differences, and who learns from what."""

import math
from copy import deepcopy

import pytest
import torch

from rlx.agent import SoftActorCritic, SquashedGaussian
from rlx.algo.sac import loss
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor, Trajectories
from rlx.errors import AgentError

MOST = torch.finfo(torch.float32).max  # as environments write "unbounded", too
BOX = Spec((2,), torch.float32, low=(-2.0, 0.0), high=(2.0, 3.0))
SPECS = EnvSpecs({"obs": Spec((3,), torch.float32)}, {"action": BOX})


def soft(**changes) -> SoftActorCritic:
    options = {"hidden_sizes": [8, 8], "activation": "tanh", "temperature_init": 0.3, "num_skills": 0} | changes
    agent = SoftActorCritic(SPECS, **options)
    for parameter in agent.parameters():
        if parameter.dim():
            parameter.data.normal_(std=0.5)
    return agent


def batch_of(size: int, steps: int = 1, lengths: list[int] | None = None, dtype=torch.float32) -> Trajectories:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, steps, *shape, generator=generator, dtype=dtype)

    action = torch.tensor([-2.0, 0.0]) + torch.rand(size, steps, 2, generator=generator) * torch.tensor([4.0, 3.0])
    fields = {
        "env/obs": draw(3),
        "env/is_first": torch.zeros(size, steps, dtype=torch.bool),
        "agent/action": action.to(dtype),
        "next/obs": draw(3),
        "next/reward": draw(),
        "next/terminated": torch.rand(size, steps, generator=generator) < 0.3,
        "next/truncated": torch.rand(size, steps, generator=generator) < 0.3,
        "next/discount": torch.full((size, steps), 0.9, dtype=dtype),
    }
    return Trajectories(
        DictTensor.empty(size), TemporalDictTensor(fields, lengths or [steps] * size), DictTensor.empty(0)
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_log_probability_is_that_of_the_squashed_density() -> None:
    distribution = SquashedGaussian(SPECS)
    mean = torch.tensor([0.3, -0.7], dtype=torch.float64)
    log_std = torch.tensor([-0.5, 0.2], dtype=torch.float64)
    action, log_prob = distribution.sample(mean.expand(50, 2), log_std.expand(50, 2), seeded())
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, [torch.distributions.transforms.TanhTransform()])
    torch.testing.assert_close(log_prob, squashed.log_prob(action).sum(-1))


def test_what_is_drawn_to_act_is_what_is_sampled() -> None:
    distribution, mean, log_std = SquashedGaussian(SPECS), torch.randn(6, 2), torch.randn(6, 2)
    assert torch.equal(distribution.draw(mean, log_std, seeded(3)), distribution.sample(mean, log_std, seeded(3))[0])


def test_the_density_sums_to_one_and_stays_finite_far_out() -> None:
    distribution = SquashedGaussian(
        EnvSpecs(SPECS.observation, {"action": Spec((1,), torch.float32, low=(-1.0,), high=(1.0,))})
    )
    mean = torch.tensor([[30.0], [-30.0]], requires_grad=True)
    action, log_prob = distribution.sample(mean, torch.zeros(2, 1), seeded())
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert mean.grad.isfinite().all()
    assert action.abs().max() <= 1


def test_actions_reach_the_ends_of_the_box_and_come_back() -> None:
    distribution = SquashedGaussian(SPECS)
    squashed = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]])
    in_box = distribution.to_space(squashed)
    assert in_box.tolist() == [[-2.0, 0.0], [2.0, 3.0], [0.0, 2.25]]
    torch.testing.assert_close(distribution.from_space(in_box), squashed)


def test_losses_of_a_case_worked_step_by_step() -> None:
    agent = soft().double()
    target = deepcopy(agent.critics)
    for parameter in target.parameters():
        parameter.data += 0.3
    batch = batch_of(6, dtype=torch.float64)
    found = loss(agent, target, batch, seeded(), n_step=1, target_entropy=-2.0)
    steps, empty, generator = batch.steps, DictTensor.empty(6), seeded()
    alpha = agent.log_temperature.exp().item()
    after = agent.forward(DictTensor({"obs": steps["next/obs"][:, 0]}), empty, empty)[0]
    noise = torch.empty(6, 1, 2, dtype=torch.float64).normal_(generator=generator)[:, 0]
    u = after["mean"] + after["log_std"].exp() * noise
    log_prob = (torch.distributions.Normal(0, 1).log_prob(noise) - after["log_std"] - (1 - u.tanh() ** 2).log()).sum(-1)
    seen = torch.cat([steps["next/obs"][:, 0], u.tanh()], -1)
    next_value = torch.stack(target.network(seen)).amin(0)[:, 0] - alpha * log_prob
    goes_on = ~steps["next/terminated"][:, 0]
    wanted = steps["next/reward"][:, 0] + 0.9 * goes_on * next_value
    stored = (steps["agent/action"][:, 0] - torch.tensor([0.0, 1.5])) / torch.tensor([2.0, 1.5])
    q = torch.stack(agent.critics.network(torch.cat([steps["env/obs"][:, 0], stored], -1)))[..., 0]
    torch.testing.assert_close(found["loss/critic"], 0.5 * ((q - wanted) ** 2).mean(1).sum())

    now = agent.forward(DictTensor({"obs": steps["env/obs"][:, 0]}), empty, empty)[0]
    noise = torch.empty(6, 1, 2, dtype=torch.float64).normal_(generator=generator)[:, 0]
    u = now["mean"] + now["log_std"].exp() * noise
    log_prob = (torch.distributions.Normal(0, 1).log_prob(noise) - now["log_std"] - (1 - u.tanh() ** 2).log()).sum(-1)
    q = torch.stack(agent.critics.network(torch.cat([steps["env/obs"][:, 0], u.tanh()], -1)))[..., 0]
    torch.testing.assert_close(found["loss/actor"], (alpha * log_prob - q.amin(0)).mean())
    torch.testing.assert_close(found["loss/temperature"], -math.log(alpha) * (log_prob.mean() - 2.0))
    total = found["loss/critic"] + found["loss/actor"] + found["loss/temperature"]
    torch.testing.assert_close(found["loss/total"], total)


def gradients(agent: SoftActorCritic, term: torch.Tensor) -> dict[str, bool]:
    agent.zero_grad()
    term.backward(retain_graph=True)
    parts = {"critics": agent.critics, "policy": agent.policy, "layers": agent.layers}
    found = {
        name: any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
        for name, part in parts.items()
    }
    grad = agent.log_temperature.grad
    return found | {"temperature": grad is not None and bool(grad.abs() > 0)}


def test_no_loss_sends_gradients_to_what_another_one_trains() -> None:
    agent = soft()
    target = deepcopy(agent.critics)
    terms = loss(agent, target, batch_of(6), seeded(), n_step=1, target_entropy=-2.0)
    nothing = {"critics": False, "policy": False, "layers": False, "temperature": False}
    assert gradients(agent, terms["loss/critic"]) == nothing | {"critics": True}
    assert gradients(agent, terms["loss/actor"]) == nothing | {"policy": True, "layers": True}
    assert gradients(agent, terms["loss/temperature"]) == nothing | {"temperature": True}
    assert all(parameter.grad is None for parameter in target.parameters())


def test_too_little_entropy_raises_the_temperature() -> None:
    for wanted, sign in ((50.0, -1), (-50.0, 1)):
        agent = soft()
        loss(agent, deepcopy(agent.critics), batch_of(6), seeded(), n_step=1, target_entropy=wanted)[
            "loss/temperature"
        ].backward()
        assert agent.log_temperature.grad.sign() == sign  # a step goes against it


@pytest.mark.parametrize("term", ["loss/critic", "loss/actor", "loss/temperature"])
def test_the_gradient_is_that_of_finite_differences(term: str) -> None:
    torch.manual_seed(0)
    agent = soft().double()
    target = deepcopy(agent.critics)
    batch = batch_of(5, dtype=torch.float64)

    def value() -> torch.Tensor:
        return loss(agent, target, batch, seeded(), n_step=1, target_entropy=-2.0)[term]

    value().backward()
    trained = {"loss/critic": agent.critics, "loss/actor": agent.layers}.get(term)
    parameters = [agent.log_temperature] if trained is None else list(trained.parameters())
    checked = 0
    for parameter in parameters:
        flat = parameter.data.view(-1)
        for place in torch.randperm(parameter.numel())[:4].tolist():
            kept, step = flat[place].item(), 1e-6
            flat[place] = kept + step
            above = value().item()
            flat[place] = kept - step
            below = value().item()
            flat[place] = kept
            assert parameter.grad.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)
            checked += 1
    assert checked > 10 or trained is None


def test_padding_is_in_no_mean() -> None:
    agent = soft()
    target = deepcopy(agent.critics)
    batch = batch_of(3, 4, [4, 2, 1])
    found = loss(agent, target, batch, seeded(), n_step=1, target_entropy=-2.0)
    fields = {key: batch.steps[key].clone() for key in batch.steps}
    for value in fields.values():
        if value.dtype.is_floating_point:
            value[~batch.steps.mask()] = 1e6
    spoiled = Trajectories(batch.info, TemporalDictTensor(fields, batch.steps.lengths), batch.bootstrap)
    again = loss(agent, target, spoiled, seeded(), n_step=1, target_entropy=-2.0)
    for name in found:
        torch.testing.assert_close(again[name], found[name], msg=name)


def test_sequences_that_burn_in_uses_up_count_nothing() -> None:
    agent = soft()
    terms = loss(agent, deepcopy(agent.critics), batch_of(2, 3, [0, 0]), seeded(), n_step=1, target_entropy=-2.0)
    terms["loss/total"].backward()
    assert terms["loss/total"] == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in agent.parameters())


def test_the_first_actions_are_drawn_evenly_and_the_mode_is_the_means() -> None:
    agent, empty = soft(), DictTensor.empty(4000)
    outputs, _ = agent.forward(DictTensor({"obs": torch.randn(4000, 3)}), empty, empty)
    info = DictTensor({"random": torch.ones(4000, dtype=torch.bool)})
    action = agent.act(outputs, info, seeded())["action"]
    assert action.mean(0).tolist() == pytest.approx([0.0, 1.5], abs=0.1)
    assert action.std(0).tolist() == pytest.approx([4 / 12**0.5, 3 / 12**0.5], abs=0.05)
    deterministic = DictTensor({"deterministic": torch.ones(4000, dtype=torch.bool)})
    mode = agent.act(outputs, deterministic, seeded())["action"]
    torch.testing.assert_close(mode, agent.distribution.to_space(outputs["mean"].tanh()))


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (Spec((), torch.int64, "discrete", nvec=(4,)), "algo=dqn, ppo or a2c"),
        (Spec((1,), torch.float32), "finite bounds.*algo=ppo or a2c"),
        (Spec((2,), torch.float32, low=(-1.0, -math.inf), high=(1.0, 1.0)), "finite bounds.*algo=ppo or a2c"),
        (Spec((1,), torch.float32, low=(-MOST,), high=(MOST,)), "finite bounds.*algo=ppo or a2c"),
    ],
)
def test_other_actions_are_refused_with_what_fits(action: Spec, named: str) -> None:
    with pytest.raises(AgentError, match=named):
        SquashedGaussian(EnvSpecs(SPECS.observation, {"action": action}))


@pytest.mark.parametrize(
    ("low", "high", "shape"),
    [
        ((-2.0,), (2.0,), ()),
        ((-2.0,), (2.0,), (1,)),
        ((0.0, -1.0), (0.0, 3.0), (2,)),
        ((-1.0,) * 6, (1.0,) * 6, (2, 3)),
    ],
)
def test_actions_of_any_bounded_box_come_back_from_the_environments_form(
    low: tuple[float, ...], high: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    action = Spec(shape, torch.float32, low=low, high=high)
    squashed = SquashedGaussian(EnvSpecs({"obs": Spec((3,), torch.float32)}, {"action": action}))
    drawn = torch.rand(7, squashed.size) * 2 - 1
    kept = squashed.to_space(drawn)
    assert kept.shape == (7, *shape)
    fixed = torch.tensor([least == most for least, most in zip(low, high, strict=True)])
    wanted = drawn.masked_fill(fixed, 0.0)  # a place that is fixed is always in its middle
    torch.testing.assert_close(squashed.from_space(kept), wanted)
    torch.testing.assert_close(squashed.from_space(kept.view(7, 1, *shape)), wanted.view(7, 1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_actions_of_any_precision_are_valued_in_that_of_the_critics(dtype: torch.dtype) -> None:
    action = Spec((2,), dtype, low=(-2.0, 0.0), high=(2.0, 1.0))
    specs = EnvSpecs({"obs": Spec((3,), torch.float32)}, {"action": action})
    agent = SoftActorCritic(specs, hidden_sizes=[8], activation="relu", temperature_init=0.2, num_skills=0)
    drawn = agent.distribution.to_space(torch.rand(5, 2))
    assert drawn.dtype == dtype
    assert agent.critics.q(torch.zeros(5, 3), agent.distribution.from_space(drawn)).dtype == torch.float32

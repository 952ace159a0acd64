"""A2C's loss: by hand, by finite differences (REINFORCE's too), and what must not enter it."""

from pathlib import Path

import pytest
import torch

from rlx.agent import ActorCriticAgent, replay, replay_with_values
from rlx.algo import a2c, reinforce
from rlx.algo.a2c import loss
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.run.metrics import read_metrics
from tests.agent.agents import Recurrent, actor_critic, steps_of
from tests.run.jobs import train

NUMBERS = {
    "gamma": 0.5, "gae_lambda": 0.5, "ent_coef": 0.01, "vf_coef": 0.5, "normalize_advantage": False, "vtrace": False,
}  # fmt: skip


class Table(ActorCriticAgent):
    """An actor-critic that looks its values up; the observation is the row. Its policy is even over two actions."""

    def __init__(self, value: list[float]) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))
        self.logit = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, observation, state, agent_info, taken=None):
        row = observation["obs"]
        logits = torch.stack([self.logit.expand(row.shape), torch.zeros(row.shape)], dim=-1)
        return DictTensor({"value": self.value[row], "logits": logits}), state

    def log_prob(self, outputs, taken):
        return outputs["logits"].log_softmax(-1).gather(-1, taken["action"].unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs):
        log_probs = outputs["logits"].log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


def by_hand(truncated: bool) -> Trajectories:
    """Return three steps 0, 1, 2; the episode ends at the second, in observation 3, and 4 follows the third."""
    no = torch.zeros(1, 3, dtype=torch.bool)
    end = no.clone()
    end[0, 1] = True
    fields = {
        "env/obs": torch.tensor([[0, 1, 2]]),
        "env/is_first": torch.tensor([[True, False, True]]),
        "agent/action": torch.tensor([[0, 1, 0]]),
        "next/reward": torch.tensor([[1.0, 2.0, 3.0]]),
        "next/terminated": no if truncated else end,
        "next/truncated": end if truncated else no,
    }
    ends = [(0, 2, 4), *[(0, 1, 3)] * truncated]
    row, time, obs = (torch.tensor(column) for column in zip(*ends, strict=True))
    return Trajectories(
        DictTensor.empty(1), TemporalDictTensor(fields, [3]), DictTensor({"row": row, "time": time, "obs": obs})
    )


@pytest.mark.parametrize("truncated", [False, True])
def test_loss_of_a_case_worked_by_hand(truncated: bool) -> None:
    # errors: 1 + .5 * 1 - 1; 2 + .5 * (4 if cut by a time limit) - 1; 3 + .5 * 8 - 2. The first one's estimate has a
    # quarter of the second's; the third is another episode's.
    agent = Table([1.0, 1.0, 2.0, 4.0, 8.0])
    second = 2 + 2.0 * truncated - 1
    advantage = [0.5 + 0.25 * second, second, 5.0]
    found = loss(agent, by_hand(truncated), **NUMBERS)
    log_half = torch.tensor(0.5).log().item()
    assert found["loss/policy"].item() == pytest.approx(-log_half * sum(advantage) / 3)
    assert found["loss/value"].item() == pytest.approx(0.5 * sum(a * a for a in advantage) / 3)
    assert found["loss/entropy"].item() == pytest.approx(-log_half)
    expected = found["loss/policy"] + 0.5 * found["loss/value"] - 0.01 * found["loss/entropy"]
    torch.testing.assert_close(found["loss/total"], expected)
    # No gradient through the target or the advantage: that of the value is its own error alone, that of what only
    # follows is none, and that of the policy is its score times the advantage.
    found["loss/total"].backward()
    assert agent.value.grad.tolist() == pytest.approx([*(-0.5 * a / 3 for a in advantage), 0.0, 0.0])
    score = [0.5, -0.5, 0.5]
    assert agent.logit.grad.item() == pytest.approx(-sum(s * a for s, a in zip(score, advantage, strict=True)) / 3)


def test_what_an_older_policy_did_is_weighted_by_vtrace() -> None:
    # It took the three actions with probabilities .8, .25 and .5, this one takes each with .5: ratios .625, 2 and 1.
    agent, batch = Table([1.0, 1.0, 2.0, 4.0, 8.0]), by_hand(False)
    probability = torch.tensor([[[0.8, 0.2], [0.75, 0.25], [0.5, 0.5]]])
    batch = batch.with_steps(**{"agent/logits": probability.log()})
    advantage = [0.625 * (0.5 + 0.25), 1.0, 5.0]
    found = loss(agent, batch, **(NUMBERS | {"vtrace": True}))
    assert found["loss/policy"].item() == pytest.approx(-torch.tensor(0.5).log().item() * sum(advantage) / 3)
    assert found["loss/value"].item() == pytest.approx(0.5 * sum(a * a for a in advantage) / 3)
    assert found["a2c/ratio"].item() == pytest.approx((0.625 + 2 + 1) / 3)
    found["loss/total"].backward()  # the ratio is a constant
    score = [0.5, -0.5, 0.5]
    assert agent.logit.grad.item() == pytest.approx(-sum(s * a for s, a in zip(score, advantage, strict=True)) / 3)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_workers_that_run_ahead_are_corrected_for_unasked(asynchronous: bool, tmp_path: Path) -> None:
    words = ["algo=a2c", "total_steps=192", "batcher.envs_per_worker=4", "algo.num_steps=8", "algo.learning_rate=0.1"]
    run = train(tmp_path / "run", *words, "batcher=process", f"batcher.asynchronous={str(asynchronous).lower()}")
    rows = read_metrics(run / "metrics.csv")
    assert len(rows) == 3
    ratios = [row["a2c/ratio"] for row in rows if "a2c/ratio" in row]
    if asynchronous:
        assert ratios[0] == pytest.approx(1.0)  # the first piece is of the weights that it teaches
        assert all(abs(ratio - 1) > 1e-4 for ratio in ratios[1:])
    else:
        assert ratios == []


class Scaled(Table):
    """An actor-critic whose returns have a standard deviation of 4."""

    def value_scale(self, outputs):
        return torch.tensor(4.0)


def test_values_count_in_standard_deviations_of_returns() -> None:
    values = [1.0, 1.0, 2.0, 4.0, 8.0]
    plain, found = (loss(agent, by_hand(False), **NUMBERS) for agent in (Table(values), Scaled(values)))
    torch.testing.assert_close(found["loss/value"], plain["loss/value"] / 16)
    torch.testing.assert_close(found["loss/policy"], plain["loss/policy"])


def prepared(lengths: list[int], dtype: torch.dtype = torch.float32, agent=None) -> tuple:
    torch.manual_seed(0)
    agent = actor_critic() if agent is None else agent
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.5)
    return agent.to(dtype), steps_of(lengths, max(lengths), seed=2, dtype=dtype)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("vtrace", [False, True])
def test_padding_is_in_no_mean_and_no_gradient(normalize: bool, vtrace: bool) -> None:
    agent, trajectories = prepared([5, 3, 0])
    numbers = NUMBERS | {"normalize_advantage": normalize, "vtrace": vtrace}
    found = loss(agent, trajectories, **numbers)
    fields = {key: trajectories.steps[key].clone() for key in trajectories.steps}
    for value in fields.values():
        if value.dtype.is_floating_point:
            value[~trajectories.steps.mask()] = 1e9
    steps = TemporalDictTensor(fields, trajectories.steps.lengths)
    spoiled = loss(agent, Trajectories(trajectories.info, steps, trajectories.bootstrap), **numbers)
    for name in found:
        torch.testing.assert_close(spoiled[name], found[name], msg=name)


def test_batches_joined_of_split_trajectories_give_the_same_loss() -> None:
    agent, batch = prepared([5, 4, 3])
    whole = loss(agent, batch, **NUMBERS)["loss/total"]
    parts = [batch.rows(slice(0, 1)), batch.rows(slice(1, 3))]
    weights = [part.num_steps / batch.num_steps for part in parts]
    joined = sum(w * loss(agent, part, **NUMBERS)["loss/total"] for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(joined, whole)


def test_every_observation_is_seen_once() -> None:
    agent, batch = prepared([5, 4, 3])
    seen: list[int] = []
    forward = agent.forward
    agent.forward = lambda observation, *rest: (seen.append(observation.batch_size), forward(observation, *rest))[1]
    loss(agent, batch, **NUMBERS)
    assert seen == [12, batch.bootstrap.batch_size]


def test_a_recurrent_agent_learns_through_its_memory() -> None:
    class RecurrentActorCritic(Recurrent, ActorCriticAgent):
        log_prob, entropy = Table.log_prob, Table.entropy

    from tests.agent.agents import SPECS

    agent, batch = prepared([5, 5], agent=RecurrentActorCritic(SPECS))
    batch.info = DictTensor({"agent_state/hidden": torch.randn(2, 6)})
    loss(agent, batch, **NUMBERS)["loss/total"].backward()
    assert agent.cell.weight_hh.grad.abs().sum() > 0


@pytest.mark.parametrize("algo", ["a2c", "reinforce"])
def test_the_gradient_is_that_of_finite_differences(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, batch = prepared([5, 3, 1], torch.float64)
    module = {"a2c": a2c, "reinforce": reinforce}[algo]
    constant = replay_with_values(agent, batch)[1:]  # what the advantage is made of does not move with the weights
    monkeypatch.setattr(module, "replay_with_values", lambda agent, batch: (replay(agent, batch), *constant))
    numbers = {key: value for key, value in NUMBERS.items() if algo == "a2c" or key not in ("gae_lambda", "vtrace")}
    numbers |= {"baseline": True} if algo == "reinforce" else {}

    def total() -> torch.Tensor:
        return module.loss(agent, batch, **numbers)["loss/total"]

    total().backward()
    checked = 0
    for parameter in agent.parameters():
        flat, step = parameter.data.view(-1), 1e-6
        for place in torch.randperm(parameter.numel())[:4].tolist():
            kept = flat[place].item()
            flat[place] = kept + step
            above = total().item()
            flat[place] = kept - step
            below = total().item()
            flat[place] = kept
            assert parameter.grad is not None
            assert parameter.grad.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)
            checked += 1
    assert checked > 15

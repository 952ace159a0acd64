"""DQN's loss: by hand, by finite differences, and what must not enter it."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from rlx.agent import Agent, QNetwork, burn_in, replay
from rlx.algo import dqn
from rlx.algo.dqn import ahead, priority, quantile_huber
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.run.checkpoint import find_checkpoint, load_checkpoint
from tests.agent.agents import SPECS, Recurrent, steps_of
from tests.learning.test_ppo import trained


class Table(Agent):
    """A Q-function that looks its values up: the observation is the row."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table))

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"q": self.table[observation["obs"]]}), state


def transitions(rows: list[tuple], weight: list[float] | None = None, gamma: float = 0.5) -> Trajectories:
    """Return transitions (obs, action, reward, terminated, truncated, next_obs)."""
    obs, action, reward, terminated, truncated, following = zip(*rows, strict=True)
    fields = {
        "env/obs": torch.tensor(obs).unsqueeze(1),
        "agent/action": torch.tensor(action).unsqueeze(1),
        "next/reward": torch.tensor(reward).unsqueeze(1),
        "next/terminated": torch.tensor(terminated).unsqueeze(1),
        "next/truncated": torch.tensor(truncated).unsqueeze(1),
        "next/obs": torch.tensor(following).unsqueeze(1),
        "next/discount": torch.full((len(rows), 1), gamma),
    }
    info = DictTensor({"weight": torch.tensor(weight or [1.0] * len(rows))})
    return Trajectories(info, TemporalDictTensor(fields, [1] * len(rows)), DictTensor.empty(0))


def loss(agent: Agent, target: Agent, batch: Trajectories, **numbers) -> dict[str, torch.Tensor]:
    """Return DQN's loss where `target` is the target network."""
    return dqn.loss(agent, batch.with_steps(**ahead(target, batch)), **numbers)


ROWS = [
    (0, 0, 1.0, False, False, 1),  # goes on
    (0, 1, 1.0, True, False, 1),  # terminated: nothing follows
    (1, 0, 1.0, False, True, 2),  # truncated: what followed counts
    (1, 1, 1.0, True, True, 2),  # both: termination wins
]
ONLINE = [[1.0, 2.0], [0.5, 0.25], [3.0, 7.0]]
TARGET = [[0.0, 0.0], [2.0, 4.0], [6.0, 5.0]]


@pytest.mark.parametrize("double", [False, True])
def test_loss_of_a_case_worked_by_hand(double: bool) -> None:
    # the target network values the next states 4 and 6; double: it values actions 0 and 1 there, 2 and 5
    ahead = (2.0, 5.0) if double else (4.0, 6.0)
    wanted = [1 + 0.5 * ahead[0], 1.0, 1 + 0.5 * ahead[1], 1.0]
    predicted = [1.0, 2.0, 0.5, 0.25]
    errors = [y - q for y, q in zip(wanted, predicted, strict=True)]
    huber = [0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in errors]
    batch = transitions(ROWS, [1.0, 0.5, 1.0, 0.25])
    found = loss(Table(ONLINE), Table(TARGET), batch, n_step=1, double=double)
    expected = (huber[0] + 0.5 * huber[1] + huber[2] + 0.25 * huber[3]) / 4
    assert found["loss/total"].item() == pytest.approx(expected)
    assert found["dqn/q"].item() == pytest.approx(sum(predicted) / 4)
    assert found["td_error"].flatten().tolist() == pytest.approx(errors)


def test_nothing_is_learned_through_the_target() -> None:
    agent, target = Table(ONLINE), Table(TARGET)
    loss(agent, target, transitions(ROWS[:1]), n_step=1, double=True)["loss/total"].backward()
    assert target.table.grad is None
    assert agent.table.grad[1].tolist() == [0.0, 0.0]  # the next state's row: chosen by it, not learned through it
    assert (
        agent.table.grad[0, 0].item() == -1.0
    )  # 1 is below the 2 that is wanted, by the unit where Huber turns linear


def test_quantile_huber_of_a_case_worked_by_hand() -> None:
    # two quantiles, tau 1/4 and 3/4; targets 1, 4, 5; differences for the first 1, 4, 5, for the second -2, 1, 2
    predicted, wanted = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 4.0, 5.0]])
    first = (0.25 * 0.5 + 0.25 * 3.5 + 0.25 * 4.5) / 3
    second = (0.25 * 1.5 + 0.75 * 0.5 + 0.75 * 1.5) / 3
    assert quantile_huber(predicted, wanted).item() == pytest.approx(first + second)


def test_sequences_sum_n_steps_up() -> None:
    # one sequence 0 -> 1 -> 2, actions 0, 1, rewards 1, 2; what follows its end is row 2, worth 6 to the target
    rows = transitions([(0, 0, 1.0, False, False, 1), (1, 1, 2.0, False, False, 2)]).steps
    fields = {key: rows[key].transpose(0, 1) for key in rows}
    batch = Trajectories(DictTensor({"weight": torch.ones(1)}), TemporalDictTensor(fields, [2]), DictTensor.empty(0))
    one = loss(Table(ONLINE), Table(TARGET), batch, n_step=1, double=False)["td_error"]
    two = loss(Table(ONLINE), Table(TARGET), batch, n_step=2, double=False)["td_error"]
    assert one.tolist() == [[1 + 0.5 * 4 - 1.0, 2 + 0.5 * 6 - 0.25]]
    assert two.tolist() == [[1 + 0.5 * 2 + 0.25 * 6 - 1.0, 2 + 0.5 * 6 - 0.25]]


def test_quantiles_settle_at_the_quantiles_of_the_targets() -> None:
    predicted = torch.zeros(4, requires_grad=True)
    wanted = torch.arange(0.0, 800.0, 1.0)
    optimizer = torch.optim.Adam([predicted], lr=5.0)
    for _ in range(2000):
        optimizer.zero_grad()
        quantile_huber(predicted, wanted).backward()
        optimizer.step()
    assert predicted.tolist() == pytest.approx([100, 300, 500, 700], abs=10)


def q_network(**changes) -> QNetwork:
    options = {"hidden_sizes": [8, 8], "activation": "tanh", "dueling": True, "num_quantiles": 0} | changes
    agent = QNetwork(SPECS, **options)
    for parameter in agent.parameters():
        parameter.data.normal_(std=0.5)
    return agent


def sequences(lengths: list[int], dtype: torch.dtype = torch.float32) -> Trajectories:
    trajectories = steps_of(lengths, max(lengths), seed=2, dtype=dtype)
    discount = torch.full(trajectories.steps.leading_shape, 0.9, dtype=dtype)
    weight = torch.linspace(1, 2, len(lengths), dtype=dtype)
    info = trajectories.info | DictTensor({"weight": weight, "agent_state/hidden": torch.full((len(lengths), 6), 0.1)})
    with_discount = trajectories.with_steps(**{"next/discount": discount})
    return Trajectories(info, with_discount.steps, trajectories.bootstrap)


class RecurrentQ(Recurrent):
    """A recurrent Q-network."""

    def forward(self, observation, state, agent_info, taken=None):
        outputs, state = super().forward(observation, state, agent_info, taken)
        return DictTensor({"q": outputs["logits"]}), state


@pytest.mark.parametrize("quantiles", [0, 5])
@pytest.mark.parametrize("n_step", [1, 3])
def test_the_gradient_is_that_of_finite_differences(quantiles: int, n_step: int) -> None:
    torch.manual_seed(0)
    agent = q_network(num_quantiles=quantiles).double()
    target = deepcopy(agent)
    for parameter in target.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    batch = sequences([5, 3, 1], torch.float64)
    numbers = {"n_step": n_step, "double": True}
    loss(agent, target, batch, **numbers)["loss/total"].backward()
    checked = 0
    for parameter in agent.parameters():
        flat = parameter.data.view(-1)
        for place in torch.randperm(parameter.numel())[:4].tolist():
            kept, step = flat[place].item(), 1e-6
            flat[place] = kept + step
            above = loss(agent, target, batch, **numbers)["loss/total"].item()
            flat[place] = kept - step
            below = loss(agent, target, batch, **numbers)["loss/total"].item()
            flat[place] = kept
            assert parameter.grad.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
def test_padding_is_in_no_mean_and_no_target(recurrent: bool, n_step: int) -> None:
    torch.manual_seed(0)
    agent = RecurrentQ(SPECS) if recurrent else q_network()
    target = deepcopy(agent)
    batch = sequences([5, 3, 1])
    found = loss(agent, target, batch, n_step=n_step, double=True)
    parts = [batch.rows(slice(row, row + 1)) for row in range(3)]
    alone = []
    for part in parts:
        length = int(part.steps.lengths)
        alone.append(
            loss(agent, target, Trajectories(part.info, part.steps.slice_time(0, length), part.bootstrap),
                 n_step=n_step, double=True)
        )  # fmt: skip
    total = sum(length * terms["loss/total"] for length, terms in zip([5, 3, 1], alone, strict=True)) / 9
    torch.testing.assert_close(found["loss/total"], total)
    fields = {key: batch.steps[key].clone() for key in batch.steps}
    for value in fields.values():
        if value.dtype.is_floating_point:
            value[~batch.steps.mask()] = 1e9
    spoiled = Trajectories(batch.info, TemporalDictTensor(fields, batch.steps.lengths), batch.bootstrap)
    torch.testing.assert_close(loss(agent, target, spoiled, n_step=n_step, double=True), found)


def test_the_state_after_burn_in_is_that_of_running_over_the_steps() -> None:
    torch.manual_seed(0)
    agent, batch = RecurrentQ(SPECS), sequences([6, 4, 2, 5])
    first = batch.steps["env/is_first"]
    first[:3, 0], first[3, 0] = False, True
    rest = burn_in(agent, batch, 3)
    assert rest.steps.lengths.tolist() == [3, 1, 0, 5]  # the last one's state is no older than its episode
    whole, later = replay(agent, batch)["q"], replay(agent, rest)["q"]
    for row, skipped in enumerate([3, 3, 3, 0]):
        count = int(rest.steps.lengths[row])
        torch.testing.assert_close(later[row, :count], whole[row, skipped : skipped + count])
        assert torch.equal(rest.steps["next/reward"][row, :count], batch.steps["next/reward"][row, skipped:][:count])
    assert not rest.info["agent_state/hidden"].requires_grad
    ends = {int(row): int(time) for row, time in zip(rest.bootstrap["row"], rest.bootstrap["time"], strict=True)}
    before = {int(row): int(time) for row, time in zip(batch.bootstrap["row"], batch.bootstrap["time"], strict=True)}
    assert ends == {row: time if row == 3 else time - 3 for row, time in before.items() if row == 3 or time >= 3}


def test_sequences_that_burn_in_uses_up_count_nothing() -> None:
    torch.manual_seed(0)
    agent, batch = RecurrentQ(SPECS), sequences([2, 3])
    batch.steps["env/is_first"][:] = False
    terms = loss(agent, deepcopy(agent), burn_in(agent, batch, 3), n_step=1, double=True)
    terms["loss/total"].backward()
    assert terms["loss/total"] == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in agent.parameters())


def test_priority_is_of_the_greatest_and_the_mean_error() -> None:
    found = priority(torch.tensor([[1.0, -3.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([2, 1]))
    assert found.tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 2.0])


@pytest.mark.parametrize(
    "changes", [[], ["algo.tau=0.5"], ["algo.prioritized_alpha=0.6"]], ids=["hard", "soft", "prioritised"]
)
def test_target_values_of_many_batches_at_once_are_those_of_each_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    words = ["algo=dqn", "env=CartPole", "batcher=local", "batcher.envs_per_worker=2", "agent.hidden_sizes=[8]"]
    words += ["algo.num_steps=16", "algo.num_updates=7", "algo.batch_size=8", "algo.learning_starts=32"]
    words += ["algo.target_update_interval=5", "total_steps=320", "algo.learning_rate=0.05", *changes]
    at_once = trained(tmp_path / "at_once", *words)
    monkeypatch.setattr(dqn, "_stretches", lambda number, done, interval: [1] * number)
    in_turn = trained(tmp_path / "in_turn", *words)
    weights = [load_checkpoint(find_checkpoint(run)).state for run in (at_once, in_turn)]
    for name in ("agent", "target"):
        for key, value in weights[0][name].items():
            torch.testing.assert_close(value, weights[1][name][key], rtol=1e-4, atol=1e-5)

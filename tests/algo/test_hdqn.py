"""h-DQN: each level's loss by hand, who learns what, and the command line's way."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from rlx.agent import HierarchicalQNetwork
from rlx.algo.hdqn import achieves, loss
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor, Trajectories
from rlx.errors import AgentError, ConfigError
from tests.agent.agents import SPECS as PLAIN
from tests.learning.test_ppo import trained

SPECS = EnvSpecs(
    {"obs/achieved_goal": Spec((), torch.int64, "discrete", nvec=(3,))},
    {"action": Spec((), torch.int64, "discrete", nvec=(2,))},
)


def agent_of(seed: int) -> HierarchicalQNetwork:
    torch.manual_seed(seed)
    return HierarchicalQNetwork(SPECS, option_steps=5, hidden_sizes=[8], activation="tanh", dueling=True)


def transitions(rows: list[tuple], discount: list[float]) -> Trajectories:
    """Return transitions (cell, option, action, reward, terminated, next cell)."""
    cell, option, action, reward, terminated, following = zip(*rows, strict=True)
    fields = {
        "env/obs/achieved_goal": cell, "agent/option": option, "agent/action": action, "next/reward": reward,
        "next/terminated": terminated, "next/truncated": [False] * len(rows), "next/obs/achieved_goal": following,
        "next/discount": discount,
    }  # fmt: skip
    columns = {key: torch.tensor(value).unsqueeze(1) for key, value in fields.items()}
    info = DictTensor({"weight": torch.ones(len(rows))})
    return Trajectories(info, TemporalDictTensor(columns, [1] * len(rows)), DictTensor.empty(0))


ROWS = [
    (0, 2, 1, 0.25, False, 1),  # goes on
    (1, 2, 0, 0.5, False, 2),  # the option's goal is achieved: the worker's end, not the manager's
    (2, 0, 1, 1.0, True, 1),  # the task ends without it: both levels' end
]


def values(agent: HierarchicalQNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what options `[3, 3]` and actions under them `[3, 3, 2]` are worth in each cell."""
    seen = DictTensor({"obs/achieved_goal": torch.arange(3)})
    outputs, _ = agent.forward(seen, agent.initial_state(DictTensor.empty(3), 3), DictTensor.empty(3))
    return outputs["option_q"].detach(), outputs["worker_q"].detach()


@pytest.mark.parametrize("double", [False, True])
def test_both_levels_targets_are_those_worked_out_one_by_one(double: bool) -> None:
    agent, target = agent_of(0), agent_of(1)
    (high, low), (old_high, old_low) = values(agent), values(target)
    discounts = [0.5**3, 0.5, 0.5**2]
    found = loss(agent, target, transitions(ROWS, discounts), transitions(ROWS, [0.9] * 3), double=double)

    def ahead(own: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return old[own.argmax()] if double else old.max()

    def huber(error: torch.Tensor) -> torch.Tensor:
        return 0.5 * error**2 if error.abs() < 1 else error.abs() - 0.5

    manager = worker = torch.tensor(0.0)
    for (cell, option, action, reward, terminated, following), discount in zip(ROWS, discounts, strict=True):
        wanted = reward + discount * (not terminated) * ahead(high[following], old_high[following])
        manager = manager + huber(wanted - high[cell, option]) / 3
        there = following == option
        after = 0.9 * (not (terminated or there)) * ahead(low[following, option], old_low[following, option])
        worker = worker + huber(float(there) + after - low[cell, option, action]) / 3
    torch.testing.assert_close(found["loss/manager"].detach(), manager)
    torch.testing.assert_close(found["loss/worker"].detach(), worker)
    torch.testing.assert_close(found["loss/total"].detach(), manager + worker)
    assert found["hdqn/achieved"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("level", ["manager", "worker"])
def test_each_level_is_trained_by_its_own_loss_alone(level: str) -> None:
    agent = agent_of(0)
    batch = transitions(ROWS, [0.5] * 3)
    loss(agent, deepcopy(agent), batch, batch, double=True)[f"loss/{level}"].backward()
    trained_ones = {name.split(".")[0] for name, p in agent.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained_ones == {level}


def test_a_worker_is_paid_where_its_option_is_achieved() -> None:
    reward, ends = achieves(torch.tensor([[1], [2]]), torch.tensor([[1], [0]]))
    assert reward.tolist() == [[1.0], [0.0]]
    assert ends.tolist() == [[True], [False]]


def test_other_agents_and_environments_without_discrete_goals_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"discrete obs/achieved_goal; the environment shows obs \(continuous\)"):
        HierarchicalQNetwork(PLAIN, option_steps=5, hidden_sizes=[8], activation="tanh", dueling=True)
    with pytest.raises(AgentError, match="algo=hdqn needs agent=hierarchical_q_network, got QNetwork"):
        trained(tmp_path / "run", "algo=hdqn", "env=Errand", "agent=q_network", "batcher=local")
    assert not (tmp_path / "run").exists()


def test_buffer_that_may_hold_no_choice_of_the_manager_is_refused_at_the_start(tmp_path: Path) -> None:
    least = 2 * (40 + 3 + 1)
    words = ["algo=hdqn", "env=Errand", "batcher=local", "batcher.envs_per_worker=2", "agent.option_steps=40"]
    words += ["algo.num_steps=3", "algo.learning_starts=1", "algo.num_updates=1", "total_steps=600"]
    with pytest.raises(ConfigError, match=rf"algo.buffer_size: got {least - 1}, expected {least} or more"):
        trained(tmp_path / "few", *words, f"algo.buffer_size={least - 1}")
    trained(tmp_path / "enough", *words, f"algo.buffer_size={least}")

"""FlatAdam against torch's own Adam and gradient clipping."""

from collections.abc import Iterator

import pytest
import torch

from rlx.algo.optimizer import FlatAdam
from tests.agent.agents import actor_critic


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Those that torch has started already do not take subnormal numbers for zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("max_norm", [0.05, 1e6], ids=["clipped", "whole"])
def test_updates_are_those_of_torchs_adam(max_norm: float) -> None:
    torch.manual_seed(0)
    agent, other = actor_critic(), actor_critic()
    other.load_state_dict(agent.state_dict())
    mine, theirs = FlatAdam(agent, eps=1e-5), torch.optim.Adam(other.parameters(), eps=1e-5, fused=True)
    features = torch.randn(16, 3)
    for step in range(5):
        rate = 1e-2 / (step + 1)
        mine.zero_grad()
        sum(output.square().sum() for output in agent.network(features)).backward()
        norm = mine.clip_grad_norm(max_norm)
        mine.step(rate)
        theirs.zero_grad()
        sum(output.square().sum() for output in other.network(features)).backward()
        expected = torch.nn.utils.clip_grad_norm_(other.parameters(), max_norm)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        torch.testing.assert_close(norm, expected)
        for name, value in agent.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def test_a_loaded_state_goes_on_as_the_saved_one() -> None:
    torch.manual_seed(0)
    agents = [actor_critic(), actor_critic()]
    agents[1].load_state_dict(agents[0].state_dict())
    first, second = (FlatAdam(agent, eps=1e-8) for agent in agents)

    def update(agent: torch.nn.Module, optimizer: FlatAdam) -> None:
        optimizer.zero_grad()
        sum(output.sum() for output in agent.network(torch.ones(2, 3))).backward()
        optimizer.step(1e-2)

    update(agents[0], first)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    agents[1].load_state_dict(agents[0].state_dict())
    for agent, optimizer in zip(agents, (first, second), strict=True):
        update(agent, optimizer)
    for name, value in agents[0].state_dict().items():
        assert torch.equal(value, agents[1].state_dict()[name]), name


def test_moments_of_a_dead_unit_end_at_zero_not_among_the_subnormal_numbers(one_thread: None) -> None:
    torch.manual_seed(0)
    agent = actor_critic()
    optimizer = FlatAdam(agent, eps=1e-8)
    sum(output.sum() for output in agent.network(torch.ones(2, 3))).backward()
    optimizer.step(1e-2)
    optimizer.zero_grad()
    for _ in range(1200):
        optimizer.step(1e-2)
    assert optimizer.state_dict()["first_moment"].count_nonzero() == 0

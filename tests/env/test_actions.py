"""Actions read for environments: their own numbers, and nothing out of range."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.env.actions import ActionReader
from rlx.errors import AgentError


@pytest.mark.parametrize("start", [0, -2])
@pytest.mark.parametrize("count", [5, 5000])
def test_discrete_actions_are_members_of_their_space(start: int, count: int) -> None:
    space = spaces.Discrete(count, start=start)
    drawn = ActionReader(space, 3).rows({"action": torch.tensor([0, 4, 2])})
    assert drawn == [start, start + 4, start + 2]
    assert all(isinstance(number, np.int64) and space.contains(number) for number in drawn)


@pytest.mark.parametrize("number", [-1, 5])
def test_a_discrete_action_out_of_range_names_its_row(number: int) -> None:
    with pytest.raises(AgentError, match=rf"'action' of row 1 is {number}; expected 0 to 4"):
        ActionReader(spaces.Discrete(5), 2).rows({"action": torch.tensor([4, number])})

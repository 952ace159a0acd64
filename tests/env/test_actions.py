"""Actions read for environments: their own numbers, and nothing out of range."""

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.data import Spec
from rlx.env.actions import ActionReader
from rlx.env.vec_env import StepBuffer, StepFields
from rlx.errors import AgentError, SpecError


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


def test_actions_are_read_alike_with_views_and_without() -> None:
    space = spaces.Box(-1.0, 2.0, (2,), np.float64)
    actions = torch.tensor([[-3.0, 0.5], [2.5, 1.0]])
    reader, fields = ActionReader(space, 2), StepFields({"action": actions})
    for given in (fields, dict(fields)):
        read = reader.batch(given)
        assert read.dtype == np.float64
        assert read.tolist() == [[-1.0, 0.5], [2.0, 1.0]]
    actions[0, 0] = 0.25  # the views are of the same memory, what was read is not
    assert reader.batch(fields).tolist() == [[0.25, 0.5], [2.0, 1.0]]
    assert read.tolist() == [[-1.0, 0.5], [2.0, 1.0]]
    for given in (StepFields({"action": torch.zeros(3, 2)}), {"action": torch.zeros(3, 2)}):
        with pytest.raises(AgentError, match=r"'action' has shape \(3, 2\); expected \(2, 2\)"):
            reader.batch(given)


def test_fields_that_numpy_has_no_type_for_have_no_view() -> None:
    fields = StepFields({"half": torch.zeros(2, dtype=torch.bfloat16), "whole": torch.zeros(2)})
    assert fields.keys() == {"half", "whole"}
    assert fields.arrays.keys() == {"whole"}


def test_observations_that_numpy_has_no_type_for_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"'obs' is torch\.bfloat16; on a CPU expected a dtype that NumPy has"):
        StepBuffer.allocate({"obs": Spec((3,), torch.bfloat16)}, 2)


def test_a_strict_reader_refuses_a_whole_batch_for_one_action_out_of_range() -> None:
    reader = ActionReader(spaces.Discrete(5, start=2), 2, strict=True)
    assert reader.batch({"action": torch.tensor([4, 0])}).tolist() == [6, 2]
    for number in (5, 1000, -6):
        for given in (StepFields({"action": torch.tensor([4, number])}), {"action": torch.tensor([4, number])}):
            with pytest.raises(AgentError, match=rf"'action' of row 1 is {number}; expected 0 to 4"):
                reader.batch(given)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda fields: pickle.loads(pickle.dumps(fields))])
def test_what_a_wrapper_writes_to_its_copy_of_the_actions_is_what_the_environment_gets(duplicate) -> None:
    fields, reader = StepFields({"action": torch.tensor([1, 0])}), ActionReader(spaces.Discrete(5), 2)
    other = duplicate(fields)
    other["action"] = other["action"] + 2
    assert reader.batch(other).tolist() == [3, 2]
    changed = copy.deepcopy(fields)
    changed["action"].add_(3)
    assert reader.batch(changed).tolist() == [4, 3]
    assert reader.batch(fields).tolist() == [1, 0]

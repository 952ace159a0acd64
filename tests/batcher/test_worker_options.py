"""What workers are made from, refused before they are."""

from typing import Literal, NoReturn

import pytest

from rlx.batcher import Batcher
from rlx.data import EnvSpecs
from rlx.errors import SpecError


@pytest.mark.parametrize(
    ("workers", "sizes", "named"),
    [
        (
            "local",
            {"num_workers": 1, "envs_per_worker": 10**12},
            "1 workers and 2 steps of 1,000,000,000,000 environments",
        ),
        ("local", {"num_workers": 10**10, "envs_per_worker": 1}, "10,000,000,000 workers and 2 steps of"),
        ("process", {"num_workers": 10**8, "envs_per_worker": 1}, "100,000,000 workers and 2 steps of"),
    ],
)
def test_what_memory_surely_has_no_room_for_is_refused_before_anything_is_made(
    workers: Literal["local", "process"], sizes: dict[str, int], named: str
) -> None:
    def make_env(*, num_envs: int) -> NoReturn:
        pytest.fail("an environment was made")

    def make_agent(specs: EnvSpecs) -> NoReturn:
        pytest.fail("an agent was made")

    with pytest.raises(
        SpecError, match=rf"the least for {named} .*takes .* but memory has .* left; lower algo.num_steps"
    ):
        Batcher(make_agent, make_env, **sizes, num_steps=2, seed=0, workers=workers)

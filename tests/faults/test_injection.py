"""What an environment or an operator can do to a worker, and what is said and left behind afterwards."""

import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from rlx.agent import Agent
from rlx.batcher import Batcher
from rlx.data import DictTensor, EnvSpecs
from rlx.env import make, make_mixed
from rlx.errors import EnvironmentFault, UserError, WorkerError
from rlx.seeding import derive, env_seed
from tests.faults import sick

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parent.parent.parent
SETTINGS = {"num_workers": 2, "envs_per_worker": 2, "num_steps": 8, "seed": 1}


class Still(Agent):
    """Takes the first action, always."""

    def __init__(self, specs: EnvSpecs) -> None:
        super().__init__()

    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"zero": observation["obs"][:, 0]}), state

    def act(self, outputs, agent_info, generator):
        return DictTensor({"action": torch.zeros_like(outputs["zero"], dtype=torch.int64)})


def sick_batcher(way: str, place: str, sickness: dict[str, object] | None = None, **changes) -> Batcher:
    make_env = partial(make, sick.ID, kwargs={"way": way, "place": place, **(sickness or {})})
    return Batcher(Still, make_env, **(SETTINGS | changes))


@pytest.mark.parametrize("place", ["constructor", "reset", "step"])
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("raises", "RuntimeError.*out of order"),
        ("two arguments", "TwoArguments.*7: out of order"),
        ("unpicklable", "Unpicklable.*cannot travel"),
        ("unprintable", "Unprintable"),
        ("huge", "out of orderxxx"),
    ],
)
def test_any_exception_at_any_place_is_told_with_its_traceback(way: str, said: str, place: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"(?s){said}") as caught, sick_batcher(way, place) as batcher:
        batcher.collect()
    assert len(str(caught.value)) < 20_000
    assert "sick.py" in str(caught.value.__cause__)
    restarts = 0 if place == "constructor" else 3
    assert ("started again 3 times" in str(caught.value)) == bool(restarts)


def test_three_restarts_without_progress_raise_the_first_failure() -> None:
    with sick_batcher("exits", "step") as batcher:
        with pytest.raises(WorkerError, match=r"worker \d.*exit status 3.*after 2 steps of its piece") as caught:
            batcher.collect()
        assert max(handle.restarts for handle in batcher._handles) == 3
    assert "The last failure" in str(caught.value)


@pytest.mark.parametrize("place", ["constructor", "reset", "step"])
def test_an_environment_that_ends_its_process_politely_is_at_fault_by_name(place: str) -> None:
    message = r"worker 0 .*\(row 0.* raised SystemExit: 3"
    with pytest.raises(EnvironmentFault, match=message), sick_batcher("system exit", place, num_workers=1) as batcher:
        batcher.collect()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("waits", r"environment 0 \(reset seed {seed}\) hangs"),
        ("waits in C", r"seeds of its environments are {seed}"),
        ("stops", r"the process is stopped \(SIGSTOP\)"),
    ],
)
def test_a_worker_that_does_nothing_is_told_with_environment_and_seed(way: str, said: str) -> None:
    started = time.monotonic()
    options = {"num_workers": 1, "step_timeout": 0.4, "on_failure": "raise"}
    with pytest.raises(WorkerError, match="no sign of life") as caught, sick_batcher(way, "step", **options) as batcher:
        batcher.collect()
    assert re.search(said.format(seed=env_seed(1, 0)), str(caught.value)), caught.value
    assert "after 2 steps of its piece" in str(caught.value)
    if way == "waits":
        assert "wait_in_python" in str(caught.value.__cause__)
    assert time.monotonic() - started < 20


HANGS = [
    ("constructor", "hangs in its constructor"),
    ("reset", "hangs in reset"),
    ("later reset", "hangs"),
]
"""Where an environment may hang besides its step, and what is said of it."""


@pytest.mark.parametrize(("place", "said"), HANGS)
def test_an_environment_that_hangs_at_the_first_start_is_told_with_its_seed(place: str, said: str) -> None:
    options = {"num_workers": 1, "step_timeout": 0.4, "on_failure": "raise"}
    with (
        pytest.raises(WorkerError, match="no sign of life for") as caught,
        sick_batcher("waits", place, {"which": 1}, **options) as batcher,
    ):
        batcher.collect()
    assert f"environment 1 (reset seed {env_seed(1, 1)}) {said}. batcher.step_timeout=0.4 sets" in str(caught.value)
    assert "wait_in_python" in str(caught.value.__cause__)
    found = re.search(r"no sign of life for ([\d.]+) s", str(caught.value))
    assert found is not None
    assert 0.4 <= float(found[1]) < 1.2, "0.4 s for each of two environments, and two looks in between"


@pytest.mark.parametrize(("place", "said"), HANGS)
def test_an_environment_that_hangs_after_a_restart_is_told_with_its_new_seed(
    place: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sickness = {"which": 1, "exits_first": str(tmp_path / "exited")}
    with sick_batcher("waits", place, sickness, num_workers=1, step_timeout=0.4) as batcher:
        with pytest.raises(WorkerError, match=r"(?s)died \(exit status 3\).*started again 3 times"):
            batcher.collect()
        assert batcher.restarts == 3
    told = [record.getMessage() for record in caplog.records]
    assert ["no sign of life" in line for line in told] == [False, True, True]
    for incarnation, line in enumerate(told[1:], 1):
        seed = env_seed(derive(1, "incarnation", incarnation), 1)
        assert f"environment 1 (reset seed {seed}) {said}." in line


@pytest.mark.parametrize("place", ["constructor", "reset"])
def test_a_hang_in_c_at_the_start_has_the_time_limit_as_well(place: str) -> None:
    options = {"num_workers": 1, "step_timeout": 0.4, "on_failure": "raise"}
    seeds = ", ".join(str(env_seed(1, row)) for row in range(2))
    with (
        pytest.raises(WorkerError, match=f"the reset seeds of its environments are {seeds}"),
        sick_batcher("waits in C", place, **options) as batcher,
    ):
        batcher.collect()


def test_a_mixture_names_the_environment_that_hangs_in_reset() -> None:
    members = [{"id": sick.ID, "kwargs": {"way": "waits", "place": place}} for place in ("never", "reset")]
    options = SETTINGS | {"num_workers": 1, "step_timeout": 0.4, "on_failure": "raise"}
    with (
        pytest.raises(WorkerError, match=rf"environment 1 \(reset seed {env_seed(1, 1)}\) hangs in reset"),
        Batcher(Still, partial(make_mixed, members=members), **options) as batcher,
    ):
        batcher.collect()


def test_a_worker_that_hangs_again_and_again_is_given_up() -> None:
    with sick_batcher("waits", "step", num_workers=1, step_timeout=0.3) as batcher:
        with pytest.raises(WorkerError, match=r"(?s)no sign of life.*started again 3 times"):
            batcher.collect()
        assert batcher.restarts == 3


def test_a_stopped_worker_does_not_delay_its_end() -> None:
    batcher = sick_batcher("raises", "never")
    batcher.collect()
    os.kill(batcher._handles[0].pid, signal.SIGSTOP)
    started = time.monotonic()
    batcher.close()
    assert time.monotonic() - started < 5
    batcher.close()


def test_a_batcher_whose_workers_are_dead_closes_quietly_and_stays_closed() -> None:
    batcher = sick_batcher("raises", "never", on_failure="raise")
    batcher.collect()
    for handle in batcher._handles:
        os.kill(handle.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        batcher.collect()
    batcher.close()
    batcher.close()
    with pytest.raises(UserError, match="closed"):
        batcher.collect()


def _held() -> dict[str, object]:
    """Return what this process holds that a batcher could forget."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "shared memory": sorted(os.listdir("/dev/shm")),
        "mappings": sum("rlx" in line for line in Path("/proc/self/maps").read_text().splitlines()),
    }


def test_a_hundred_batchers_leave_nothing_behind() -> None:
    def cycle(number: int) -> None:
        with sick_batcher("raises", "never", num_workers=1) as batcher:
            batcher.collect()
            if number % 4 == 3:
                os.kill(batcher._handles[0].pid, signal.SIGKILL)
            if number % 4 == 2:
                batcher.execute()

    cycle(0)  # what is made once and kept: the server that workers are forked from
    gc.collect()  # what other tests of this process left behind is not to go meanwhile
    before = _held()
    for number in range(100):
        cycle(number)
    assert _held() == before


@pytest.mark.parametrize(("way", "place"), [("raises", "never"), ("waits", "step"), ("waits in C", "step")])
def test_workers_end_with_a_killed_parent_whatever_they_do(way: str, place: str) -> None:
    before = sorted(os.listdir("/dev/shm"))
    command = [sys.executable, "-m", "tests.faults.orphans", way, place]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        workers = [os.pidfd_open(int(number)) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 2.0
    left = set(workers)
    while left and time.monotonic() < deadline:
        left -= set(select.select(left, [], [], max(0.0, deadline - time.monotonic()))[0])
    for descriptor in workers:
        os.close(descriptor)
    assert not left
    assert sorted(os.listdir("/dev/shm")) == before

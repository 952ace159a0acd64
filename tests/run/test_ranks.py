"""Ranks: what launchers say of them, and what two of them, real processes, tell each other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlx.errors import CheckpointError, ConfigError
from rlx.run.rank_states import pack, state_of_rank, unpack
from rlx.run.ranks import Ranks
from rlx.run.rendezvous import Place, find_place, first_host, join, read_learner
from tests.device.simulated import NEEDS_CUDA
from tests.run import two_ranks

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def start(rank: int, port: int, **more: str) -> "subprocess.Popen[str]":
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "TIMEOUT": "120"}
    environment = {**os.environ, **place, **address, "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-m", "tests.run.two_ranks"]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output, errors


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of two ranks found, the second of which fails at the end; on one GPU they take each other for hosts."""
    port = free_port()
    places = [{"FAILS": "1", "DEVICE": request.param, "NCCL_HOSTID": f"host {rank}"} for rank in (0, 1)]
    both = [ended(process) for process in [start(rank, port, **place) for rank, place in enumerate(places)]]
    assert [status for status, _, _ in both] == [2, 2], both
    results = [json.loads(output) for _, output, _ in both]
    for result, (_, _, errors) in zip(results, both, strict=True):
        result["told"] = [line for line in errors.splitlines() if line.startswith("told: ")]
    return results


def alike(found: list[dict[str, Any]], name: str) -> Any:
    """Return what both ranks found, bit for bit the same."""
    assert found[0][name] == found[1][name]
    return found[0][name]


@pytest.mark.parametrize("kind", ["flat", "apart"])
def test_gradients_are_averaged_by_samples(kind: str, found: list[dict[str, Any]]) -> None:
    # Ranks 0 and 1 have 10 * place and 2 more, over 3 samples and 1.
    assert alike(found, kind) == [0.5, 10.5]


def test_a_rank_without_samples_adds_nothing(found: list[dict[str, Any]]) -> None:
    assert alike(found, "one has none") == [2.0, 12.0]
    assert alike(found, "mean of nothing") == 4.0


def test_sums_means_and_rows(found: list[dict[str, Any]]) -> None:
    assert alike(found, "sum") == 4.0
    assert alike(found, "mean") == 3.0
    assert alike(found, "gather") == [[0, 7], [1, 7]]
    assert alike(found, "text") == ["from 0", "from 1from 1"]
    assert (found[0]["data"], found[1]["data"]) == (["first", ""], [])
    assert alike(found, "broadcast") == [1.0, True]


def test_standard_deviation_and_mean_are_those_of_all_values(found: list[dict[str, Any]]) -> None:
    wanted = [float(value) for value in torch.std_mean(two_ranks.VALUES)]
    assert alike(found, "std_mean") == pytest.approx(wanted, rel=1e-6)
    assert alike(found, "std_mean of one's") == pytest.approx(wanted, rel=1e-6)


def test_normalizers_see_the_steps_of_all_ranks(found: list[dict[str, Any]]) -> None:
    assert alike(found, "normalizer") == pytest.approx([0.0, 0.0], abs=1e-5)
    assert alike(found, "normalizer's bits")[0] == 14


def test_all_ranks_make_as_many_minibatches_and_none_is_empty(found: list[dict[str, Any]]) -> None:
    # Of 4 and 9 steps: what the greater one needs, but no more than the smaller one has.
    assert alike(found, "minibatches") == [1, 3, 4, 4]


def test_an_iteration_is_the_sum_of_the_ranks(found: list[dict[str, Any]]) -> None:
    episodes = [[0, 1.5, 3], [1, -2.0, 4], [0, 0.25, 5]]
    terms = {"loss/total": 2.0, "count": 5, "rate": 0.1, "of one": 0.25}  # a tenth to the bit; NaN counts nothing
    assert alike(found, "agreed") == [terms, 10, episodes, True, True]
    assert alike(found, "agreed counts") == [4, 2, 4]
    assert alike(found, "by steps") == [{"x": 3.0}, None, False]
    assert alike(found, "evenly") == {"x": 1.5}
    assert alike(found, "stop") is True


def test_ranks_that_went_different_ways_are_an_error(found: list[dict[str, Any]]) -> None:
    assert found[0]["other terms"] == "the ranks went different ways: rank 0 reports that"
    drifted = alike(found, "drifted")
    assert "rank 1 has another 'agent' than rank 0" in drifted
    assert drifted.endswith("such as moments, is that of all ranks, by run.ranks.gather")


def test_a_checkpoint_has_what_is_alike_once_and_what_is_not_for_each_rank(found: list[dict[str, Any]]) -> None:
    assert found[0]["state"] == [["agent", "draws", "note", "ranks"], [1]]
    assert found[1]["state"] is None


def test_the_rank_that_fails_tells_and_the_others_end_alike(found: list[dict[str, Any]]) -> None:
    assert [result["told"] for result in found] == [[], ["told: rank 1 alone is wrong"]]


def test_rank_0_that_serves_the_store_is_heard_when_it_fails() -> None:
    port = free_port()
    both = [ended(process) for process in [start(rank, port, FAILS="0", SHORT="yes") for rank in (0, 1)]]
    assert [status for status, _, _ in both] == [2, 2]
    told = [[line for line in errors.splitlines() if line.startswith("told: ")] for _, _, errors in both]
    assert told == [["told: rank 0 alone is wrong"], []]


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [("SystemExit(3)", 3, ""), ("SystemExit('why')", 1, "why"), ("OSError('disk')", 1, "OSError: disk")],
)
def test_a_rank_that_fails_does_not_wait_for_the_interpreters_end(raised: str, status: int, told: str) -> None:
    program = f"""
import atexit
from torch import distributed
from rlx.cli.report import end_at_once
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
atexit.register(print, "the interpreter's end")
with end_at_once():
    print("said")
    raise {raised}
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (status, "said\n")
    assert told in done.stderr


def test_a_rank_that_never_comes_is_named_within_the_limit() -> None:
    status, _, errors = ended(start(0, free_port(), TIMEOUT="1"))
    assert status == 1
    assert "rank 1 of 2 did not join within 1 s (learner.timeout)" in errors
    port = free_port()
    status, _, errors = ended(start(1, port, TIMEOUT="1"))
    assert status == 1
    assert f"rank 0 does not answer at 127.0.0.1:{port} within 1 s" in errors
    assert "frame #" not in errors


def test_alone_everything_is_as_it_stands() -> None:
    ranks, module = Ranks(), two_ranks.Two()
    module.weight.grad = torch.full((2, 2), 3.0)
    ranks.average_gradients(module, 5)
    assert torch.equal(module.weight.grad, torch.full((2, 2), 3.0))
    assert (ranks.sum(2), ranks.mean(2.5, 9), ranks.std_mean(torch.ones(3))) == (2, 2.5, None)
    assert ranks.num_minibatches(two_ranks.steps(torch.ones(4), 4), 2) is None
    assert (ranks.exchange_text("a"), ranks.gather(torch.ones(2)).shape) == (["a"], (1, 2))


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a",
            "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[07-08]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1"}  # fmt: skip


def test_the_place_is_what_torchrun_or_srun_say() -> None:
    assert find_place(TORCHRUN) == Place(3, 4, 1, 2, "a", 29500, serves=False)
    assert find_place(SRUN) == Place(0, 4, 0, 2, "n07", 20_085, serves=True)
    address = {"MASTER_ADDR": "b", "MASTER_PORT": "7"}
    assert find_place({**SRUN, **address, "SLURM_PROCID": "2"}) == Place(2, 4, 0, 2, "b", 7, serves=False)
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None  # a batch script, not a step of srun's
    assert [first_host(text) for text in ("a", "a,b", "n[1-3,7]", "gpu-01,x[2-3]", "x[007]")] == [
        "a", "a", "n1", "gpu-01", "x007",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, "got rank 4 of 4, expected 0 to 3"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' in the environment, expected a number"),
        ({"MASTER_PORT": None}, "RANK and WORLD_SIZE are set, and MASTER_PORT is not"),
    ],
)
def test_a_place_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    environment = {key: value for key, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        find_place(environment)


def test_a_learner_and_how_it_was_started_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert join(read_learner(None)).size == 1  # what was written before there were learners
    with pytest.raises(ConfigError, match=r"(?s)start it as.*torchrun --standalone --nproc-per-node 2 -m rlx train x"):
        join({"kind": "ddp", "timeout": 5}, "rlx train x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"this is one of 2 processes .* give learner=ddp"):
        join({"kind": "alone"})
    with pytest.raises(ConfigError, match=r"the same run; start it without torchrun"):  # it has no other ranks' states
        join({"kind": "alone"}, resumed=True)
    with pytest.raises(ConfigError, match="learner: got 'both'"):
        read_learner({"kind": "both"})
    with pytest.raises(ConfigError, match=r"learner\.timeout"):
        read_learner({"kind": "ddp", "timeout": 0})


def test_the_state_of_a_rank_is_its_own_and_what_all_share() -> None:
    state = {"agent": 1, "draws": 2, "ranks": {"1": {"draws": 3}}}
    assert state_of_rank(state, 0, 2) == {"agent": 1, "draws": 2}
    assert state_of_rank(state, 1, 2) == {"agent": 1, "draws": 3}
    for size in (1, 3):
        with pytest.raises(CheckpointError, match=f"is of 2 ranks, and this is one of {size}"):
            state_of_rank(state, 0, size)
    with pytest.raises(CheckpointError, match=r"is of 1 rank, and this is one of 2.*without torchrun"):
        state_of_rank({"agent": 1}, 1, 2)


def test_a_packed_state_comes_back() -> None:
    state = {"a": [torch.arange(3), (1, None, "x")], 4: 2.5}
    found = unpack(pack(state))
    assert torch.equal(found["a"][0], torch.arange(3))
    assert (found["a"][1], found[4]) == ((1, None, "x"), 2.5)

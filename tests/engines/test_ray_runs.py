"""`rlx train batcher=ray`: whole runs in a real cluster, what is said where there is none, and what is left behind."""

import csv
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from rlx.batcher import Batcher, ray_cluster
from rlx.env import make
from rlx.errors import ClusterError, ConfigError, MissingPackageError, UserError
from rlx.run.metrics import TIMED
from tests.batcher.ledger import ID, Counter
from tests.engines.clusters import TwoNodes, two_nodes
from tests.program import ENVIRONMENT, rlx_train, training

pytest.importorskip("ray")
pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def on_ray(cluster: TwoNodes) -> list[str]:
    return ["batcher=ray", f"batcher.address={cluster.address}"]


def rows(run: Path) -> list[dict[str, str]]:
    """Return a run's metrics, but for what measures time."""
    with (run / "metrics.csv").open() as file:
        return [{key: row[key] for key in row if not key.startswith(TIMED)} for row in csv.DictReader(file)]


RUNS = {
    "ppo": ["algo=ppo", "env=CartPole", "total_steps=512", "evaluation.every=200", "evaluation.episodes=4"],
    "dqn": ["algo=dqn", "env=CartPole", "total_steps=512", "algo.learning_starts=128"],
    "ahead": ["algo=ppo", "env=CartPole", "total_steps=256", "batcher.asynchronous=true"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_same_rows_as_with_processes_and_says_nothing_of_ray(
    name: str, on_ray: list[str], tmp_path: Path
) -> None:
    arguments = RUNS[name]
    ray = rlx_train(tmp_path, *arguments, *on_ray, "run_dir=ray")
    process = rlx_train(tmp_path, *arguments, "batcher=process", "run_dir=process")
    assert ray.returncode == 0, ray.stderr
    assert process.returncode == 0
    assert rows(tmp_path / "ray") == rows(tmp_path / "process")
    assert len(rows(tmp_path / "ray")) >= 2
    assert [line for line in ray.stderr.splitlines() if "steps | " not in line] == []  # its progress, and no more
    assert ray.stdout.count("\n") == process.stdout.count("\n")


def test_whole_episodes_by_actors(on_ray: list[str], tmp_path: Path) -> None:
    arguments = ["algo=reinforce", "env=CartPole", "total_steps=300", "batcher=episodes", "batcher.envs_per_worker=2"]
    found = []
    for where in (["batcher.workers=ray", on_ray[1]], ["batcher.workers=process"]):
        name = where[0].partition("=")[2]
        command = ["train", *arguments, *where, f"run_dir={name}"]
        ended = subprocess.run(
            [sys.executable, "-m", "rlx", *command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        found.append(rows(tmp_path / name))
    assert found[0] == found[1]


def test_a_run_in_a_ray_of_its_own_obeys_sigterm_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with training(tmp_path, "algo=ppo", "env=CartPole", "batcher=ray", "run_dir=run") as program:
        started = _ray_processes(program.pid)
        assert started
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=60)
        assert program.returncode == 143, output
    assert "SIGTERM received" not in output
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert _gone(started)


def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    with training(tmp_path, "algo=ppo", "env=CartPole", "batcher=ray", "run_dir=run") as program:
        started = _ray_processes(program.pid)
        assert len(started) >= 3
        program.kill()
        assert _gone(started)


def _ray_processes(pid: int) -> list[int]:
    """Return all descendants of a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found, number = [pid], -1
    while len(found) != number:
        number = len(found)
        found += [child for child, parent in parents.items() if parent in found and child not in found]
    return found[1:]


def _gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 120  # two of Ray's helpers look for their parent now and then
    while any(_lives(pid) for pid in processes) and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    return not any(_lives(pid) for pid in processes)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def make_batcher(**changes) -> Batcher:
    options = {"num_workers": 2, "envs_per_worker": 1, "num_steps": 4, "seed": 0, "workers": "ray"} | changes
    return Batcher(Counter, partial(make, ID), **options)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "ray://127.0.0.1:10001", ":6379", "host:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"batcher\.address: got .* expected null, auto or host:port"):
        make_batcher(address=address)


def test_an_address_where_nothing_answers_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.9", 0)) as server:
        port = server.getsockname()[1]
    ended = rlx_train(tmp_path, "algo=ppo", "env=CartPole", "batcher=ray", f"batcher.address=127.0.0.9:{port}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"Error: batcher.address=127.0.0.9:{port}: nothing answers there")
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_what_answers_and_is_not_ray_is_told() -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.9", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="something answers there, and it is not Ray"):
            make_batcher(address=f"127.0.0.9:{server.server_port}")
        server.shutdown()


def test_a_cluster_of_another_version_is_told_by_name(cluster: TwoNodes) -> None:
    from ray._raylet import GcsClient

    client = GcsClient(cluster.address)
    own = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster"))

    def pretend(**other: str) -> None:
        client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(own | other).encode(), True, b"cluster")

    try:
        for other in ({"ray_version": "2.40.0"}, {"python_version": "3.99.0"}):
            pretend(**other)
            with pytest.raises(ClusterError, match=rf"(?s)ersion mismatch.*{next(iter(other.values()))}.*All nodes"):
                make_batcher(address=cluster.address)
    finally:
        pretend()


def test_a_cluster_without_room_is_told_with_its_numbers(cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "ROOM_SECONDS", 1.0)
    said = r"no room for 9 workers of 1 CPUs each .*: the cluster has 4 CPUs on 2 nodes, 4 of them free"
    with pytest.raises(ClusterError, match=said):
        make_batcher(address=cluster.address, num_workers=9)
    with pytest.raises(ClusterError, match=r"no room for 1 workers of 3 CPUs"):  # no node has as many
        make_batcher(address=cluster.address, num_workers=1, cpus_per_worker=3.0)


def test_one_process_uses_one_cluster(cluster: TwoNodes) -> None:
    with make_batcher(address=cluster.address) as batcher:
        with pytest.raises(ConfigError, match="this process uses Ray at"):
            make_batcher(address=None)
        with make_batcher(address=cluster.address, num_workers=1) as other:
            other.collect()
        batcher.collect()  # the second one's end is not the first one's


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"batcher=ray needs ray, .*pip install 'rlx\[ray\]'"):
        make_batcher()


def test_an_address_needs_ray() -> None:
    with pytest.raises(UserError, match=r"batcher\.address: got 'auto' with workers=process"):
        make_batcher(workers="process", address="auto")


def test_a_run_that_lost_its_cluster_goes_on_in_another_one(on_ray: list[str], tmp_path: Path) -> None:
    first = rlx_train(tmp_path, "algo=ppo", "env=CartPole", *on_ray, "run_dir=run")
    assert first.returncode == 0, first.stderr
    environment = {**ENVIRONMENT, "RAY_ADDRESS": on_ray[1].partition("=")[2]}
    command = ["train", "resume=run", "batcher.address=auto", "total_steps=128"]
    again = subprocess.run(
        [sys.executable, "-m", "rlx", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "resume: batcher.address:" in again.stdout + again.stderr
    assert len(rows(tmp_path / "run")) == 2

"""The cores that a run has, by whoever limits them."""

import os
from pathlib import Path

import pytest
import yaml

from rlx.errors import ConfigError
from rlx.run.cores import Cores, cgroup_quota, describe_use, find_cores, fitted
from rlx.run.launch import resume_run
from tests.run.jobs import SMALL, train


def cgroups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/job/step\n", {"cpu.max": "max 100000", "job/cpu.max": "250000 100000", "job/step/cpu.max": "max 1"}, 2.5),
        ("0::/../outside\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/job\n", {"job/cpu.max": "max 100000"}, None),
        (
            "3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "10000"},
            5,
        ),
        ("3:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "1", "cpuset/a/cpu.cfs_period_us": "1"}, None),
        ("4:memory:/a\n0::/\n", {"cpu.max": "200000 100000"}, 2),
    ],
)
def test_cgroup_limit_is_the_least_on_the_way_up(tmp_path: Path, own: str, files: dict[str, str], quota) -> None:
    (tmp_path / "own").write_text(own)
    assert cgroup_quota(cgroups(tmp_path / "cgroup", files), tmp_path / "own") == quota


def test_no_cgroups_are_no_limit(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None


def test_least_limit_counts_and_is_named() -> None:
    everything = find_cores({})
    assert everything.count <= len(os.sched_getaffinity(0))
    assert find_cores({"SLURM_CPUS_PER_TASK": "999"}) == everything
    if everything.count > 1:
        assert find_cores({"SLURM_CPUS_PER_TASK": "1"}) == Cores(1, "SLURM_CPUS_PER_TASK")


def test_affinity_mask_is_seen(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert find_cores({}).count == 1
    finally:
        os.sched_setaffinity(0, before)


def test_runs_side_by_side_share() -> None:
    assert Cores(8, "mask").shared_by(3) == Cores(2, "mask, shared by 3 runs")
    assert Cores(2, "mask").shared_by(3).count == 1
    assert Cores(2, "mask").shared_by(1) == Cores(2, "mask")


def config(workers: object, threads: object = 1, kind: str = "process") -> dict:
    return {"batcher": {"workers": kind, "num_workers": workers}, "num_threads": threads}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (config(3), "batcher.num_workers is 3, but there are 2 cores (mask)"),
        (config(1, threads=4), "num_threads is 4, but there are 2 cores (mask)"),
        (config(2, threads=2), None),
        (config(3, kind="local"), None),
    ],
)
def test_more_than_there_is_is_warned_of_and_not_changed(values: dict, named: str | None) -> None:
    use, warning = describe_use(values, Cores(2, "mask"))
    assert "cores: 2 (mask)" in use
    assert (warning is None) if named is None else (warning or "").startswith(named)
    assert fitted(values, Cores(2, "mask")) is values


def test_one_core_is_singular() -> None:
    _, warning = describe_use(config(2), Cores(1, "mask"))
    assert warning is not None
    assert warning.startswith("batcher.num_workers is 2, but there is 1 core (mask): ")


def test_auto_takes_as_many_workers_as_cores_and_the_run_keeps_the_number(tmp_path: Path) -> None:
    assert fitted(config("auto"), Cores(5, "mask"))["batcher"]["num_workers"] == 5
    run = train(tmp_path / "run", *SMALL, "batcher.num_workers=auto", "total_steps=128")
    cores = find_cores()
    assert yaml.safe_load((run / "config.yaml").read_text())["batcher"]["num_workers"] == cores.count
    assert f"INFO cores: {cores.count} ({cores.limit}), for" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "asynchronous", "threads"), [("process", False, 5), ("process", True, 3), ("local", True, 5)]
)
def test_auto_gives_the_learner_the_cores_that_workers_do_not_use_meanwhile(
    kind: str, asynchronous: bool, threads: int
) -> None:
    values = config(2, threads="auto", kind=kind)
    values["batcher"]["asynchronous"] = asynchronous
    assert fitted(values, Cores(5, "mask"))["num_threads"] == threads
    assert fitted(values, Cores(1, "mask"))["num_threads"] == 1


def test_run_keeps_the_number_of_threads(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *SMALL, "num_threads=auto", "total_steps=128")
    assert yaml.safe_load((run / "config.yaml").read_text())["num_threads"] == find_cores().count


def test_resumed_run_takes_as_many_threads_as_cores_where_it_is_told_so(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *SMALL, "batcher=local", "total_steps=128")
    resume_run(run, {"total_steps": 256, "num_threads": "auto"}, tell=lambda _: None)
    assert yaml.safe_load((run / "config.yaml").read_text())["num_threads"] == find_cores().count


def test_warning_stands_in_the_log(tmp_path: Path, caplog) -> None:
    run = train(tmp_path / "run", *SMALL, "num_threads=99", "total_steps=128")
    assert "WARNING num_threads is 99, but there are" in (run / "log.txt").read_text()
    assert "num_threads is 99" in caplog.text


def test_another_word_than_auto_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_threads: expected an integer >= 1 or auto, got 'auot'. Did you mean"):
        fitted({"batcher": {"num_workers": 1}, "num_threads": "auot"}, Cores(2, "mask"))
    with pytest.raises(
        ConfigError, match=r"num_workers: expected an integer >= 1 or auto, got 'Auto'. Did you mean 'auto'"
    ):
        fitted({"batcher": {"num_workers": "Auto"}}, Cores(2, "mask"))

"""The pages of `docs/algorithms` say what is there: every key, every logged metric, commands that compose.

A page names keys and metrics in the first column of the tables under "Keys" and "What is logged". `docs/metrics.md` has
the metrics of all algorithms in one table, and in its last column who logs them.
"""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rlx.cli.members import config_directory
from rlx.run.launch import launch
from rlx.run.metrics import read_metrics

PAGES = Path(__file__).parents[1] / "docs" / "algorithms"
ALGOS = sorted(path.stem for path in (config_directory() / "algo").glob("*.yaml"))
COMING_FROM = (PAGES.parent / "coming_from.md").read_text(encoding="utf-8")
SECTIONS = [
    "Commands", "The update", "Keys", "What is logged", "What is different", "What it reaches", "When a run goes wrong",
]  # fmt: skip

# What docs/logging.md tells of every run.
COMMON = ("episode/", "speed/", "batcher/", "system/", "eval/", "time/")
COUNTERS = {"env_steps", "iteration", "wall_time"}

# What an algorithm needs, and what makes it log all that it can; one of them is evaluated, too.
CHOICES = {
    "ppo": ["evaluation.every=32", "evaluation.episodes=1"],
    "a2c": ["algo.vtrace=true"],
    "sac": ["env=Pendulum", "algo.max_grad_norm=1"],
    "diayn": ["env=Pendulum"],
    "hdqn": ["env=Errand"],
}


def section(algo: str, title: str) -> str:
    """Return what stands under a heading of an algorithm's page; nothing where it has none."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page(algo), re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def page(algo: str) -> str:
    path = PAGES / f"{algo}.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def named(algo: str, title: str) -> set[str]:
    """Return what stands in backticks in the first column of a section's tables."""
    rows = re.findall(r"^\|([^|]*)\|", section(algo, title), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def metrics() -> dict[str, set[str]]:
    """Return for each metric of `docs/metrics.md` who logs it."""
    text = (PAGES.parent / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {name: set(who.split(", ")) for name, who in rows}


def of(*who: str) -> set[str]:
    """Return the metrics that one of these logs."""
    return {name for name, all_who in metrics().items() if not all_who.isdisjoint(who)}


def commands() -> list[str]:
    """Return the `rlx train` commands of all pages and of `docs/coming_from.md`, without comments."""
    lines = [line for algo in ALGOS for line in section(algo, "Commands").splitlines()]
    lines += COMING_FROM.replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(" ".join(line.split("#")[0].split()) for line in lines if line.startswith("rlx train")))


@pytest.mark.parametrize("algo", ALGOS)
def test_every_algorithm_has_a_page_of_the_same_sections(algo: str) -> None:
    assert re.findall(r"^## (.*)$", page(algo), re.MULTILINE) == SECTIONS
    overview = (PAGES.parent / "algorithms.md").read_text(encoding="utf-8")
    assert f"(algorithms/{algo}.md)" in overview


@pytest.mark.parametrize("algo", ALGOS)
def test_a_page_names_the_keys_of_its_yaml_and_no_others(algo: str) -> None:
    values = OmegaConf.load(config_directory() / "algo" / f"{algo}.yaml")
    assert isinstance(values, DictConfig)
    keys = {str(key) for key in values} - {"_target_", "defaults"}
    assert named(algo, "Keys") == keys
    assert f"conf/algo/{algo}.yaml" in section(algo, "Keys")


@pytest.mark.parametrize("algo", ALGOS)
def test_a_page_names_the_metrics_that_a_run_logs_and_no_others(algo: str, tmp_path: Path) -> None:
    small = ["batcher.workers=local", "batcher.num_workers=1", "batcher.envs_per_worker=2", "algo.num_steps=16"]
    small += ["agent.hidden_sizes=[8]", "logger=csv", "logger.console=false", f"run_dir='{tmp_path / 'run'}'"]
    fewer = {"num_epochs": 1, "num_updates": 1, "learning_starts": 8, "buffer_size": 200, "batch_size": 16}
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("config", overrides=[f"algo={algo}", *CHOICES.get(algo, ())])
        known = [f"algo.{key}={value}" for key, value in fewer.items() if key in config["algo"]]
        config = compose("config", overrides=[f"algo={algo}", *CHOICES.get(algo, ()), *small, *known, "total_steps=64"])
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    launch(values, {"algo": algo, "env": "small"})
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    columns = {key for row in rows for key, value in row.items() if value is not None}
    own = {key for key in columns - COUNTERS if not key.startswith(COMMON)}
    assert "loss/total" in own
    assert named(algo, "What is logged") == own == of(algo)
    common = columns - own
    assert common == of("every run", "evaluation") if algo == "ppo" else common <= of("every run")


def test_the_table_of_metrics_knows_who_logs_them() -> None:
    assert set().union(*metrics().values()) == {"every run", "evaluation", "GPU", *ALGOS}


@pytest.mark.parametrize("command", commands())
def test_a_command_of_a_page_composes(command: str) -> None:
    words = shlex.split(command)[2:]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("config", overrides=words)
    assert config["algo"]["_target_"].startswith("rlx.algo.")


def test_the_keys_that_others_are_translated_to_are_there() -> None:
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        whole = compose("config")
    text = re.sub(r"^```python.*?^```", "", COMING_FROM, flags=re.MULTILINE | re.DOTALL)
    groups = "algo|agent|batcher|env|checkpoint|evaluation"
    named_keys = set(re.findall(rf"(?<![\w.])({groups})\.([a-z_]+)\b(?!\()", text))
    assert len(named_keys) > 20
    for group, key in named_keys:
        members = [OmegaConf.load(path) for path in (config_directory() / group).glob("*.yaml")] or [whole[group]]
        assert any(key in member for member in members), f"{group}.{key}"

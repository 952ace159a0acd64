"""What ships: the configuration, the public names, the pins."""

import importlib
import importlib.util
import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import rlx
from rlx.cli.members import config_directory, group_members
from rlx.run.build import GIVEN

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def targets() -> list[tuple[str, Path]]:
    conf = config_directory()
    return [
        (group, member.path) for group in GIVEN for member in group_members(group) if member.path.is_relative_to(conf)
    ]


@pytest.mark.parametrize(
    ("group", "path"), targets(), ids=lambda value: value.stem if isinstance(value, Path) else value
)
def test_yaml_keys_are_the_keywords_of_its_target(group: str, path: Path) -> None:
    values = OmegaConf.load(path)
    assert isinstance(values, DictConfig)
    module, _, name = str(values["_target_"]).rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    keywords = [key for key in parameters if key not in GIVEN[group]]
    keys = [str(key) for key in values if not str(key).startswith("_") and key != "defaults"]
    assert set(keys) <= set(keywords)
    required = {key for key in keywords if parameters[key].default is inspect.Parameter.empty}
    assert required <= set(keys)


@pytest.mark.parametrize("group", GIVEN)
def test_number_has_its_default_in_yaml_alone(group: str) -> None:
    for member in group_members(group):
        if group == "env":  # called from Python too, `rlx.env.make("CartPole-v1", 8)`
            continue
        module, _, name = str(member.target).rpartition(".")
        parameters: Any = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        numbers = [
            key
            for key, parameter in parameters.items()
            if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool)
        ]
        assert not set(numbers) - set(GIVEN[group])


def test_import_brings_neither_torch_nor_numpy() -> None:
    code = "import sys, rlx, rlx.batcher.start; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names_are_these_and_all_there() -> None:
    assert rlx.__all__ == sorted(rlx.__all__)
    for name in rlx.__all__:
        assert getattr(rlx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        rlx.Nothing  # noqa: B018


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(name for group in project["optional-dependencies"].values() for name in group),
    ]
    names = {re.split(r"[\[<>=!~ ]", name)[0].lower().replace("_", "-") for name in wanted}
    assert names - pinned == {"rlx"}


def test_changelog_knows_this_version() -> None:
    assert f"## {rlx.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_is_two_ideas() -> None:
    long = [str(path) for path in (ROOT / "rlx").rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert long == []


def test_every_edit_of_the_mutation_list_still_finds_its_place() -> None:
    edits_of = runpy.run_path(str(ROOT / "scripts" / "mutate.py"))["EDITS"]
    for name, edits in edits_of.items():
        text = (ROOT / "rlx" / "algo" / f"{name}.py").read_text(encoding="utf-8")
        assert [old for old, _ in edits if text.count(old) != 1] == [], name
    assert sum(map(len, edits_of.values())) >= 25


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_a_script_shows_its_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "scripts" / script
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
    except ImportError as error:
        pytest.skip(str(error))
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script}")

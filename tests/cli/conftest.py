import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rlx.batcher.start


class Launches(list[dict[str, Any]]):
    """Stands where `launch` does: keeps what it was given, does what is done meanwhile, raises what it was told to."""

    def __init__(self) -> None:
        self.errors: dict[int, BaseException] = {}
        self.meanwhile: Callable[[], object] = list

    def __call__(
        self, config: Mapping[str, Any], choices: Mapping[str, str], command: str, *, side_by_side: int = 1
    ) -> None:
        self.append({**config, "choices": dict(choices), "command": command})
        self.meanwhile()
        if config["seed"] in self.errors:
            raise self.errors[config["seed"]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launches:
    """Run `rlx train` up to the point where training would start, in a working directory of its own."""
    made, module = Launches(), ModuleType("rlx.run.launch")
    module.launch = made  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "rlx.run.launch", module)
    monkeypatch.setattr(rlx.batcher.start, "prestart", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return made

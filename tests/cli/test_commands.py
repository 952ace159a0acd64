"""The other commands, called in this process."""

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rlx.cli.app import app
from rlx.cli.complete import complete_override
from rlx.cli.report import only_json_on_stdout
from rlx.errors import CheckpointError
from rlx.run.checkpoint import save_checkpoint
from rlx.run.evaluate import shares

RESULT = {
    "episodes": 2,
    "mean": 1.5,
    "std": 0.5,
    "returns": [1.0, 2.0],
    "lengths": [3, 4],
    "env_steps": 64,
    "seed": 7,
    "deterministic": False,
}


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        app(list(arguments), prog_name="rlx")
    return int(end.value.code or 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Stand where evaluation does, and keep what it was asked for; it writes to standard output as libraries may."""
    kept: dict[str, Any] = {}

    def evaluate_path(path: Path, **options: Any) -> Any:
        kept.update(options, path=path)
        os.write(1, b"a library's greeting\n")
        if path.name == "missing":
            raise CheckpointError("missing: there is no checkpoint here")
        return SimpleNamespace(to_dict=lambda: dict(RESULT))

    module = ModuleType("rlx.run.evaluate")
    module.evaluate_path = evaluate_path  # pyright: ignore[reportAttributeAccessIssue]
    module.shares = shares  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "rlx.run.evaluate", module)
    # What imports it is imported anew, and again after the test.
    monkeypatch.setitem(sys.modules, "rlx.tools.evaluate", ModuleType("rlx.tools.evaluate"))
    del sys.modules["rlx.tools.evaluate"]
    return kept


def test_json_alone_stands_on_standard_output(asked: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        call("eval", "run", "--episodes", "2", "--seed", "7", "--stochastic", "--max-episode-steps", "30", "--json")
        == 0
    )
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert {key: told[key] for key in RESULT} == RESULT
    assert (told["path"], told["median"], told["iqm"]) == ("run", 1.5, 1.5)
    assert out.count("\n") == 1
    assert "a library's greeting" in err
    asked.pop("report")(0, 0)
    assert asked == {
        "path": Path("run"),
        "episodes": 2,
        "seed": 7,
        "stochastic": True,
        "trust": False,
        "config_dir": None,
        "agent_info": [],
        "max_episode_steps": 30,
    }


def test_eval_reads_as_one_line(asked: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert call("eval", "run") == 0
    assert "return 1.50 ± 0.50 over 2 episodes" in capfd.readouterr().out


def test_eval_of_several_policies_tells_each_and_keeps_every_episode(
    asked: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("one", "two"):
        Path(run).mkdir()
        save_checkpoint(run, {}, {}, {"env_steps": 64})
    table = tmp_path / "episodes.csv"
    assert call("eval", "one", "two", "--csv", str(table)) == 0
    out = capfd.readouterr().out
    assert "one, 64 steps:\nreturn 1.50" in out
    assert "two, 64 steps:\nreturn 1.50" in out
    assert table.read_text().splitlines() == [
        "path,env_steps,episode,return,length,seed,deterministic",
        *("one,64,0,1.0,3,7,False", "one,64,1,2.0,4,7,False", "two,64,0,1.0,3,7,False", "two,64,1,2.0,4,7,False"),
    ]
    assert call("eval", "one", "two", "--json") == 0
    assert [one["path"] for one in json.loads(capfd.readouterr().out)["evaluations"]] == ["one", "two"]
    assert call("eval", "one", "--csv", str(tmp_path)) == 2
    assert "cannot write" in capfd.readouterr().err
    before = table.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        assert call("eval", "one", "two", "--csv", str(table)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert table.read_bytes() == before


def test_eval_of_nothing_is_one_message(asked: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert call("eval", "missing", "--json") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("Error: missing: there is no checkpoint here\n")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["eval", "run", "--episodes", "0"], "episodes"),
        (["eval", "run", "--episode", "3"], "--episodes"),
        (["eval"], "path"),
        (["list", "env"], "'envs'"),
        (["bench", "colect"], "collect"),
    ],
)
def test_mistyped_command_or_option_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], fragment: str
) -> None:
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert fragment in err
    assert "Traceback" not in err


def test_list_shows_members_and_what_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text("# My own.\n_target_: my.train\n")
    (tmp_path / "algo" / ".#mine.yaml").symlink_to("somebody@somewhere.1:2")  # Emacs, while it edits
    assert call("list", "algos", "--config-dir", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "algo=mine My own." in [" ".join(line.split()) for line in lines]
    assert any(line.startswith("algo=ppo ") for line in lines)


def test_list_envs_holds_members_and_registered_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "envs", "--json") == 0
    listing = json.loads(capsys.readouterr().out)
    assert "CartPole" in [member["name"] for member in listing["envs"]]
    assert "CartPole-v1" in listing["ids"]


@pytest.mark.parametrize("kind", ["algos", "agents", "batchers", "learners", "loggers", "experiments"])
def test_list_has_each_group(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert call("list", kind, "--json") == 0
    assert json.loads(capsys.readouterr().out)[kind]


def test_standard_output_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with only_json_on_stdout(True):
            os.write(1, b"noise\n")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    os.write(1, b"result\n")
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert err == "noise\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alg", "algo="),
        ("algo=", "algo=ppo"),
        ("env=Cart", "env=CartPole"),
        ("algo.gam", "algo.gamma="),
        ("total", "total_steps="),
        ("env=CartPol,", None),
        ("algo=nothing.", None),
    ],
)
def test_completion_knows_groups_members_and_keys(typed: str, expected: str | None) -> None:
    found = complete_override([], typed)
    assert found == [] if expected is None else expected in found


def test_completion_mends_words_that_bash_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_RLX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "rlx\ntrain\nseed\n=\n1\nenv\n=\nCart")
    monkeypatch.setenv("COMP_CWORD", "7")
    assert "CartPole" in complete_override(["seed", "=", "1", "env", "="], "Cart")

"""The real program in a process of its own: few, for each takes a second or more."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def rlx(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rlx.cli.main import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment)


def processes_in(directory: Path) -> list[str]:
    """Return the commands of the processes that work in `directory`; none where there is no /proc."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve(strict=True) == directory:
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def test_help_answers_at_once_and_without_torch(tmp_path: Path) -> None:
    seconds: list[float] = []
    for _ in range(3):
        start = os.times()
        done = rlx("--help", cwd=tmp_path)
        end = os.times()  # the processor's time: what else the machine does is not rlx's
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "eval", "bench", "list"))
    assert min(seconds) < 0.3
    code = (
        "import sys\nfrom rlx.cli.main import main\nsys.argv = ['rlx', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'hydra', 'gymnasium', 'rich', 'numpy') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert loaded.stdout.splitlines()[-1] == "[]"


def test_version_is_one_line(tmp_path: Path) -> None:
    import rlx as package

    done = rlx("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"rlx {package.__version__}\n")


def test_bad_input_from_a_shell_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    for argument, beginning in (("algo.gama=1", "Error: algo.gama=1: "), ("algo.gamma=2", "Error: algo.gamma: ")):
        done = rlx("train", argument, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(beginning)
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        assert processes_in(tmp_path) == []

"""Every check of this repository: `pip install nox && nox -s tests` is all that a bare machine needs."""

import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
ON_TWO_CORES = ("--numprocesses", "2", "--dist", "worksteal")

# pip, never uv: torch's CPU build is where pip looks for it.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "types", "floors", "wheel"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, faults included but for the longest; what follows -- goes to pytest."""
    _run_tests(session)


@nox.session(python=["3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run the same tests on other versions of Python."""
    _run_tests(session)


@nox.session
def faults(session: nox.Session) -> None:
    """Only what kills, stops and breaks things, to see what is left behind: here at every point at which it may."""
    session.install("-e", ".[test]", *CONSTRAINTS)
    session.run("pytest", "-m", "faults", *session.posargs)


@nox.session
def legacy_gym(session: nox.Session) -> None:
    """Run the tests of old gym environments with the real package, in both forms of its calls."""
    session.install("-e", ".[test]", *CONSTRAINTS)
    for version in ("0.26.2", "0.25.2"):
        session.install("setuptools", *CONSTRAINTS)
        session.install("--no-build-isolation", f"gym=={version}")
        session.run("pytest", "tests/env/test_legacy_gym.py", *session.posargs, env={"RLX_NEEDS_GYM": "1"})


@nox.session
def envpool(session: nox.Session) -> None:
    """Run the tests of EnvPool's environments with the real package, a large one."""
    session.install("-e", ".[test,envpool]", *CONSTRAINTS)
    session.run("pytest", "tests/env/test_envpool.py", *session.posargs, env={"RLX_NEEDS_ENVPOOL": "1"})


@nox.session
def trackers(session: nox.Session) -> None:
    """Run the tests of loggers with the real packages of Weights & Biases and MLflow."""
    session.install("-e", ".[test,wandb,mlflow]", *CONSTRAINTS)
    session.run("pytest", "tests/run/test_loggers.py", *session.posargs)


@nox.session
def learning(session: nox.Session) -> None:
    """Train to a score: minutes for each test."""
    session.install("-e", ".[test]", *CONSTRAINTS)
    session.run("pytest", *ON_TWO_CORES, "-m", "learning", "--timeout", "3600", *session.posargs)


@nox.session
def device(session: nox.Session) -> None:
    """Run on a simulated device what a GPU would run (as root, g++ is installed by apt-get where it is missing)."""
    session.install("-e", ".[test]", *CONSTRAINTS)
    if shutil.which("g++") is None and os.geteuid() == 0 and shutil.which("apt-get") is not None:
        for words in (("update",), ("install", "--no-install-recommends", "--yes", "g++")):
            session.run("apt-get", "--quiet", *words, external=True)
    session.run("pytest", "-m", "device", *session.posargs)


@nox.session
def engines(session: nox.Session) -> None:
    """Run the tests on real engines: Ray, torchrun, SLURM (as root, installed by apt-get where it is missing)."""
    session.install("-e", ".[test,ray]", *CONSTRAINTS)
    session.run("pytest", "-m", "engines", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style."""
    session.install("ruff", *CONSTRAINTS)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of rlx, strictly."""
    session.install("-e", ".[test,types]", *CONSTRAINTS)
    session.run("pyright")


@nox.session
def floors(session: nox.Session) -> None:
    """Check that each module imports only from its own floor and the floors below."""
    session.install("import-linter", *CONSTRAINTS)
    session.run("lint-imports", env={"PYTHONPATH": str(ROOT)})


@nox.session(reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it in a fresh environment, and train two iterations from another directory."""
    with tempfile.TemporaryDirectory() as scratch:
        session.run("pip", "wheel", "--no-deps", "--wheel-dir", scratch, str(ROOT), silent=True)
        built = next(Path(scratch).glob("rlx-*.whl"))
        _compare_configuration(session, built)
        session.install(str(built), *CONSTRAINTS)
        with session.chdir(scratch):
            session.run("rlx", "--version")
            session.run("rlx", "list", "algos")
            session.run(
                *("rlx", "train", "algo=ppo", "env=CartPole", "algo.num_steps=32", "total_steps=1024", "run_dir=run")
            )
            session.run("rlx", "eval", "run", "--episodes", "2", "--json")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure collection beside its ceiling, and the data structures beside other libraries'."""
    session.install("-e", ".[test]", *CONSTRAINTS)
    for size in (
        ["--num-workers", "2", "--envs-per-worker", "4"],
        ["--num-workers", "2", "--envs-per-worker", "16"],
        ["--num-workers", "2", "--envs-per-worker", "64", "--vectorization", "native"],
    ):
        session.run("rlx", "bench", "collect", *size, "--json")
    session.run("python", "scripts/bench_data.py")


@nox.session
def peers(session: nox.Session) -> None:
    """Measure collection beside other toolkits'."""
    session.install("-e", ".[test]", *CONSTRAINTS)
    session.install("stable-baselines3", "torchrl", "opencv-python-headless", *CONSTRAINTS)
    session.run("python", "scripts/bench_peers.py", *session.posargs)


def _run_tests(session: nox.Session) -> None:
    session.install("-e", ".[test]", *CONSTRAINTS)
    session.run(
        "pytest", *ON_TWO_CORES, "-m", "not learning and not engines and not matrix and not device", *session.posargs
    )


def _compare_configuration(session: nox.Session, built: Path) -> None:
    """Fail unless the wheel holds the configuration files that git knows: all of them and no other."""
    listed = subprocess.run(["git", "ls-files", "conf"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    with zipfile.ZipFile(built) as archive:
        shipped = {name.removeprefix("rlx/") for name in archive.namelist() if name.startswith("rlx/conf/")}
    if shipped != expected:
        session.error(f"the wheel's configuration differs from git's: {sorted(shipped ^ expected)}")

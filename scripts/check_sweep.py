"""Kill a sweep in the middle, start it again, and count what ran twice: nothing that was done may.

    python scripts/check_sweep.py --jobs 40 --seconds 60 --at-once 16 --out /tmp/check_sweep

Each job is a run of 128 steps in an environment that waits, so that a job lasts as long as it is told to, and many fit
on few cores. About the middle, when some jobs are done and others have run for half of their time, all processes of the
sweep get SIGKILL; then the same command is given again. What ran is read off twice: from rlx's own record of attempts,
and from the files, which a job that was done may not have touched. Exit status 1 where anything is not as it should be.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import psutil
from gymnasium.envs.classic_control import CartPoleEnv

from rlx.run.metrics import read_metrics
from rlx.run.sweep import Sweep

STEPS, AN_ITERATION = 128, 16
_WAIT = "RLX_CHECK_SWEEP_WAIT"
"""Seconds that a step takes, told to the jobs."""


class Waits(CartPoleEnv):
    """CartPole, each step of which takes as long as it is told to."""

    def step(self, action: Any) -> Any:
        """Wait, and step."""
        time.sleep(float(os.environ[_WAIT]))
        return super().step(action)


gymnasium.register("Waits-v0", Waits, max_episode_steps=500)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each job, its start aside")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="a directory that does not exist yet")
    arguments = parser.parse_args()
    command = [
        *(sys.executable, "-m", "rlx", "train", "-m", f"seed=range({arguments.jobs})", f"run_dir='{arguments.out}'"),
        *("hydra/launcher=joblib", f"hydra.launcher.n_jobs={arguments.at_once}", "algo=ppo"),
        *("env=gym", "env.id=check_sweep:Waits-v0", "batcher=local", "batcher.envs_per_worker=1"),
        *(f"algo.num_steps={AN_ITERATION}", f"algo.batch_size={AN_ITERATION}", "algo.num_epochs=1"),
        *(f"total_steps={STEPS}", f"checkpoint.every={AN_ITERATION}", "logger=[csv]", "logger.console=false"),
    ]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), _WAIT: str(arguments.seconds / STEPS)}
    environment = {**os.environ, **own}
    sweep = Sweep(arguments.out)

    begin = time.monotonic()
    program = subprocess.Popen(command, env=environment, start_new_session=True)
    while len(done(sweep)) < max(1, (arguments.jobs - arguments.at_once) // 2):
        if program.poll() is not None:
            sys.exit(f"the sweep ended by itself, with status {program.returncode}")
        time.sleep(0.5)
    time.sleep(arguments.seconds / 2)
    kill(program)
    finished = done(sweep)
    attempts = {number: sweep.job(number).attempts for number in finished}
    files = {number: state_of(arguments.out / str(number)) for number in finished}
    begun = {job.number for job in sweep.jobs() if job.attempts}.difference(finished)
    saved = {number for number in begun if list((arguments.out / str(number) / "checkpoints").glob("step-*"))}
    killed = time.monotonic() - begin
    print(
        f"killed after {killed:.0f} s: {len(finished)} of {arguments.jobs} jobs done, {len(begun)} in the middle",
        end="",
    )
    print(f" ({len(saved)} with a checkpoint), {arguments.jobs - len(finished) - len(begun)} not begun", flush=True)

    subprocess.run(command, env=environment, check=True)
    again = time.monotonic() - begin - killed
    twice = [number for number in finished if sweep.job(number).attempts != attempts[number]]
    touched = [number for number in finished if state_of(arguments.out / str(number)) != files[number]]
    steps = range(AN_ITERATION, STEPS + 1, AN_ITERATION)
    wrong = [number for number in range(arguments.jobs) if steps_of(arguments.out / str(number)) != list(steps)]
    counts = [len(sweep.job(number).attempts) for number in range(arguments.jobs)]
    gone_on = [number for number in saved if "resumes from" in (arguments.out / f"{number}/log.txt").read_text()]
    print(
        f"started again, {again:.0f} s: {len(done(sweep))} of {arguments.jobs} jobs done, {sum(counts)} attempts in all"
    )
    print(f"done before and run again: {len(twice)}; done before and a file touched: {len(touched)}")
    print(f"in the middle, with a checkpoint, gone on with from it: {len(gone_on)} of {len(saved)}")
    print(f"jobs whose steps are not {STEPS}, each once: {len(wrong)}")
    expected = [1 + (number in begun) for number in range(arguments.jobs)]
    if twice or touched or wrong or counts != expected or len(gone_on) != len(saved):
        sys.exit("not as it should be")


def done(sweep: Sweep) -> list[int]:
    """Return the numbers of the jobs that are done."""
    if not (sweep.folder / "sweep.json").exists():
        return []
    return [job.number for job in sweep.jobs() if job.state == "done"]


def kill(program: "subprocess.Popen[bytes]") -> None:
    """Kill a program and all that it started."""
    processes = [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]
    for process in processes:
        process.suspend()  # so that none starts another, or hears of the others' ends
    for process in processes:
        process.kill()
    program.wait()
    psutil.wait_procs(processes, timeout=30)


def state_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of the last change of each file."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()
    }


def steps_of(run: Path) -> list[int]:
    """Return the steps of a run's rows."""
    return [int(row["env_steps"]) for row in read_metrics(run / "metrics.csv")]  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

"""Several processes that are given one run directory at the same moment."""

import json
import os
import subprocess
from pathlib import Path

from rlx.run.checkpoint import list_checkpoints, load_checkpoint
from rlx.run.metrics import read_metrics
from tests.program import COMMAND, ENVIRONMENT, SMALL, left_in, own

NUM_PROCESSES = 3


def test_of_several_runs_that_start_in_one_directory_exactly_one_wins(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    os.mkfifo(tmp_path / "go")
    # All look for the directory, find none, and make their environments; only then does any go on to create it.
    arguments = [*SMALL, *own("WaitsForOthers"), "batcher=local", "batcher.envs_per_worker=1", "run_dir=run"]
    runs = [
        subprocess.Popen(
            [*COMMAND, "train", *arguments, f"seed={seed}"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(NUM_PROCESSES)
    ]
    try:
        # Opened for both directions, a pipe neither waits for its other end nor ends with it.
        ready, go = (os.open(tmp_path / name, os.O_RDWR) for name in ("ready", "go"))
        with open(ready) as words:
            assert [words.readline() for _ in runs] == ["here\n"] * NUM_PROCESSES
        assert not (tmp_path / "run").exists()
        os.write(go, b"." * NUM_PROCESSES)
        ended = [(run, *run.communicate(timeout=60)) for run in runs]
        os.close(go)
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert sorted(run.returncode for run in runs) == [0, *[2] * (NUM_PROCESSES - 1)], [err for _, _, err in ended]
    for run, out, err in ended:
        if run.returncode:
            assert out == ""
            assert err.count("\n") == 1
            assert err.startswith(f"Error: run_dir: '{tmp_path}/run' already ")
    winner = next(seed for seed, run in enumerate(runs) if run.returncode == 0)
    directory = tmp_path / "run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go", "ready", "run"]
    assert json.loads((directory / "summary.json").read_text())["status"] == "done"
    (checkpoint,) = list_checkpoints(directory)
    assert load_checkpoint(checkpoint).config["seed"] == winner
    assert [row["iteration"] for row in read_metrics(directory / "metrics.csv")] == [1, 2, 3, 4]
    assert len(list((directory / "tensorboard").iterdir())) == 1
    assert (directory / "log.txt").read_text().count(" INFO begins: ") == 1
    assert left_in(tmp_path) == []

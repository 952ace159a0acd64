"""Stands where `rlx train` does, without torch: writes evaluations as the key `x` tells it to.

`good` and `better` come to their end, `bad` writes little and waits to be stopped, `fails` and `dies` do so.
"""

import os
import signal
import sys
from pathlib import Path

from rlx.run.metrics import CsvSink

EVERY = 10
RETURNS = {"good": [10.0, 20.0, 30.0, 40.0], "better": [20.0, 30.0, 50.0, 60.0], "bad": [1.0, 2.0]}


def main() -> None:
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    directory, how = Path(words["run_dir"].strip("'")), words["x"]
    if how == "fails":
        sys.stderr.write("a line before\nError: x: got 'fails', expected something else\n")
        raise SystemExit(2)
    directory.mkdir(parents=True)
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sink = CsvSink(directory / "metrics.csv")
    for number, value in enumerate(RETURNS[how], 1):
        sink.write({"env_steps": number * EVERY, "iteration": number, "wall_time": 0.0, "loss/total": 0.5})
        sink.write({"env_steps": number * EVERY, "eval/return": value + float(words["seed"])})
    if how == "bad":
        signal.pause()


if __name__ == "__main__":
    main()

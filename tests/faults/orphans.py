"""Makes a batcher whose workers do as they are told, tells their process ids, and waits to be killed."""

import sys
from functools import partial

from rlx.batcher import Batcher
from rlx.env import make
from tests.faults import sick
from tests.faults.test_injection import Still

if __name__ == "__main__":
    make_env = partial(make, sick.ID, kwargs={"way": sys.argv[1], "place": sys.argv[2]})
    with Batcher(Still, make_env, num_workers=2, envs_per_worker=2, num_steps=8, seed=1) as batcher:
        batcher.reset()
        batcher.execute()
        sys.stdout.write(" ".join(str(handle.pid) for handle in batcher._handles) + "\n")
        sys.stdout.flush()
        batcher.get()
        sys.stdin.read()

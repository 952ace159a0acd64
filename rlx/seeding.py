"""One seed tree for every random generator of a run.

A run has one seed. Each generator asks for the seed at its own path, such as `("env", 3)`, so that adding a generator
never moves another one's numbers, and nothing depends on the order in which processes start or answer.
"""

import zlib

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """Return the 62-bit seed at `path` of the tree that grows from `seed`.

    Args:
        seed: the run's seed, >= 0.
        path: names and indices from the root, for example `"env", 3`.

    Returns:
        An integer in [0, 2**62), the same on every machine.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=words)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(2))


def env_seed(seed: int, index: int, *, evaluation: bool = False) -> int:
    """Return the reset seed of environment `index`.

    Training seeds are even and evaluation seeds odd, so that the two never meet, whatever the run's seed.

    Returns:
        An integer in [0, 2**31): what Gymnasium and NumPy's legacy generators both accept.
    """
    return ((derive(seed, "env", index) % 2**30) << 1) | int(evaluation)

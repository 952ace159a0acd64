"""What is compared is measured in turns, so that a change of the machine's speed meets all of it."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

TURN_SECONDS = 0.15
"""Short: the machine's speed changes within a second, and is to meet both sides of a pair."""

Run = Callable[[int], int]
"""`run(n)` does n portions of work and returns how many steps these were."""


def rates_in_turns(
    runs: Mapping[str, Run], seconds: float, between: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Return the steps per second of each run, turn by turn of about 0.15 s.

    Args:
        runs: by name; each has done its first calls, which make what later ones use.
        seconds: how long each is measured; three turns at least.
        between: called after each round of turns.
    """
    portions = {name: _portions_a_turn(run) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    ends = time.perf_counter() + len(runs) * seconds
    rounds = 0
    while time.perf_counter() < ends or rounds < 3:
        for name, run in runs.items():
            started = time.perf_counter()
            count = run(portions[name])
            found[name].append(count / (time.perf_counter() - started))
        if between is not None:
            between()
        rounds += 1
    return found


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the turns' ratios: each turn is compared with the one beside it."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def _portions_a_turn(run: Run) -> int:
    run(2)  # what is made at the first call
    started = time.perf_counter()
    run(4)
    return max(1, round(4 * TURN_SECONDS / max(time.perf_counter() - started, 1e-6)))

"""Time DictTensor beside tensordict and, where its source is at hand, the 2021 original.

    python scripts/bench_data.py [--original PATH_OF_rlstructures/core.py] [--rounds N] [--json]

Eight float32 tensors [32, 4] on the CPU, one thread: build from a dict, take 16 rows by an index tensor, slice 8 rows,
concatenate four. The libraries take turns in short bursts, so that a busy moment of the machine meets all of them; a
figure is the median burst, a ratio the median of the ratios within a turn.
"""

import argparse
import importlib.util
import json
import random
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from rlx.data import DictTensor

try:
    from tensordict import TensorDict
except ImportError:
    TensorDict = None

OPERATIONS = ("build", "index", "slice", "cat")
Calls = dict[str, dict[str, Callable[[], object]]]


def load(path: Path) -> ModuleType:
    """Import a module from a file of any place."""
    spec = importlib.util.spec_from_file_location("original", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls(original: ModuleType | None) -> Calls:
    """Return for each library and operation what is timed."""
    fields = {f"k{number}": torch.randn(32, 4) for number in range(8)}
    index, rows = torch.arange(0, 32, 2), slice(8, 16)
    ours, four = DictTensor(fields), [DictTensor(fields) for _ in range(4)]
    result: Calls = {
        "rlx": {
            "build": lambda: DictTensor(fields),
            "index": lambda: ours[index],
            "slice": lambda: ours[rows],
            "cat": lambda: DictTensor.cat(four),
        },
        "rlx, trusted": {"build": lambda: DictTensor.trusted(fields, 32)},
    }
    if TensorDict is not None:
        nested, nested_four = TensorDict(fields, [32]), [TensorDict(fields, [32]) for _ in range(4)]
        result["tensordict"] = {
            "build": lambda: TensorDict(fields, [32]),
            "index": lambda: nested[index],
            "slice": lambda: nested[rows],
            "cat": lambda: torch.cat(nested_four),
        }
    if original is not None:
        theirs, their_four = original.DictTensor(fields), [original.DictTensor(fields) for _ in range(4)]
        result["original"] = {
            "build": lambda: original.DictTensor(fields),
            "index": lambda: theirs.index(index),
            "slice": lambda: theirs.slice(8, 16),
            "cat": lambda: original.DictTensor.cat(their_four),
        }
    return result


def measure(todo: Calls, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return microseconds a call for each library and operation, one figure a turn."""
    times: dict[str, dict[str, list[float]]] = {name: {operation: [] for operation in todo[name]} for name in todo}
    turns = [(name, operation) for operation in OPERATIONS for name in todo if operation in todo[name]]
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(turns)
        for name, operation in turns:
            number = 400 if operation == "build" else 40
            seconds = timeit.timeit(todo[name][operation], number=number)
            times[name][operation].append(seconds / number * 1e6)
    return times


def summarize(times: dict[str, dict[str, list[float]]]) -> list[dict[str, object]]:
    """Return a row for each operation: medians, and the ratio of rlx to the better of the others."""
    table: list[dict[str, object]] = []
    for operation in OPERATIONS:
        medians = {name: statistics.median(runs[operation]) for name, runs in times.items() if operation in runs}
        row: dict[str, object] = {"operation": operation, **medians}
        others = [name for name in medians if not name.startswith("rlx")]
        if others:
            best = min(others, key=lambda name: medians[name])
            for name in medians:
                if name.startswith("rlx"):
                    pairs = zip(times[name][operation], times[best][operation], strict=True)
                    row[f"{name} / {best}"] = statistics.median([ours / theirs for ours, theirs in pairs])
        table.append(row)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, help="the original's core.py; without it, its column is left out")
    parser.add_argument("--rounds", type=int, default=300, help="turns of each library (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    todo = calls(load(arguments.original) if arguments.original else None)
    measure(todo, 20)
    table = summarize(measure(todo, arguments.rounds))
    if arguments.json:
        print(json.dumps(table))
        return
    print("microseconds a call; ratios to the better of the others")
    for row in table:
        cells = [f"{name} {value:.2f}" for name, value in row.items() if isinstance(value, float)]
        print(f"{row['operation']!s:6} " + "   ".join(cells))


if __name__ == "__main__":
    main()

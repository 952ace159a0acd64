"""`rlx eval`: policies of runs and checkpoints, each over the same episodes, and the statistics of their returns."""

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlx.errors import CheckpointError, UserError
from rlx.run.checkpoint import find_checkpoint, list_checkpoints, verify_checkpoint
from rlx.run.console import EvaluationLine
from rlx.run.directory import CHECKPOINTS
from rlx.run.evaluate import evaluate_path, shares
from rlx.run.files import check_output, expanded, writing_output
from rlx.tools.statistics import bootstrap_interval, summarize

COLUMNS = ("path", "env_steps", "episode", "return", "length", "seed", "deterministic")
"""Of the CSV file: one row an episode. Behind them `policy`, where a population is among the agents, and `environment`,
where one was trained in several."""

_SHARES = ("policy", "policies", "members"), ("environment", "environments", "environment_names")
"""What an evaluation's episodes may be told apart by, and where their numbers and the names are."""

_LEVEL = 0.95
_DRAWS = 2000


def evaluate_paths(
    paths: Sequence[Path],
    *,
    all_checkpoints: bool = False,
    csv_path: Path | None = None,
    video: Path | None = None,
    human: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Play the same number of episodes with each policy, in environments of the same seeds.

    Of several paths, whether all are there and whole is looked at before the first policy plays.

    Args:
        paths: run directories (their newest whole checkpoint) and checkpoints.
        all_checkpoints: take every checkpoint of a run, oldest first: a curve. One that is damaged, or that the run has
            removed when its turn comes, is named in a warning and left out.
        video: a file or folder to record the episodes of one policy in; see `rlx.tools.watch`.
        human: show the episodes of one policy in a window.
        csv_path: a file to write, one row an episode (see `COLUMNS`).
        options: of `rlx.run.evaluate.evaluate_path`: `episodes`, `seed`, `stochastic`, `agent_info`, `trust`,
            `config_dir`, `max_episode_steps`.

    Returns:
        For each policy what `EvaluationResult.to_dict` tells, its `path`, and `median`, `iqm` (interquartile mean) and
        `interval` (95 % bootstrap interval of the mean) of its returns; `videos`, where it was recorded.

    Raises:
        CheckpointError: a checkpoint is missing or cannot be played.
        ConfigError: `agent_info` or `max_episode_steps` is wrong for one of them.
        EnvironmentFault: an environment raised, or an episode does not end.
        UserError: the CSV file is nowhere where a file can be written.
        RlxError: it could not be written; what was there before still is.
    """
    if csv_path is not None:
        csv_path = check_output(csv_path, "--csv")
    for path in paths if len(paths) > 1 else ():
        _checked(path)
    policies = [policy for path in paths for policy in (_checkpoints(path) if all_checkpoints else [path])]
    if video is not None or human:
        found = [_seen(policies, video, human, options)]
    else:
        found = [_played(path, options) for path in (_whole(policies) if all_checkpoints else policies)]
    if csv_path is not None:
        with writing_output(csv_path) as file:
            file.write(_table(found).encode())
    return found


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the CSV file's text: one row an episode."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    told = [(kind, of) for kind, of, _ in _SHARES if any(one.get(of) for one in found)]
    table.writerow((*COLUMNS, *(kind for kind, _ in told)))
    for one in found:
        nobody = [None] * len(one["returns"])
        shown = [one["returns"], one["lengths"], *(one.get(of) or nobody for _, of in told)]
        for number, (value, length, *of_whom) in enumerate(zip(*shown, strict=True)):
            same = one["seed"], one["deterministic"]
            table.writerow((one["path"], one["env_steps"], number, value, length, *same, *of_whom))
    return text.getvalue()


def shares_of(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each policy of a population, and for each environment of `env=mixed`, that played.

    Args:
        values: of one agent, as `evaluate_paths` returns it; of one policy in one environment there is nothing to tell.
    """
    lines: list[str] = []
    for kind, of, names in _SHARES:
        whole = values.get(names) or ()
        for number, played, mean in shares(values["returns"], values[of]) if whole else ():
            share = f"{kind} {number} ({whole[number]}) of {len(whole)}"
            lines.append(f"{share}: return {mean:.2f} over {played} episodes")
    return lines


def _played(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    with EvaluationLine(options["episodes"]) as line:
        result = evaluate_path(path, report=line, **options)
    return {"path": str(path), **_described(result.to_dict())}


def _seen(policies: Sequence[Path], video: Path | None, human: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    from rlx.tools.watch import watch

    if video is not None and human:
        raise UserError("got --video and --render human, expected one of them")
    if len(policies) > 1:
        option = "--render human" if human else "--video"
        raise UserError(f"{option}: got {len(policies)} policies, expected one at a time")
    seen = watch(policies[0], video=video, **options)
    videos = {} if human else {"videos": [str(file) for file in seen.files]}
    return {"path": str(policies[0]), **_described(seen.result.to_dict()), **videos}


def _checkpoints(path: Path) -> list[Path]:
    """Return a run's checkpoints, whole or not, or the checkpoint itself.

    Raises:
        CheckpointError: the run has none, or the checkpoint is not whole.
    """
    path = expanded(path)
    return list_checkpoints(path.parent if path.name == CHECKPOINTS else path) or [_checked(path)]


def _checked(path: Path) -> Path:
    """Return a path, which leads to a whole checkpoint.

    Raises:
        CheckpointError: it does not.
    """
    verify_checkpoint(find_checkpoint(path, report=lambda _: None))  # to which one is told when it is played
    return path


def _whole(checkpoints: Sequence[Path]) -> Iterator[Path]:
    """Yield those that are whole when their turn comes; a run may go on and remove some.

    Raises:
        CheckpointError: none is.
    """
    reasons: list[str] = []
    for checkpoint in checkpoints:
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            reasons.append(str(error))
            logging.getLogger(__name__).warning("%s; it is left out", error)
        else:
            yield checkpoint
    if len(reasons) == len(checkpoints):
        raise CheckpointError("--all-checkpoints: no checkpoint is whole")


def _described(values: dict[str, Any]) -> dict[str, Any]:
    returns = np.asarray(values["returns"], float)
    low, high = bootstrap_interval(returns, "mean", level=_LEVEL, draws=_DRAWS)
    return values | {
        "median": float(summarize(returns, "median")),
        "iqm": float(summarize(returns, "iqm")),
        "interval": [float(low), float(high)],
    }

"""Where a worker is between two pieces, as data, and how another worker is brought there.

Of the environments there are three kinds. Those that tell their own state are exact at once (`VecEnv.get_state`). Those
whose rows are reset and stepped one by one repeat what they did since their last seeds (`Journal`), and a hash of what
they then show says whether it came out the same. All others begin new episodes, and the run says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlx.batcher.handles import Handle
from rlx.batcher.sampler import Info, rows_like
from rlx.batcher.worker import Worker
from rlx.data import DictTensor
from rlx.env.fault import asked
from rlx.seeding import derive


def is_of_another_device(generator: torch.Generator, state: torch.Tensor) -> bool:
    """Return whether the state is of a generator of another kind of device, whose draws are others."""
    return generator.get_state().shape != state.shape


def get_state(worker: Worker) -> dict[str, Any]:
    """Return a worker's state: dictionaries of numbers, tensors and arrays, some of which later steps change."""
    rollout = worker.rollout
    return {
        "rollout": rollout.get_state(),
        "env": asked(worker.env, "get_state") if worker.env.own_state else None,
        "journal": None if rollout.journal is None else rollout.journal.get_state(),
        "check": None if worker.piece_check is None else worker.piece_check.get_state(),
        "incarnation": worker.options.incarnation,
        "apart": worker.apart,
    }


@torch.inference_mode()  # as in steps and resets: what environments make there may be written to there only
def set_state(worker: Worker, state: Mapping[str, Any]) -> str | None:
    """Bring a worker to where another one was.

    Returns:
        None; or why its environments begin new episodes instead, or what else is not as it would have been.
    """
    rollout, options = worker.rollout, replace(worker.options, incarnation=state["incarnation"])
    worker.options, worker.apart = options, state["apart"]
    own, moved = state["rollout"], None
    if is_of_another_device(rollout.generator, own["generator"]):
        draws = rollout.generator.manual_seed(derive(rollout.generator.initial_seed(), "resumed", own["total_steps"]))
        own, moved = {**own, "generator": draws.get_state()}, "actions are drawn anew, by another device's generator"
    rollout.set_state(own)
    if worker.piece_check is not None and state["check"] is not None:
        worker.piece_check.seed_again(options.seeds_of(worker.root))
        worker.piece_check.set_state(state["check"])
    env, journal = state["env"], state["journal"]
    if env is not None:
        asked(worker.env, "set_state", env)
        return moved
    problem = "it cannot tell its state, and its rows cannot be stepped one by one to repeat what they did"
    if rollout.journal is not None:
        problem = "an episode is too long to be repeated"
        if journal is not None:
            problem = rollout.journal.set_state(journal, worker.env)
    if problem is not None:
        worker.begin_apart(state["rollout"]["total_steps"], draws=False)
    return problem if problem is None else f"{worker.env.name}: {problem}"


def handles_state(handles: Sequence[Handle], agent_info: Info, env_info: Info, versions: int) -> dict[str, Any]:
    """Return what the batcher's side knows: rows of information that it was given, restarts, `versions` of weights."""
    info = {"agent_info": agent_info, "env_info": env_info}
    return {
        "given": {key: dict(rows.items()) for key, rows in info.items() if isinstance(rows, DictTensor)},
        "restarts": [handle.restarts for handle in handles],
        "dropped_steps": [handle.dropped_steps for handle in handles],
        "versions": versions,
    }


def set_handles_state(
    handles: Sequence[Handle], state: Mapping[str, Any], agent_info: Info, env_info: Info
) -> tuple[Info, Info]:
    """Take that over, order the workers to go where others were, and return the rows of information.

    Args:
        handles: the workers; each will answer as `set_state` does, where there is something to order.
        state: of a batcher of the same make.
        agent_info: what the batcher has now: a sampler, or rows of the same fields.
        env_info: likewise.
    """
    counts = zip(state["restarts"], state["dropped_steps"], strict=True)
    for handle, (restarts, dropped_steps) in zip(handles, counts, strict=True):
        handle.restarts, handle.dropped_steps = restarts, dropped_steps
        handle.options = replace(handle.options, incarnation=restarts)  # of whoever is started again from now on
    if state["workers"]:
        for handle, own in zip(handles, state["workers"], strict=True):
            handle.options = replace(handle.options, incarnation=own["incarnation"])
            handle.send("call", set_state, own)
    given = state["given"]
    return _like(agent_info, "agent_info", given), _like(env_info, "env_info", given)


def _like(info: Info, name: str, given: Mapping[str, Any]) -> Info:
    """Return the rows that were given instead of `info`, a sampler as it is."""
    if not isinstance(info, DictTensor):
        return info
    return rows_like(info, given[name])

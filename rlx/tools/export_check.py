"""Whether an exported policy acts as rlx does: both see what the real environment shows, and act."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.agent.agent import AgentMaker
from rlx.batcher.batcher import Batcher
from rlx.data import DictTensor, TemporalDictTensor
from rlx.env.actions import ActionReader
from rlx.env.mixed import MixedVecEnv
from rlx.errors import AgentError
from rlx.run.policy import Policy
from rlx.tools.export_formats import Arrays, Run, as_array
from rlx.tools.exported import NEW_STATE, STATE, ExportedPolicy

NUM_CHECKED = 1000
"""Observations on which a file is compared with rlx before it is kept."""

_ROWS = 8
_TOLERANCE = 1e-4  # of a number: as a part of its magnitude where that is above 1


def spaces_of(policy: Policy) -> tuple[Any, Any] | None:
    """Return the spaces of the policy's environments, as `VecEnv.spaces`.

    Raises:
        CheckpointError: the environments are not like those that it was trained on.
        AgentError: those of a mixed batch differ from each other.
    """
    with policy.make_env(num_envs=_num_rows(policy)) as env:
        policy.check_specs(env.specs)
        if isinstance(env, MixedVecEnv) and any(member.spaces != env.spaces for member in env.members):
            raise AgentError(
                f"'{policy.path}' cannot be exported: the environments of its batch number or type what they show and "
                "take differently, and a file has one way"
            )
        return env.spaces


def largest_difference(run: Run, policy: Policy, make_agent: AgentMaker, module: ExportedPolicy) -> tuple[int, float]:
    """Return on how many observations a file was compared with rlx, and the largest difference of an action.

    rlx plays, and the file sees what rlx saw, all environments at once and then one of them alone.

    Args:
        run: the file.
        policy: where it comes from.
        make_agent: makes agents like the one that was exported.
        module: what the file was made from.

    Raises:
        AgentError: an action differs by more than rounding does, or the file does not run.
        EnvironmentFault: the environment raised.
    """
    rows = _num_rows(policy)
    length = -(-NUM_CHECKED // rows)
    given = DictTensor({key: value.expand(rows, *value.shape) for key, value in module.agent_info.items()}, rows)
    with Batcher(
        make_agent,
        policy.make_env,
        num_workers=1,
        envs_per_worker=rows,
        num_steps=2 * length,  # where environments reset themselves, up to every other call is no step
        seed=0,
        workers="local",
        evaluation=True,
        agent_info=given | DictTensor({"deterministic": torch.ones(rows, dtype=torch.bool)}),
        env_info=policy.samplers.get("env_info"),
    ) as batcher:
        batcher.publish(module.agent)
        steps = batcher.collect().to("cpu").steps.slice_time(0, length)
        assert steps.is_full()
        expected = _to_environment(steps, module, rows)
        seen = _shown(steps, module)
        worst = 0.0
        for columns in (slice(None), slice(0, 1)):
            try:
                played = _played(run, seen, module, columns, list(expected))
            except Exception as error:  # of the engine that runs it
                reason = str(error).strip().splitlines()[-1:]
                raise AgentError(
                    f"'{policy.path}' cannot be exported: the file fails on {len(range(rows)[columns])} rows at once: "
                    f"{reason[0] if reason else type(error).__name__}. What {policy.agent_target} computes depends on "
                    "how many there were as it was written"
                ) from error
            for key, found in played.items():
                worst = max(worst, _difference(key, found, expected[key][columns], policy))
    return rows * length, worst


def _num_rows(policy: Policy) -> int:
    return max(_ROWS, len(policy.env.get("members") or ()))


def _shown(steps: TemporalDictTensor, module: ExportedPolicy) -> Arrays:
    """Return the inputs that do not come from the step before, `[B, T, ...]`."""
    seen: Arrays = {}
    for key in module.example:
        if key == "prev_reward":
            seen[key] = as_array(steps["env/prev_reward"] / module.reward_scale)
        elif not key.startswith(STATE):
            seen[key] = as_array(module.from_stored(key, steps[f"env/{key}"]))
    return seen


def _played(run: Run, seen: Arrays, module: ExportedPolicy, columns: slice, keys: list[str]) -> Arrays:
    """Return the actions `[B, T, ...]` of the file, which is given its own state again."""
    chosen = {key: value[columns] for key, value in seen.items()}
    size, length = next(iter(chosen.values())).shape[:2]
    state = {
        key: np.zeros((size, *value.shape[1:]), value.numpy().dtype)
        for key, value in module.example.items()
        if key.startswith(STATE)
    }
    found: list[Arrays] = []
    for t in range(length):
        outputs = run({key: np.ascontiguousarray(value[:, t]) for key, value in chosen.items()} | state)
        state = {key: outputs[NEW_STATE + key.removeprefix(STATE)] for key in state}
        found.append(outputs)
    return {key: np.stack([outputs[key] for outputs in found], axis=1) for key in keys}


def _to_environment(steps: TemporalDictTensor, module: ExportedPolicy, rows: int) -> Arrays:
    """Return the actions `[B, T, ...]` as rlx gave them to the environment."""
    taken = {key: steps[f"agent/{key}"] for key in module.action_keys}
    if module.action_space is None:
        return {key: as_array(value) for key, value in taken.items()}
    reader, length = ActionReader(module.action_space, rows), steps.max_length
    given = [reader.batch({key: value[:, t] for key, value in taken.items()}) for t in range(length)]
    return {leaf.key: np.stack([leaf.pick(action) for action in given], axis=1) for leaf in reader.leaves}


def _difference(key: str, found: NDArray[Any], expected: NDArray[Any], policy: Policy) -> float:
    """Return the largest difference between two arrays of actions.

    Raises:
        AgentError: dtypes or shapes differ, or an action does by more than rounding.
    """
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        raise AgentError(
            f"'{policy.path}' cannot be exported: the file's '{key}' is {found.dtype} {list(found.shape[2:])}, and the "
            f"environment takes {expected.dtype} {list(expected.shape[2:])}"
        )
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    allowed = _TOLERANCE * np.maximum(1.0, np.abs(expected)) if expected.dtype.kind == "f" else np.zeros(())
    wrong = ~(apart <= allowed)
    if wrong.any():
        count = int(wrong.reshape(*wrong.shape[:2], -1).any(-1).sum())
        raise AgentError(
            f"'{policy.path}' cannot be exported: the file's '{key}' differs from rlx's on {count} of "
            f"{wrong.shape[0] * wrong.shape[1]} observations, by up to {apart.max():.3g}: {policy.agent_target} "
            "decides by something that a file does not hold"
        )
    return float(apart.max(initial=0.0))

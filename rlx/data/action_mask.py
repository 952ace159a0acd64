"""The convention by which an environment says which of its discrete actions are allowed now: one key it shows."""

from collections.abc import Mapping

from rlx.data.spec import EnvSpecs, Spec
from rlx.errors import SpecError

ACTION_MASK = "action_mask"
"""The key of a Dict observation, or of Gymnasium's `info`, that holds the mask."""

MASK_KEY = f"obs/{ACTION_MASK}"
"""The field that it becomes."""


def masked_action(action: Mapping[str, Spec]) -> str:
    """Return the action key that a mask is for: the only discrete or multi-discrete one.

    Args:
        action: `EnvSpecs.action`.

    Raises:
        SpecError: there is none, or several, of which a mask cannot tell which one it means.
    """
    discrete = [key for key, spec in action.items() if spec.kind in ("discrete", "multi_discrete")]
    if len(discrete) == 1:
        return discrete[0]
    taken = ", ".join(f"{key} ({spec.kind})" for key, spec in action.items())
    if discrete:
        raise SpecError(
            f"an action mask says what is allowed for one discrete action, and the environment takes {len(discrete)}: "
            f"{taken}; make them one MultiDiscrete space"
        )
    raise SpecError(f"an action mask is for Discrete or MultiDiscrete actions, and the environment takes {taken}")


def find_mask(specs: EnvSpecs) -> str | None:
    """Return the field that says which actions are allowed now, `obs/action_mask`; None where none is shown.

    It is `[B, n]`, bool or an integer type: 0 is forbidden, 1 allowed. n is the number of actions of the one discrete
    action key, or the sum of `nvec` of a multi-discrete one, whose choices follow one another.

    Args:
        specs: what an environment shows and takes.

    Raises:
        SpecError: there is a mask, and it does not fit the actions.
    """
    if MASK_KEY not in specs.observation:
        if any(key.startswith(f"{MASK_KEY}/") for key in specs.observation):
            raise SpecError(f"'{MASK_KEY}' has parts; expected one array of zeros and ones")
        return None
    try:
        key = masked_action(specs.action)
    except SpecError as error:
        raise SpecError(f"'{MASK_KEY}': {error}. A key of another name is an observation like any other") from None
    mask, action = specs.observation[MASK_KEY], specs.action[key]
    expected = f"expected one zero or one for each choice of '{key}', shape ({sum(action.nvec)},)"
    if mask.shape != (sum(action.nvec),):
        raise SpecError(f"'{MASK_KEY}' has shape {mask.shape}; {expected}")
    if mask.dtype.is_floating_point or mask.dtype.is_complex:
        raise SpecError(f"'{MASK_KEY}' is {mask.dtype}; {expected}, bool or of an integer type")
    return MASK_KEY

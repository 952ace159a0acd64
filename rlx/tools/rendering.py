"""The environments of a configuration, made so that they draw."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from rlx.data import Spec
from rlx.env.registry import find
from rlx.env.vec_env import Autoreset, StepBuffer, VecEnv
from rlx.errors import UserError

RenderMode = Literal["rgb_array", "human"]

_FPS = 30.0  # of environments that do not say


def drawing(env: Mapping[str, Any], mode: RenderMode, row: int) -> dict[str, Any]:
    """Return the group `env` of environments like these that draw; of a mixed batch, the one whose turn it is.

    A native vector environment is replaced by instances of the same id.

    Args:
        env: the group, as configured.
        mode: `rgb_array` for pictures, `human` for a window.
        row: which of the episodes it is for.

    Raises:
        UserError: it cannot draw in this way; says in which it can.
    """
    target = str(env.get("_target_"))
    kwargs = {**cast("Mapping[str, Any]", env.get("kwargs") or {}), "render_mode": mode}
    if target == "rlx.env.make_mixed":
        members = cast("list[Mapping[str, Any]]", env["members"])
        return drawing({"_target_": "rlx.env.make", **members[row % len(members)]}, mode, row)
    if target == "rlx.env.make":
        _check_modes(str(env["id"]), mode)
        return {**env, "vectorization": "per_instance", "kwargs": kwargs}
    if target in ("rlx.env.make_legacy_gym", "rlx.env.make_envpool"):
        return {**env, "kwargs": kwargs}
    if mode == "human":
        raise UserError(f"--render human: '{_name(env)}' opens no window; expected an environment of Gymnasium's")
    return dict(env)


def picture(env: VecEnv, out: StepBuffer) -> Any:
    """Return a picture of the first row: what the environment draws, or else what it shows, if that is an image.

    Args:
        env: an environment made for drawing.
        out: what the last reset or step wrote.

    Raises:
        UserError: there is neither; says in which ways the environment draws.
        EnvironmentFault: drawing raised.
    """
    drawn = env.render(0)
    if drawn is not None:
        return drawn
    ended = bool(out.terminated[0] | out.truncated[0]) and env.autoreset is Autoreset.SAME_STEP
    shown = out.final_obs if ended and out.final_obs is not None else out.obs
    for key, spec in env.specs.observation.items():
        image = _image(shown[key][0].numpy(force=True), spec)
        if image is not None:
            return image
    modes = ", ".join(_metadata(env).get("render_modes") or ()) or "none"
    raise UserError(
        f"--video: '{env.name}' draws no pictures (its render modes: {modes}), and shows no image; expected rgb_array"
    )


def frames_per_second(env: VecEnv) -> float:
    """Return the speed at which the environment wants to be seen."""
    return float(_metadata(env).get("render_fps") or _FPS)


def _metadata(env: VecEnv) -> Mapping[str, Any]:
    instances: Any = getattr(env, "envs", None) or [getattr(env, "env", None)]
    return getattr(instances[0], "metadata", None) or {}


def _check_modes(env_id: str, mode: RenderMode) -> None:
    entry = find(env_id).entry_point
    try:
        creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    except Exception:
        return  # what is wrong with it is told where it is made
    metadata: Any = getattr(creator, "metadata", None)
    modes = cast("Mapping[str, Any]", metadata).get("render_modes") if isinstance(metadata, Mapping) else None
    if modes is None or mode in modes or (mode == "human" and "rgb_array" in modes):  # Gymnasium shows its pictures
        return
    option = "--render human" if mode == "human" else "--video"
    raise UserError(f"{option}: '{env_id}' has the render modes {', '.join(modes) or 'none'}; expected {mode}")


def _image(value: NDArray[Any], spec: Spec) -> NDArray[Any] | None:
    """Return an observation as a picture, of stacked frames the newest; None where it is none."""
    if spec.frame_stack_axis is not None:
        value = value.take(-1, axis=spec.frame_stack_axis)
    if value.dtype != np.uint8 or value.ndim not in (2, 3):
        return None
    if value.ndim == 3 and value.shape[2] not in (1, 3, 4):
        value = np.moveaxis(value, 0, 2)
    return value if value.ndim == 2 or value.shape[2] in (1, 3, 4) else None


def _name(env: Mapping[str, Any]) -> str:
    return str(env.get("id") or env.get("game") or env.get("_target_"))

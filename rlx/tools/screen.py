"""Drawing where there is no screen: what MuJoCo is told then, and what a user is told where it does not help."""

import ctypes.util
import importlib.util
import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager

from rlx.errors import EnvironmentFault, UserError, message_of

_GL = re.compile(r"\b(OpenGL|EGL|GLX|GLFW|OSMesa|MUJOCO_GL|DISPLAY|display|video device)\b|glfw|\b(egl|gl)[A-Z]\w+")
"""What errors speak of that come from the want of a screen or of a library that draws without one."""


def has_screen() -> bool:
    """Return whether windows can be opened, as far as the environment variables tell."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def require_screen() -> None:
    """Refuse a window where there is no screen: MuJoCo would abort the process, and pygame would show nothing.

    Raises:
        UserError: there is none, and nobody has told SDL, which pygame draws with, to do without.
    """
    if not has_screen() and not os.environ.get("SDL_VIDEODRIVER"):
        raise UserError(
            "--render human: there is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set); "
            "--video FOLDER records without one"
        )


@contextmanager
def drawing_without_screen() -> Generator[None]:
    """Let MuJoCo draw by EGL meanwhile, where there is no screen and nobody has said otherwise.

    MuJoCo takes GLFW by default, which needs a screen. EGL does not, and is chosen only where its library is found:
    with `MUJOCO_GL=egl` and without libEGL, MuJoCo could not even be imported.
    """
    free = "MUJOCO_GL" not in os.environ and os.environ.get("PYOPENGL_PLATFORM", "egl") == "egl"
    if has_screen() or not free or importlib.util.find_spec("OpenGL") is None or not ctypes.util.find_library("EGL"):
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        os.environ.pop("MUJOCO_GL", None)


def explained(fault: EnvironmentFault, name: str) -> EnvironmentFault:
    """Return the error to raise for what an environment raised while it was to draw.

    Args:
        fault: what it raised.
        name: what messages call the environment.

    Returns:
        One line on screens and `MUJOCO_GL`, where that is what it was about; else `fault`.
    """
    causes: list[BaseException] = []
    cause = fault.__cause__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    told = next((error for error in causes if _GL.search(f"{type(error).__module__} {message_of(error)}")), None)
    if told is None:
        return fault
    chosen = os.environ.get("MUJOCO_GL")
    where = "with MUJOCO_GL unset" if chosen is None else f"with MUJOCO_GL={chosen}"
    said = (message_of(told).splitlines() or [""])[0].rstrip(".")
    return EnvironmentFault(
        f"'{name}' cannot draw here, {'' if has_screen() else 'without a screen and '}{where}: {type(told).__name__}: "
        f"{said}. Without a screen, MuJoCo needs MUJOCO_GL=egl and libEGL (of the GPU's driver or of Mesa), or "
        "MUJOCO_GL=osmesa and libOSMesa; other environments may need xvfb-run"
    )

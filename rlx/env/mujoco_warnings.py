"""What MuJoCo warns of, once each in the log, where it would print every one and write a file beside the user's own."""

import logging
import sys
from typing import Any

_log = logging.getLogger(__name__)
_ABOUT_GYMNASIUMS_FILES = "'settotalmass' is deprecated"  # in the models that Gymnasium ships: nothing a user could do
_told: set[str] = set()


def hear_mujoco() -> None:
    """Take MuJoCo's warnings over, where it has been imported and nobody else has done so; harmless when repeated."""
    mujoco: Any = sys.modules.get("mujoco")
    if hasattr(mujoco, "get_mju_user_warning") and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if text not in _told:
        _told.add(text)
        if _ABOUT_GYMNASIUMS_FILES not in text:
            _log.warning("MuJoCo: %s", text.strip())

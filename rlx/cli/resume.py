"""`rlx train resume=RUN [KEY=VALUE ...]`: the run's own configuration, a few keys changed; new loggers are composed."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import OverrideParseException

from rlx.cli.members import see_own_code
from rlx.errors import ConfigError

_TRUST = "--trust"
_CONFIG_DIR = ("--config-dir", "-cd")


def run_resume(arguments: Sequence[str]) -> None:
    """Go on with a run.

    Args:
        arguments: `resume=RUN`, keys with new values, `--trust`, `--config-dir=DIR`, in any order.

    Raises:
        ConfigError: something else stands among them, or a key that may not change.
        RlxError: it cannot be resumed, or training failed.
    """
    words, config_dir = _without_config_dir(list(arguments))
    trust = _TRUST in words
    words = [word for word in words if word != _TRUST]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: resume= goes with KEY=VALUE, {_TRUST} and --config-dir=DIR only")
    path, changes = "", dict[str, Any]()
    for word in words:
        if word.startswith("resume="):
            if path:
                raise ConfigError(f"{word}: one run is resumed at a time, got '{path}' as well")
            path = word.removeprefix("resume=").strip("'\"")  # a path as it stands: Hydra would want some quoted
            continue
        key, value = _parsed(word)
        changes[key] = value
        if key == "logger":
            from rlx.cli.train import compose_loggers

            changes[key] = compose_loggers(word, config_dir)
    see_own_code()
    from rlx.run.launch import resume_run

    resume_run(
        Path(path),
        changes,
        shlex.join(["rlx", "train", *arguments]),
        tell=_tell,
        trust=trust,
        config_dir=config_dir,
    )


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parsed(word: str) -> tuple[str, Any]:
    """Return the key and the value of an override.

    Raises:
        ConfigError: it is none, or one that composes.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except OverrideParseException as error:
        raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from None
    if override.type is not OverrideType.CHANGE or override.is_sweep_override():
        raise ConfigError(f"{word}: resume= goes with KEY=VALUE only")
    return override.key_or_group, override.value()


def _without_config_dir(words: list[str]) -> tuple[list[str], Path | None]:
    """Return the words without `--config-dir DIR`, and the directory."""
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in _CONFIG_DIR:
            taken = 1 if value else 2
            given = value or " ".join(words[place + 1 : place + 2])
            if not given:
                raise ConfigError(f"{flag}: expected a directory, got nothing")
            directory = Path(given)
            if not directory.is_dir():
                raise ConfigError(f"--config-dir: there is no directory '{directory}'")
            return words[:place] + words[place + taken :], directory
    return words, None

"""Where the configuration is, and which members its groups have."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.errors import ConfigError
from rlx.run.files import reason_of, yaml_files


@dataclass(frozen=True)
class Member:
    """One member of a configuration group.

    Attributes:
        name: what `group=NAME` takes.
        about: the first comment of its file, else its environment's id, else the function that it configures.
        target: dotted path of the function that it configures, or None.
        path: its file.
    """

    name: str
    about: str
    target: str | None
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return this member as JSON-ready data."""
        return {"name": self.name, "about": self.about, "target": self.target, "path": str(self.path)}


def config_directory() -> Path:
    """Return the directory of rlx's configuration: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "conf", package.parent / "conf"):
        if (directory / "config.yaml").is_file():
            return directory
    raise ConfigError(f"rlx's configuration is missing: no config.yaml in {package / 'conf'}; install rlx again")


def group_members(group: str, config_dir: Path | None = None) -> list[Member]:
    """Return the members of a configuration group by name, a user's own hiding rlx's of the same name.

    Raises:
        ConfigError: `config_dir` is not a directory.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: there is no directory '{config_dir}'")
    directories = [config_directory(), *([config_dir] if config_dir is not None else [])]
    members = {member.name: member for directory in directories for member in _read(directory / group)}
    return [members[name] for name in sorted(members)]


def see_own_code(directory: str | None = None) -> None:
    """Let `_target_: my_package.my_algo.train` name a package in the working directory, as `python -m` would.

    Last in the search path, so that it hides nothing that is installed.

    Args:
        directory: where the command was given, if not in the working directory of now.
    """
    directory = directory or os.getcwd()
    if directory not in sys.path:
        sys.path.append(directory)


def _read(directory: Path) -> Iterator[Member]:
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    for path in yaml_files(directory):
        try:
            loaded = OmegaConf.load(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from None
        except (ValueError, YAMLError) as error:
            raise ConfigError(f"{path}: this is not valid YAML: {str(error).splitlines()[0]}") from None
        values = loaded if isinstance(loaded, DictConfig) else OmegaConf.create({})
        target = values.get("_target_")
        comments = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        about = next((comment for comment in comments if comment and not comment.startswith("@")), None)
        if about is None:
            identifier = None if OmegaConf.is_missing(values, "id") else values.get("id")
            about = str(identifier or target or "")
        name = path.relative_to(directory).with_suffix("").as_posix()
        yield Member(name, about, target, path)

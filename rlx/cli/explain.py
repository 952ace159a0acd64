"""Why a configuration could not be composed, in one line that names the key, what it got and what was expected.

Hydra's own messages run over several lines, and most name no near match. What was typed is looked at again here, one
override after the other, against the groups that exist and the keys of the configuration without it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from rlx.errors import ConfigError, did_you_mean, nearest
from rlx.run.files import yaml_files

_EXTRAS = {"hydra/launcher=joblib": "rlx[joblib]"}
"""Members that a package brings which rlx does without, and how to install it."""


_OF_OTHERS = ("slurm", "tune")
"""Groups of `rlx submit` and `rlx tune`."""
_BESIDE, _ELSEWHERE = 0.5, 0.75
"""How like a key must be to be the one that was meant: beside what was typed, and in another place."""

_NO_MEMBER = "Config group override must be"
"""How the plain ValueError begins that Hydra raises for `group=null` and the like."""


@dataclass(frozen=True)
class Composition:
    """What a configuration was to be composed from.

    Attributes:
        overrides: what was typed, flags aside.
        config_name: the primary configuration.
        directories: configuration directories, the first one hiding files of the others.
        multirun: whether values may be lists of choices.
    """

    overrides: Sequence[str]
    config_name: str
    directories: Sequence[str]
    multirun: bool = False

    @cached_property
    def loader(self) -> ConfigLoaderImpl:
        """Return Hydra's loader over the directories."""
        search_path = create_config_search_path(f"file://{os.path.abspath(self.directories[-1])}")
        for directory in self.directories[:-1]:
            search_path.prepend(provider="command-line", path=f"file://{os.path.abspath(directory)}")
        return ConfigLoaderImpl(search_path)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Return all groups, and the members of each."""
        return {group: self.loader.get_group_options(group, ObjectType.CONFIG) for group in self._walk("")}

    def _walk(self, parent: str) -> Iterator[str]:
        for name in self.loader.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            yield group
            yield from self._walk(group)

    def compose(self, overrides: Sequence[str]) -> DictConfig | None:
        """Return the configuration with `overrides` alone, or None where even they make none."""
        try:
            return self.loader.load_configuration(
                self.config_name, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False
            )
        except Exception:
            return None


def load(composition: Composition, overrides: Sequence[str] | None = None) -> DictConfig:
    """Return the configuration that is described, Hydra's own part included.

    Args:
        composition: from what.
        overrides: those of one job; None for all that were typed.

    Raises:
        ConfigError: they make none.
    """
    words = list(composition.overrides if overrides is None else overrides)
    try:
        return composition.loader.load_configuration(composition.config_name, words, RunMode.RUN)
    except Exception as error:
        raise explained(error, composition) from None


def explained(error: Exception, composition: Composition) -> Exception:
    """Return a `ConfigError` in one line for a configuration error, any other error as it is."""
    message = explain(error, composition)
    return error if message is None else ConfigError(message)


def explain(error: Exception, composition: Composition) -> str | None:
    """Return one line for a configuration error, or None for any other error."""
    if isinstance(error, MarkedYAMLError):
        where = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}" if error.problem_mark else "a file"
        return f"{where}: this is not valid YAML: {error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        return not_text(composition.directories)
    if not isinstance(error, (HydraException, OmegaConfBaseException)) and not str(error).startswith(_NO_MEMBER):
        return None
    overrides: list[Override] = []
    parser = OverridesParser.create(composition.loader)  # which glob(...) asks for the members
    for text in composition.overrides:
        try:
            overrides.extend(parser.parse_overrides([text]))
        except OverrideParseException as problem:
            return _explain_syntax(text, problem, composition)
    names = composition.loader.get_group_options("", ObjectType.CONFIG)
    primary = [name for name in names if not name.startswith("_")]
    if composition.config_name.removesuffix(".yaml") not in primary:
        known = ", ".join(primary)
        hint = did_you_mean(composition.config_name, primary)
        return f"--config-name: there is no configuration '{composition.config_name}'.{hint} There are: {known}."
    for override in overrides:
        message = _explain_sweep(override, composition) or _explain_member(override, composition)
        if message:
            return message
    return _explain_keys(overrides, overrides, composition) or _first_lines(error, composition)


def not_text(directories: Iterable[str]) -> str | None:
    """Return one line for the first YAML file in directories that is no text; None where all are."""
    for file in (file for directory in directories for file in yaml_files(Path(directory))):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return f"{file}: this is not UTF-8 text"
    return None


def explain_sweep(composition: Composition) -> str | None:
    """Return one line for a sweep over a key or a member that is not there; Hydra would find out after starting.

    So it is for one over nothing, which makes no job.
    """
    try:
        overrides = OverridesParser.create(composition.loader).parse_overrides(list(composition.overrides))
    except OverrideParseException:
        return None  # composing the configuration says so, in its turn
    swept = [override for override in overrides if override.is_sweep_override()]
    for override in swept:
        message = _explain_member(override, composition)
        if message:
            return message
    return _explain_keys(overrides, swept, composition) or _explain_nothing(swept, composition)


def _explain_syntax(text: str, problem: OverrideParseException, composition: Composition) -> str:
    if "=" not in text and not text.startswith("~"):
        owners = [group for group, members in composition.groups.items() if text in members]
        hint = f" Did you mean '{owners[0]}={text}'?" if owners else ""
        return f"{text}: expected KEY=VALUE or GROUP=MEMBER, such as seed=1 or algo=ppo.{hint}"
    reason = str(problem).splitlines()[0].rstrip(".")
    return (
        f"{text}: this is no override ({reason}). A value with anything but letters of ASCII, digits and "
        "/ - _ + . % * @ ? | needs quotes of its own inside the shell's: 'key=\"a value\"'."
    )


def _explain_sweep(override: Override, composition: Composition) -> str | None:
    if not override.is_sweep_override() or composition.multirun:
        return None
    key = override.get_key_element()
    values = cast(str, override.input_line).split("=", 1)[1]
    return f"{key}: got several values, {values}; add -m for one run each, or write {key}=[{values}] for one list"


def _explain_nothing(swept: list[Override], composition: Composition) -> str | None:
    """Return which of the sweeps is over nothing, if one is."""
    for override in swept:
        if override.is_discrete_sweep() and not any(True for _ in override.sweep_iterator()):
            members = composition.groups.get(override.key_or_group)
            listing = "" if members is None else f" Members of {override.key_or_group}: {', '.join(members)}."
            return f"{override.input_line}: this is no value at all, expected one or more.{listing}"
    return None


def _explain_member(override: Override, composition: Composition) -> str | None:
    """Return what is wrong with the group or the member that `override` names, if anything is."""
    group, groups = override.key_or_group, composition.groups
    typed = cast(str, override.input_line)
    if group.partition(".")[0] == "slurm":
        return f"{typed}: this is for rlx submit, as --cluster NAME, or as options such as --partition and --time"
    if group not in groups:
        if "/" not in group and not override.package:
            return None
        return f"{typed}: there is no group '{group}'.{did_you_mean(group, groups)} Groups: {_public(groups)}."
    if override.is_delete():
        return None
    members = groups[group]
    if override.is_sweep_override():
        wanted: list[Any] = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    else:
        value: Any = override.value()
        wanted = cast("list[Any]", value) if isinstance(value, list) else [value]
    known = ", ".join(members)
    for member in wanted:
        if member is None:
            return f"{typed}: got null, expected a member of the group '{group}': {known}"
        name = str(member).strip("'\"")
        if name not in members:
            hint = did_you_mean(name, members)
            if f"{group}={name}" in _EXTRAS:
                hint = f" It comes with: pip install '{_EXTRAS[f'{group}={name}']}'."
            return f"{typed}: there is no '{name}' in the group '{group}'.{hint} Members of {group}: {known}."
    return None


def _explain_keys(overrides: list[Override], suspects: list[Override], composition: Composition) -> str | None:
    """Return what is wrong with the first of `suspects` whose key is, in the configuration of the chosen members."""
    named = [override for override in overrides if override.key_or_group in composition.groups]
    config = composition.compose([cast(str, one.input_line) for one in named if not one.is_sweep_override()])
    if config is None:
        return None
    messages = (_explain_key(override, config, composition) for override in suspects if override not in named)
    return next((message for message in messages if message), None)


def _explain_key(override: Override, config: DictConfig, composition: Composition) -> str | None:
    """Return what is wrong with the key that `override` names, if anything is."""
    key = override.key_or_group
    exists = _exists(config, key)
    if override.is_delete():
        return (
            None if exists else f"{override.input_line}: there is no such key to take away.{_near_key(key, '', config)}"
        )
    if override.is_add():
        value: Any = override.value()
        if exists and not isinstance(value, (dict, list)):
            return f"{override.input_line}: the key exists already; write it without the +"
        return None
    typed: Any = override.value()
    if _has_null_key(typed):
        return f"{override.input_line}: a name in a mapping is null, expected text or a number"
    current = OmegaConf.select(config, key, throw_on_missing=False) if exists else None
    if isinstance(current, DictConfig) and isinstance(typed, list):
        names = ", ".join(f"{name}: ..." for name in current) or "NAME: VALUE"
        return f"{override.input_line}: got a list, expected a mapping as in {key}={{{names}}}"
    if isinstance(current, ListConfig) and isinstance(typed, dict):
        shown = str(OmegaConf.to_container(current)).replace("'", "")
        return f"{override.input_line}: got a mapping, expected a value or a list as in {key}={shown}"
    if override.is_force_add() or exists:
        return None
    parent = key.rpartition(".")[0]
    while parent and not _is_mapping(config, parent):
        parent = parent.rpartition(".")[0]
    hint = _near_key(key, parent, config)
    if not parent:
        group = nearest(key, composition.groups)
        if not hint and group is not None:
            hint = f" Did you mean the group '{group}'?"
        listing = f" Groups: {_public(composition.groups)}. Keys: {_keys(config)}."
    else:
        listing = f" Keys of {parent}: {_keys(OmegaConf.select(config, parent))}."
        if "." in parent:  # a mapping within a group, such as env.kwargs, may take names of its own
            listing += f" To add one: +{override.input_line}"
    return f"{override.input_line}: there is no key '{key}'.{hint}{listing}"


def _has_null_key(value: Any) -> bool:
    """Return whether a mapping in what was typed has null for a name."""
    if isinstance(value, dict):
        named = cast("dict[Any, Any]", value)
        return None in named or any(_has_null_key(part) for part in named.values())
    return isinstance(value, list) and any(_has_null_key(part) for part in cast("list[Any]", value))


def _near_key(key: str, parent: str, config: DictConfig) -> str:
    """Return the hint at the key most like `key`: the same last name elsewhere, a like one beside it, a like one."""
    dotted = [name for name in _flatten(config, hydra=key.startswith("hydra")) if name != parent]
    holder, _, last = key.rpartition(".")
    for name in dotted:
        if name.rpartition(".")[2] == last:
            return f" Did you mean '{name}'?"
    if holder == parent:  # the way to it is right, so that only its last name can be
        by_last = {name.rpartition(".")[2]: name for name in reversed(dotted)}
        beside = [name.rpartition(".")[2] for name in dotted if name.rpartition(".")[0] == parent]
        match = nearest(last, beside) or nearest(last, by_last, _ELSEWHERE)
        return f" Did you mean '{by_last[match]}'?" if match is not None else ""
    match = nearest(key, dotted, _ELSEWHERE if holder else _BESIDE)
    return f" Did you mean '{match}'?" if match is not None else ""


def _flatten(node: Any, prefix: str = "", *, hydra: bool = False) -> Iterator[str]:
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():  # pyright: ignore[reportPrivateUsage]
        return
    for key, value in node.items_ex(resolve=False):
        name = f"{prefix}{key}"
        if str(key).startswith("_") or (name == "hydra" and not hydra):
            continue
        yield name
        yield from _flatten(value, f"{name}.")


def _exists(config: DictConfig, key: str) -> bool:
    """Return whether `key` is in `config`, be its value null or missing."""
    node: Any = config
    for part in key.split("."):
        if isinstance(node, ListConfig):
            return part.isdigit() and int(part) < len(node)
        if not isinstance(node, DictConfig) or part not in dict(node.items_ex(resolve=False)):
            return False
        node = node._get_node(part)  # pyright: ignore[reportPrivateUsage]
    return True


def _is_mapping(config: DictConfig, key: str) -> bool:
    return _exists(config, key) and isinstance(OmegaConf.select(config, key), DictConfig)


def _keys(node: Any) -> str:
    return ", ".join(str(key) for key in node if not str(key).startswith("_") and key != "hydra") or "none"


def _public(groups: dict[str, list[str]]) -> str:
    return ", ".join(public_groups(groups))


def public_groups(groups: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the groups that are `rlx train`'s own: neither Hydra's nor those of other commands."""
    return {group: members for group, members in groups.items() if group.split("/")[0] not in ("hydra", *_OF_OTHERS)}


def _first_lines(error: Exception, composition: Composition) -> str:
    """Return an error's own words, without what they list over many lines."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        members = composition.groups.get(group, [])
        where = str(error).split(":")[0] if str(error).startswith("In ") else "a configuration"
        hint = did_you_mean(name, members)
        return f"{where[:1].lower()}{where[1:]}: there is no '{error.missing_cfg_file}'.{hint}"
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        told = str(cause.msg or cause).splitlines()[0]
        words = [f"{cause.full_key}: {told}" if cause.full_key else told]
    return words[0] if words else type(error).__name__

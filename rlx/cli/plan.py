"""From what was typed after `rlx tune` to the plan of a study, every part of it checked before anything starts."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from rlx.cli.explain import Composition, load
from rlx.cli.members import config_directory, see_own_code
from rlx.cli.train import choices_of, resolve, without_hydra
from rlx.errors import ConfigError
from rlx.run.build import check_fit, maker
from rlx.run.directory import default_run_directory
from rlx.tools.recipe import recipe
from rlx.tools.runs import CONF
from rlx.tools.search_space import Parameter, read_space
from rlx.tools.study import Plan
from rlx.validate import Range, validate

RECIPE = "best"
_QUIET = "logger.console=false"
_REFUSED = {
    "run_dir": "each trial has a directory of its own; the study's is study_dir=PATH",
    "resume": "a study goes on where it was: rlx tune STUDY",
}


@dataclass(frozen=True)
class Words:
    """What was typed, told apart.

    Attributes:
        overrides: for `rlx train`.
        tuning: `tune=NAME` and `tune.KEY=VALUE`.
        study_dir: where the study is or shall be; None for the usual place.
        study: one that is there, named by its path, and nothing else was; None where there is none such.
    """

    overrides: list[str]
    tuning: list[str]
    study_dir: Path | None
    study: Path | None


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        config: without what is Hydra's own.
        choices: the member of each group.
    """

    config: DictConfig
    choices: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """Return the values as they stand, interpolations as such."""
        return cast("dict[str, Any]", OmegaConf.to_container(self.config))


def read_words(words: Sequence[str]) -> Words:
    """Tell apart what was typed.

    Raises:
        ConfigError: a word that is neither an override nor a study.
    """
    overrides: list[str] = []
    tuning: list[str] = []
    named: list[Path] = []
    studies: list[Path] = []
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if word.startswith("-"):
            raise ConfigError(f"{word}: there is no such flag; see rlx tune --help")
        if "=" not in word and not word.startswith("~"):
            if not os.path.isdir(word):
                raise ConfigError(
                    f"{word}: expected GROUP=MEMBER, KEY=VALUE, or the directory of a study, which is not there"
                )
            studies.append(Path(word))
        elif key == "study_dir":
            named.append(Path(word.partition("=")[2].strip("'\"")))
        elif key in _REFUSED:
            raise ConfigError(f"{word}: {_REFUSED[key]}")
        else:
            _check_single(word)
            (tuning if key.partition(".")[0] == "tune" else overrides).append(word)
    if len(named) > 1 or len(studies) > 1:
        told = " and ".join(f"'{path}'" for path in (studies if len(studies) > 1 else named))
        raise ConfigError(f"got two studies, {told}; expected one")
    if studies and len(words) > 1:
        raise ConfigError(f"{studies[0]}: a study that is there goes alone: what was typed for it stands in it")
    return Words(overrides, tuning, named[0] if named else None, studies[0] if studies else None)


def _check_single(word: str) -> None:
    with suppress(OverrideParseException):  # composing the configuration tells of it
        one = OverridesParser.create().parse_override(word)
        if one.is_sweep_override():
            key, _, values = word.partition("=")
            raise ConfigError(f"{key}: got several values, {values}; those to choose from stand in a search space")


def compose(overrides: Sequence[str], config_dir: Path | str | None, *more: Path) -> Composed:
    """Compose the configuration that overrides describe.

    Args:
        overrides: as `rlx train` takes them.
        config_dir: the user's own directory, or None.
        more: further directories, before that.

    Raises:
        ConfigError: they make none.
    """
    own = [] if config_dir is None else [str(config_dir)]
    directories = [*map(str, more), *own, str(config_directory())]
    composition = Composition(overrides=overrides, config_name="config", directories=directories)
    config = load(composition)
    return Composed(without_hydra(config), choices_of(config.hydra))


def tuning(
    *,
    evaluations: Annotated[int, Range(1)],
    last: Annotated[int, Range(1)],
    most_failures: Annotated[int, Range(1)],
    sampler: dict[str, Any],
    pruner: dict[str, Any] | None,
    space: dict[str, Any],
) -> dict[str, Any]:
    """Return the keys of conf/tune/; the signature is their schema.

    Args:
        evaluations: of each run.
        last: of them, whose mean return a trial is worth.
        most_failures: one after the other, until no more trials are begun.
        sampler: `_target_` and keywords of one of Optuna's samplers.
        pruner: likewise; None for none.
        space: what is drawn for each key.
    """
    return dict(locals())


def make_plan(
    words: Words, config_dir: Path | None, *, seeds: int, jobs: int, storage: str | None
) -> tuple[Plan, Path, list[str]]:
    """Return the plan of a study, the directory that it usually has, and what to tell.

    Args:
        words: what was typed.
        config_dir: the user's own configuration directory.
        seeds: runs of each trial.
        jobs: trials at once.
        storage: URL of a database; None for a file.

    Raises:
        ConfigError: something of it is wrong.
    """
    base = compose(words.overrides, config_dir)
    if "algo" not in base.choices or "env" not in base.choices:
        raise ConfigError("algo and env: expected a member of each")
    name = next((word.partition("=")[2] for word in words.tuning if word.startswith("tune=")), None)
    tune = (
        list(words.tuning)
        if name is not None
        else [f"tune={_space_of(base.choices['algo'], config_dir)}", *words.tuning]
    )
    values = validate(tuning, resolve(compose([*words.overrides, *tune], config_dir).config)["tune"], "tune")
    maker("tune.sampler", values["sampler"], given=("seed",))
    if values["pruner"] is not None:
        maker("tune.pruner", values["pruner"], given=())
    config = resolve(base.config)
    space = {key: entry for key, entry in cast("dict[str, Any]", values["space"]).items() if entry is not None}
    pinned = _pinned(space, words.overrides, base.choices)
    # Every entry is read: what is no entry, such as a dotted key typed as tune.space.algo.gamma, is not passed over.
    parameters = [one for one in read_space(space) if one.key not in pinned]
    space = {key: entry for key, entry in space.items() if key not in pinned}
    see_own_code()
    _check(config)
    _check_space(parameters, words.overrides, config_dir)
    total, every = int(config["total_steps"]), int(config["evaluation"]["every"])
    if not every and any(word.startswith("evaluation.every=") for word in words.overrides):
        raise ConfigError(f"evaluation.every: got {every}, expected steps: a trial is worth what its evaluations say")
    own = [_QUIET, *_fitting_workers(config["batcher"], words.overrides, jobs * seeds)]
    if every:
        evaluations = max(1, total // every)
    else:
        evaluations, every = min(values["evaluations"], total), max(1, total // values["evaluations"])
        own.append(f"evaluation.every={every}")
    shown = base.choices["env"] if base.choices["env"] != "gym" else str(config["env"]["id"])
    title, usual = f"{base.choices['algo']} on {shown}", default_run_directory(shown, base.choices["algo"]).parent
    drawn = {one.key: one.drawn_for(base.choices.get(one.key) or _at(config, one.key)) for one in parameters}
    plan = Plan(
        title=title,
        overrides=words.overrides,
        own=own,
        config_dir=None if config_dir is None else str(config_dir.absolute()),
        space=space,
        sampler=values["sampler"],
        pruner=values["pruner"],
        seed=int(config["seed"]),
        seeds=seeds,
        every=every,
        evaluations=evaluations,
        last=values["last"],
        most_failures=values["most_failures"],
        defaults={} if None in drawn.values() else {key: found[0] for key, found in drawn.items() if found is not None},
        storage=storage,
    )
    notes = [f"not tuned, since it was given: {key}" for key in pinned]
    return plan, usual / ("tune" if name is None else f"tune-{name}"), notes


def write_recipe(plan: Plan, drawn: Sequence[str], heading: Sequence[str], directory: Path) -> tuple[Path, list[str]]:
    """Write a trial's configuration as a recipe into the study's `conf/experiment/`.

    Args:
        plan: the study's.
        drawn: the trial's overrides.
        heading: lines of its comment.
        directory: the study's.

    Returns:
        The file, and a line for whatever a recipe cannot say.
    """
    from rlx.run.files import write_text_atomic

    words = [word for word in plan.own if word != _QUIET] + [*plan.overrides, *drawn]
    whole = compose(words, plan.config_dir)
    usual = compose([f"{group}={whole.choices[group]}" for group in ("algo", "env")], plan.config_dir).choices
    chosen = {group: name for group, name in whole.choices.items() if group != "experiment"}
    choices = {group: name for group, name in chosen.items() if group in ("algo", "env") or usual.get(group) != name}
    members = compose([f"{group}={name}" for group, name in choices.items()], plan.config_dir)
    path = directory / CONF / "experiment" / f"{RECIPE}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, recipe(whole.plain(), members.plain(), choices, heading))
    again = compose([f"experiment={RECIPE}"], plan.config_dir, directory / CONF)
    wrong = [key for key, value in whole.plain().items() if again.plain().get(key) != value]
    return path, [
        f"the recipe does not give the trial's '{key}': a key was taken away, which a recipe cannot" for key in wrong
    ]


def _space_of(algo: str, config_dir: Path | None) -> str:
    """Return the search space of an algorithm's name."""
    directories = [config_directory(), *([] if config_dir is None else [config_dir])]
    names = sorted({path.stem for directory in directories for path in (directory / "tune").glob("*.yaml")})
    if algo not in names:
        raise ConfigError(
            f"tune: no search space is called '{algo}', as the algorithm is; there are: {', '.join(names)}; give "
            "tune=NAME, or write your own into tune/ of a --config-dir"
        )
    return algo


def _pinned(space: Mapping[str, Any], overrides: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    """Return the keys of a space that were typed, or are a part of what was; a group's member leaves its keys open."""
    typed = [OverridesParser.create().parse_override(word).key_or_group for word in overrides]
    within = tuple(f"{one}." for one in typed if one not in groups)
    return [key for key in space if (bare := key.lstrip("+")) in typed or bare.startswith(within)]


def _check_space(parameters: Sequence[Parameter], overrides: Sequence[str], config_dir: Path | None) -> None:
    """Check that every key is one, and that the configuration takes both ends or all choices of each.

    Raises:
        ConfigError: names the key.
    """
    ends = [one.ends() for one in parameters]
    for corner in range(max(map(len, ends))):
        drawn = [one.override(all_of[corner % len(all_of)]) for one, all_of in zip(parameters, ends, strict=True)]
        try:
            _check(resolve(compose([*overrides, *drawn], config_dir).config))
        except ConfigError as error:
            key = str(error).partition(":")[0]
            if any(key == one.key or key.startswith((f"{one.key}.", f"{one.key}=")) for one in parameters):
                raise ConfigError(f"tune.space: {error}") from None
            raise


def _check(config: Mapping[str, Any]) -> None:
    """Check a configuration as `rlx train` would, up to an agent that does not fit the environment."""
    from rlx.run.compute import find_device
    from rlx.run.cores import find_cores, fitted
    from rlx.run.launch import read_config

    parts = read_config(fitted(config, find_cores()))
    find_device(parts.top["device"])
    check_fit(parts.make_env, parts.make_agent, int(config["batcher"].get("envs_per_worker", 1)))


def _fitting_workers(batcher: Mapping[str, Any], overrides: Sequence[str], runs: int) -> list[str]:
    """Return overrides that give each of several runs so many workers as it has cores, with as many environments."""
    workers, each = batcher.get("num_workers"), batcher.get("envs_per_worker")
    typed = any(word.partition("=")[0] == "batcher.num_workers" for word in overrides)
    if typed or batcher.get("workers") != "process" or not isinstance(workers, int) or not isinstance(each, int):
        return []
    from rlx.run.cores import find_cores

    fitting = min(workers, find_cores().shared_by(runs).count)
    while workers * each % fitting:
        fitting -= 1
    if fitting == workers:
        return []
    return [f"batcher.num_workers={fitting}", f"batcher.envs_per_worker={workers * each // fitting}"]


def _at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.lstrip("+").split("."):
        if node is None:  # the space adds what is below
            return None
        node = cast("Mapping[str, Any]", node).get(part) if isinstance(node, Mapping) else node[int(part)]
    return node

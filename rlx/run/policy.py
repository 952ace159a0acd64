"""The policy of a checkpoint, rebuilt: what evaluation, export and recording begin with."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast

from torch import nn

from rlx.agent.agent import Agent, AgentMaker
from rlx.batcher.batcher import Batcher
from rlx.batcher.worker_options import EnvMaker
from rlx.data import EnvSpecs
from rlx.errors import CheckpointError, ConfigError, DeviceError
from rlx.run.build import find_target, maker
from rlx.run.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from rlx.run.compute import find_device
from rlx.run.files import reason_of, yaml_files
from rlx.run.samplers import read_samplers, sampler_targets
from rlx.validate import validate

_log = logging.getLogger(__name__)

_WATCHED = ("check_finite", "step_timeout")
_TRIES = 9
"""More, to read a checkpoint of a run that writes others meanwhile, and removes or replaces those before."""


@dataclass(frozen=True)
class Policy:
    """A trained agent, and what it takes to play with it.

    Attributes:
        path: the checkpoint.
        env: the group `env` of its configuration.
        agent_target: dotted name of what made the agent.
        env_steps: environment steps that it was trained for.
        specs: what it was trained on.
        make_env: makes its environments.
        make_agent: makes agents that its weights fit.
        agent: the agent with its weights.
        samplers: what is drawn for each episode, `agent_info` and `env_info`, where the configuration says so.
        watched: how its environments were watched: the batcher's `check_finite` and `step_timeout`, likewise.
    """

    path: Path
    env: Mapping[str, Any]
    agent_target: str
    env_steps: int
    specs: EnvSpecs
    make_env: EnvMaker
    make_agent: AgentMaker
    agent: Agent
    samplers: dict[str, Any]
    watched: dict[str, Any]

    @property
    def env_name(self) -> str:
        """Return what messages call the environment: its id, where it has one."""
        return str(self.env.get("id") or self.env.get("game") or "the environment")

    def check_specs(self, found: EnvSpecs) -> None:
        """Refuse environments that are not like those that it was trained on.

        Raises:
            CheckpointError: they are not; the message has both specs.
        """
        if found != self.specs:
            raise CheckpointError(
                f"'{self.path}' belongs to another environment: it was trained on {self.specs}, "
                f"but {self.env_name} is {found}"
            )


def load_policy(
    path: Path | str,
    *,
    trust: bool = False,
    config_dir: Path | str | None = None,
    max_episode_steps: int | None = None,
) -> Policy:
    """Rebuild the policy of a run or of one of its checkpoints; the checkpoint carries what that takes.

    Args:
        path: a run directory (its newest whole checkpoint) or a checkpoint.
        trust: import whatever code the checkpoint names.
        config_dir: a user's configuration directory, whose names are trusted.
        max_episode_steps: steps after which its environments end an episode; None for what it was trained with.

    Raises:
        CheckpointError: it is missing, damaged, or holds no agent; or it names code that is not trusted.
        ConfigError: there is no directory `config_dir`, or the environment takes no `max_episode_steps`.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir: there is no directory '{config_dir}'")
    source, checkpoint = _read(path)
    env, agent = checkpoint.config.get("env"), checkpoint.config.get("agent")
    if not isinstance(env, Mapping) or not isinstance(agent, Mapping) or "agent" not in checkpoint.state:
        raise CheckpointError(f"'{source}' holds no agent and environment to evaluate")
    env, agent = _on_what_is_here(cast("Mapping[str, Any]", env)), cast("Mapping[str, Any]", agent)
    batcher = checkpoint.config.get("batcher")
    if not trust:
        own = None if config_dir is None else Path(config_dir)
        check_trust(source, env, agent, own, also=sampler_targets(batcher))
    if max_episode_steps is not None:
        env = limited(env, max_episode_steps)
    try:
        make_env, make_agent = maker("env", env), maker("agent", agent)
        samplers, watched = read_samplers(batcher), watched_by(batcher)
    except ConfigError as error:
        raise CheckpointError(f"'{source}' cannot be rebuilt: {error}") from error
    try:
        specs = EnvSpecs.from_dict(checkpoint.meta["specs"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"'{source}' does not say what its agent was trained on: meta['specs']: {error!r}"
        ) from error
    trained: Agent = make_agent(specs)
    load_weights(trained, checkpoint.state["agent"], source)
    return Policy(
        path=source,
        env=env,
        agent_target=str(agent.get("_target_")),
        env_steps=checkpoint.meta["env_steps"],
        specs=specs,
        make_env=make_env,
        make_agent=make_agent,
        agent=trained,
        samplers=samplers,
        watched=watched,
    )


def _on_what_is_here(env: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the group `env` of environments that are made on the CPU, where they would need a GPU that is not here."""
    device = env.get("device")
    if not isinstance(device, str) or not device.startswith("cuda"):
        return env
    try:
        find_device(device)
    except DeviceError:
        _log.warning("env.device=%s is not here: the environments are made on the CPU", device)
        return {**env, "device": "cpu"}
    return env


def watched_by(batcher: object) -> dict[str, Any]:
    """Return what of a batcher's configuration also holds for the environments of an evaluation.

    Raises:
        ConfigError: it is not what a batcher takes.
    """
    given: Mapping[str, Any] = cast("Mapping[str, Any]", batcher) if isinstance(batcher, Mapping) else {}
    values = {key: given[key] for key in _WATCHED if key in given}
    return validate(Batcher, values, "batcher", given=signature(Batcher).parameters.keys() - set(_WATCHED))


def _read(path: Path | str) -> tuple[Path, Checkpoint]:
    """Find a checkpoint and load it; again, as long as something else is wrong with it each time.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    said = set[str]()
    while True:
        try:
            source = find_checkpoint(path)
            return source, load_checkpoint(source)
        except CheckpointError as error:
            if str(error) in said or len(said) == _TRIES:
                raise
            said.add(str(error))


def limited(env: Mapping[str, Any], max_episode_steps: int) -> Mapping[str, Any]:
    """Return the group `env` of environments that end an episode after so many steps.

    Raises:
        ConfigError: they take no such number.
    """
    limit = {"max_episode_steps": max_episode_steps}
    if env.get("_target_") == "rlx.env.make_mixed":
        return {**env, "members": [{**member, **limit} for member in cast("list[Mapping[str, Any]]", env["members"])]}
    if "max_episode_steps" not in signature(find_target("env", env)).parameters:
        raise ConfigError(f"--max-episode-steps: {env.get('_target_')} takes no env.max_episode_steps")
    return {**env, **limit}


def load_weights(agent: nn.Module, weights: Mapping[str, Any], source: Path) -> None:
    """Load a checkpoint's weights into an agent.

    Raises:
        CheckpointError: names or shapes differ; names the first that does, and both shapes. Or a weight is not finite.
    """
    own = agent.state_dict()
    for name in [*own, *(name for name in weights if name not in own)]:
        here = list(own[name].shape) if name in own else "missing"
        there = list(weights[name].shape) if name in weights else "missing"
        if here != there:
            raise CheckpointError(f"'{source}': agent.{name} is {there} in the checkpoint and {here} in the agent")
    agent.load_state_dict(dict(weights))
    for name, value in agent.named_parameters():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"'{source}': agent.{name} has NaN or infinity in it, and what it plays means nothing"
            )


def check_trust(
    source: Path,
    env: Mapping[str, Any],
    agent: Mapping[str, Any],
    config_dir: Path | None,
    also: Collection[str] = (),
) -> None:
    """Refuse a checkpoint that names code which is neither rlx's own, nor Gymnasium's, nor in the user's configuration.

    A checkpoint's configuration is data: it may come from anywhere, and what it names would be imported.

    Raises:
        CheckpointError: it names such code; says which.
        ConfigError: a file of `config_dir` cannot be read.
    """
    from rlx.env.registry import user_modules

    named = {str(group.get("_target_", "")) for group in (env, agent)} | set(also)
    modules: set[str] = set()
    for member in (env, *cast("list[Mapping[str, Any]]", env.get("members") or [])):
        wrappers: list[str] = []
        for entry in cast("list[Any]", member.get("wrappers") or []):
            wrappers.extend([entry] if isinstance(entry, str) else map(str, entry))
        modules.update(user_modules(str(member.get("id", "")), wrappers))
    foreign = {name for name in named if not name.startswith("rlx.")} | modules
    if foreign and config_dir is not None:
        for file in yaml_files(config_dir):
            try:
                text = file.read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                raise ConfigError(f"--config-dir: '{file}' cannot be read: {reason_of(error)}") from error
            foreign -= set(re.findall(r"[\w.]+", text))  # whole dotted names; `package.module:Id-v0` names its module
    if foreign:
        advice = "Give --config-dir with the configuration that names it, or --trust to import it."
        if config_dir is not None:
            advice = (
                f"No YAML file in '{config_dir}' has that name whole: write it into one, or give --trust to import it."
            )
        raise CheckpointError(f"'{source}' names code that is not rlx's: {', '.join(sorted(foreign))}. {advice}")

"""`rlx export`: the acting policy of a run or checkpoint as a file that runs without rlx, checked against it first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlx import __version__
from rlx.agent import MixtureAgent
from rlx.agent.agent import Agent, AgentMaker
from rlx.data import EnvSpecs
from rlx.errors import AgentError, ConfigError, RlxError, first_cause
from rlx.run.agent_info import check_asked, chosen_member, read_agent_info, try_out
from rlx.run.files import check_output, json_ready, writing_output
from rlx.run.policy import Policy, load_policy
from rlx.tools.export_check import largest_difference, spaces_of
from rlx.tools.export_formats import Format, need, opened, to_bytes
from rlx.tools.exported import ExportedPolicy


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        metadata: what the file says of itself: `env_id`, `env_steps`, `observations`, `inputs`, `outputs`, ...
        num_checked: observations on which the file was compared with rlx.
        difference: the largest one between an action of the file's and rlx's.
    """

    path: Path
    metadata: dict[str, Any]
    num_checked: int
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {**vars(self), "path": str(self.path)}


def export_policy(
    path: Path | str,
    output: Path | str,
    *,
    format: Format = "onnx",
    agent_info: Sequence[str] = (),
    trust: bool = False,
    config_dir: Path | str | None = None,
) -> Exported:
    """Write the policy of a run or checkpoint as a file, once it has acted as rlx does in the real environment.

    Args:
        path: a run directory (its newest whole checkpoint) or a checkpoint.
        output: the file; one that is there is replaced, whole or not at all.
        format: `onnx` or `torchscript`.
        agent_info: `KEY=VALUE`: which of its policies the file is to be, where the agent is several.
        trust: import whatever code the checkpoint names.
        config_dir: a user's configuration directory, whose names are trusted.

    Raises:
        CheckpointError: it is missing, damaged, does not fit the environment, or names code that is not trusted.
        AgentError: the agent cannot be exported, or the file would not act as it does.
        ConfigError: `agent_info` is wrong or missing.
        MissingPackageError: the format needs a package that is not installed.
        UserError: the output is nowhere where a file can be written.
        RlxError: it could not be written; what was there before still is.
    """
    output = check_output(Path(output), "--output")
    need(format)
    policy = load_policy(path, trust=trust, config_dir=config_dir)
    given = read_agent_info(agent_info)
    info = dict(given)
    agent, make_agent = _one_policy(policy, info)
    reward_scale, clip_reward = _reward_of(policy, agent)
    try:
        module = ExportedPolicy(
            agent,
            policy.specs,
            spaces_of(policy),
            agent_info=info,
            reward_scale=reward_scale,
            clip_reward=clip_reward,
        )
        metadata = _metadata(policy, given, module)
        check_asked(info, module.asked)
        content = to_bytes(format, module, metadata)
    except RlxError:
        raise
    except Exception as error:
        what = f"'{policy.path}': {policy.agent_target} cannot be exported to {format}"
        raise AgentError(f"{what}: {first_cause(error)}") from error
    num_checked, difference = largest_difference(opened(format, content), policy, make_agent, module)
    with writing_output(output) as file:
        file.write(content)
    return Exported(output, metadata, num_checked, difference)


def _metadata(policy: Policy, info: Mapping[str, Tensor], module: ExportedPolicy) -> dict[str, Any]:
    with torch.no_grad():
        outputs = module(module.example)
    return {
        "rlx_version": __version__,
        "env_id": policy.env_name,
        "env": json_ready(policy.env),
        "env_steps": policy.env_steps,
        "agent": policy.agent_target,
        "agent_info": {key: value.tolist() for key, value in info.items()},
        "observations": list(policy.specs.observation),
        "inputs": {key: _described(value) for key, value in module.example.items()},
        "outputs": {key: _described(value) for key, value in outputs.items()},
    }


def _described(value: Tensor) -> str:
    """Return dtype and shape as one reads them: `float32 [B, 4]`."""
    return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(['B', *map(str, value.shape[1:])])}]"


def _one_policy(policy: Policy, info: dict[str, Tensor]) -> tuple[Agent, AgentMaker]:
    """Return the agent that the file is to be, and what makes such agents; of a mixture that is one member.

    Raises:
        ConfigError: which one is not said, or there is no such one; or what the run draws for it is not said.
    """
    agent, make_agent = policy.agent, policy.make_agent
    sampler = policy.samplers.get("agent_info")
    drawn = {} if sampler is None else dict(sampler(0, torch.Generator()))
    if isinstance(agent, MixtureAgent):
        name = cast("str", chosen_member(agent, info, needed=True))
        info.pop("policy")
        drawn.pop("policy", None)

        def make_member(specs: EnvSpecs) -> Agent:
            return cast("Agent", cast("MixtureAgent", policy.make_agent(specs)).members[name])

        agent, make_agent = cast("Agent", agent.members[name]), make_member
    asked = set[str]()
    if drawn:
        try_out(agent, policy, drawn | info, info, asked, deterministic=True)
    missing = [key for key in drawn if key in asked and key not in info]
    if missing:
        raise ConfigError(
            f"--agent-info: the run draws {', '.join(missing)} for each episode, and the file is one policy; "
            f"expected --agent-info {missing[0]}=VALUE"
        )
    return agent, make_agent


def _reward_of(policy: Policy, agent: Agent) -> tuple[float, bool]:
    """Return what rewards are multiplied with before an agent sees them, and whether they are clipped before that.

    Raises:
        AgentError: the agent sees rewards, and the environments of a mixed batch differ in that.
    """
    members = cast("list[Mapping[str, Any]]", policy.env.get("members") or [policy.env])
    found = {(float(env.get("reward_scale", 1.0)), bool(env.get("clip_reward", False))) for env in members}
    if len(found) > 1 and "prev_reward" in agent.inputs:
        raise AgentError(
            f"'{policy.path}' cannot be exported: its agent sees rewards, and the environments' reward_scale differ"
        )
    return next(iter(found))

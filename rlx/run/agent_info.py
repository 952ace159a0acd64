"""`--agent-info KEY=VALUE`: which policy it is, where the agent is several."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlx.agent import MixtureAgent
from rlx.agent.agent import Agent
from rlx.batcher.probe import probe_agent
from rlx.batcher.sampler import Sampler
from rlx.data import DictTensor
from rlx.errors import ConfigError, RlxError, did_you_mean, first_cause
from rlx.run.policy import Policy


class Asked(DictTensor):
    """An `agent_info` that notes which fields it is asked for.

    Attributes:
        asked: their names.
    """

    __slots__ = ("asked",)

    asked: set[str]

    @classmethod
    def noting(cls, fields: dict[str, Tensor], batch_size: int, asked: set[str]) -> "Asked":
        """Return one of these fields, that adds to `asked`."""
        self = cls.trusted(fields, batch_size)
        self.asked = asked
        return self

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            self.asked.add(key)
            return super().__getitem__(key)
        rows = cast("DictTensor", super().__getitem__(key))
        return Asked.noting(rows.to_dict(), rows.batch_size, self.asked)


def read_agent_info(given: Sequence[str]) -> dict[str, Tensor]:
    """Return `agent_info` as it is typed, without the batch dimension.

    Raises:
        ConfigError: something is no `KEY=VALUE` with a number, true, false, or a list of these; or not to be given.
    """
    found: dict[str, Tensor] = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            if not key or not equals:
                raise ValueError
            found[key] = torch.tensor(json.loads(value))
        except (ValueError, TypeError, RuntimeError):
            raise ConfigError(f"--agent-info: got {text!r}, expected KEY=VALUE, such as skill=3") from None
    if "deterministic" in found:
        raise ConfigError(
            "--agent-info deterministic: the policy's mode is taken anyway, but for rlx eval --stochastic; "
            "expected another field"
        )
    return found


def check_asked(info: Mapping[str, Tensor], asked: set[str]) -> None:
    """Refuse an `agent_info` that the agent does not look at.

    Raises:
        ConfigError: there is one; says what it looks at.
    """
    for key in info:
        if key not in asked:
            known = sorted(asked - {"deterministic"})
            looks = f"it looks at {', '.join(known)}" if known else "it looks at none"
            raise ConfigError(f"--agent-info: the agent does not look at '{key}'; {looks}.{did_you_mean(key, known)}")


def chosen_member(agent: MixtureAgent, info: Mapping[str, Tensor], *, needed: bool) -> str | None:
    """Return the name of the member that `policy` says; None where nothing does.

    Args:
        agent: the population.
        info: as `read_agent_info` returns it.
        needed: whether something has to.

    Raises:
        ConfigError: there is no such member, or none is said.
    """
    names, chosen = list(agent.members), info.get("policy")
    if chosen is None and not needed:
        return None
    if chosen is None or chosen.dim() or chosen.dtype is not torch.int64 or int(chosen) not in range(len(names)):
        got = "no value given" if chosen is None else f"got {json.dumps(chosen.tolist())}"
        numbers = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise ConfigError(f"--agent-info policy: {got}, expected which of its members it is: {numbers}")
    return names[int(chosen)]


def settled(policy: Policy, given: Sequence[str], *, deterministic: bool) -> Policy:
    """Return the policy that plays by what is typed, in the place of what the run draws.

    Args:
        policy: what was trained.
        given: `KEY=VALUE` each: the same for all episodes.
        deterministic: whether it plays in its mode: what it looks at may depend on that.

    Raises:
        ConfigError: no `KEY=VALUE`, a field that the agent does not look at, or a value that it cannot act with.
    """
    fields, sampler = read_agent_info(given), policy.samplers.get("agent_info")
    agents, asked = [policy.agent], set[str]()
    if isinstance(policy.agent, MixtureAgent):
        asked.add("policy")
        name = chosen_member(policy.agent, fields, needed=False)
        agents = [agent for key, agent in policy.agent.router.agents.items() if name in (None, key)]
    if fields:
        drawn = {} if sampler is None else dict(sampler(0, torch.Generator()))
        for agent in agents:
            try_out(agent, policy, drawn | fields, fields, asked, deterministic=deterministic)
        if deterministic and not fields.keys() <= asked:
            drawing = set[str]()
            for agent in agents:
                try_out(agent, policy, drawn | fields, fields, drawing, deterministic=False)
            if vain := sorted(fields.keys() & (drawing - asked)):
                raise ConfigError(f"--agent-info: the agent looks at '{vain[0]}' only where it draws; add --stochastic")
            asked |= drawing
        check_asked(fields, asked)
    told: Sampler | None = sampler
    if fields:
        told = partial(with_fields, sampler or _nothing, fields)
    return policy if told is sampler else replace(policy, samplers={**policy.samplers, "agent_info": told})


def try_out(
    agent: Agent,
    policy: Policy,
    info: Mapping[str, Tensor],
    typed: Mapping[str, Tensor],
    asked: set[str],
    *,
    deterministic: bool,
) -> None:
    """Act one step by `info`, and add to `asked` what the agent looks at.

    Args:
        agent: the policy's, or a member of it.
        policy: what was trained.
        info: the fields of `agent_info`, without the batch dimension.
        typed: those of them that the user gave, for messages.
        asked: names of fields; changed in place.
        deterministic: whether it plays in its mode.

    Raises:
        ConfigError: it cannot act so.
    """
    size = 2  # of one row, a list would pass for a value a row
    rows = {key: value.expand(size, *value.shape) for key, value in info.items()}
    rows["deterministic"] = torch.full((size,), deterministic)
    try:
        probe_agent(agent, policy.specs, Asked.noting(rows, size, asked))
    except Exception as error:
        values = ", ".join(f"{key}={json.dumps(value.tolist())}" for key, value in typed.items())
        reason = str(error) if isinstance(error, RlxError) else first_cause(error)
        raise ConfigError(f"--agent-info: the agent cannot act with {values}: {reason}") from error


def with_fields(
    sampler: Sampler, fields: Mapping[str, Tensor], row: int, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Return what a sampler draws, with these fields in the place of its own."""
    return {**sampler(row, generator), **fields}


def dealt(agent: nn.Module, sampler: Sampler | None, place: Callable[[int], int]) -> Sampler | None:
    """Return a sampler that deals the members of a population in turn, where nothing else says who plays.

    Args:
        agent: what plays.
        sampler: what draws `agent_info`, None for nothing: returned as it is where `agent` is no population.
        place: of each row, what the members are dealt by.
    """
    if not isinstance(agent, MixtureAgent) or "policy" in (sampler or _nothing)(0, torch.Generator()):
        return sampler
    return partial(_dealt, sampler or _nothing, place, len(agent.members))


def _dealt(
    sampler: Sampler, place: Callable[[int], int], num_policies: int, row: int, generator: torch.Generator
) -> Mapping[str, Tensor]:
    return {**sampler(row, generator), "policy": torch.tensor(place(row) % num_policies)}


def _nothing(row: int, generator: torch.Generator) -> Mapping[str, Tensor]:
    return {}

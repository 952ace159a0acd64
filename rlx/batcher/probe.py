"""What environments and agents show, found by asking them once, and whether it fits together."""

from contextlib import suppress

import torch

from rlx.agent.agent import ActorCriticAgent, Agent
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor
from rlx.errors import AgentError, SpecError, did_you_mean

INPUTS = ("obs", "prev_action", "prev_reward", "is_first")


def probe_agent(agent: Agent, specs: EnvSpecs, agent_info: DictTensor) -> tuple[dict[str, Spec], dict[str, Spec]]:
    """Return the specs of what `act` returns and of `initial_state`, after one step on observations of zeros.

    Args:
        agent: the agent that will act.
        specs: of the environments.
        agent_info: `[B]`, B >= 1.

    Raises:
        AgentError: the agent asks for inputs there are not, or returns wrong keys, shapes or dtypes.
    """
    name, size = type(agent).__name__, agent_info.batch_size
    for wanted in agent.inputs:
        if wanted not in INPUTS:
            raise AgentError(
                f"{name}.inputs: got {wanted!r}, expected some of {', '.join(INPUTS)}.{did_you_mean(wanted, INPUTS)}"
            )
    if not isinstance(agent.history_length, int) or agent.history_length < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise AgentError(f"{name}.history_length: got {agent.history_length!r}, expected a number of steps, 0 or more")
    seen = {key: spec.zeros(size) for key, spec in specs.observation.items()}
    seen |= {f"prev_{key}": spec.zeros(size) for key, spec in specs.action.items()}
    seen |= {"prev_reward": torch.zeros(size), "is_first": torch.ones(size, dtype=torch.bool)}
    keys = [key for key in seen if key.split("/")[0] in agent.inputs]
    with torch.inference_mode():
        state = agent.initial_state(agent_info, size)
        _check(f"{name}.initial_state()", state, size)
        initial = state.specs()
        if agent.history_length:
            state = agent.recall(_no_steps(size, agent.history_length), state, agent_info)
            _check(f"{name}.recall()", state, size)
        returned = agent.forward(DictTensor({key: seen[key] for key in keys}, size), state, agent_info)
        if not isinstance(returned, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
            got = type(returned).__name__  # a DictTensor alone would come apart into its keys
            raise AgentError(f"{name}.forward() must return two things, the outputs and the new state, got one {got}")
        outputs, new_state = returned
        _check(f"{name}.forward(): the outputs", outputs, size)
        _check(f"{name}.forward(): the new state", new_state, size)
        taken = agent.act(outputs, agent_info, torch.Generator().manual_seed(0))
        _check(f"{name}.act()", taken, size)
        if isinstance(agent, ActorCriticAgent):
            _check_numbers(agent, outputs, taken)
    before, after = state.specs(), new_state.specs()
    if before != after:
        maker = "recall()" if agent.history_length else "initial_state()"
        raise AgentError(f"{name}: the state changes its form: {maker} {before}, forward() {after}")
    given = taken.specs()
    for key, spec in specs.action.items():
        if key not in given:
            raise AgentError(f"{name}.act() returned no {key!r}, got {list(given)}.{did_you_mean(key, given)}")
        if (given[key].shape, given[key].dtype) != (spec.shape, spec.dtype):
            raise AgentError(
                f"{name}.act(): {key!r} is {given[key].dtype} of shape [B, {_sizes(given[key])}], "
                f"the environment expects {spec.dtype} of shape [B, {_sizes(spec)}]"
            )
    return given, initial


def agreed_specs(found: list[EnvSpecs]) -> EnvSpecs:
    """Return the specs that the environments of all workers have.

    Raises:
        SpecError: two workers' differ; the message has both.
        AgentError: they show nothing.
    """
    first = found[0]
    for index, other in enumerate(found[1:], start=1):
        if other != first:
            raise SpecError(
                "the environments of one batcher must agree in their specs:\n"
                f"  worker 0: {first}\n  worker {index}: {other}"
            )
    if not first.observation:
        raise AgentError("the environments show nothing: their observation space is empty")
    return first


def _check_numbers(agent: ActorCriticAgent, outputs: DictTensor, taken: DictTensor) -> None:
    """Check what losses multiply with one number a step: of shape `[B, 1]` it would make a product of all with all."""
    name, size = type(agent).__name__, outputs.batch_size
    found = {f"{name}.forward(): 'value'": outputs["value"]} if "value" in outputs else {}
    with suppress(Exception):  # not every loss needs it, nor can it always be told from what is stored
        found[f"{name}.log_prob()"] = agent.log_prob(taken, taken)
    for what, tensor in found.items():
        if tensor.shape != (size,):
            got = f"has shape {list(tensor.shape)} for {size} rows"
            raise AgentError(f"{what} {got}, expected one number a row, [{size}]")


def _no_steps(size: int, history_length: int) -> TemporalDictTensor:
    return TemporalDictTensor.trusted({}, torch.zeros(size, dtype=torch.int64), history_length)


def _sizes(spec: Spec) -> str:
    return ", ".join(map(str, spec.shape))


def _check(what: str, value: object, size: int) -> None:
    if not isinstance(value, DictTensor):
        raise AgentError(f"{what} must be a DictTensor, got {type(value).__name__}")
    if value.batch_size != size:
        raise AgentError(f"{what} has {value.batch_size} rows, expected {size}")
    for key, tensor in value.items():
        if tensor.shape[:1] != (size,):
            raise AgentError(f"{what}: {key!r} has shape {list(tensor.shape)}, expected [{size}, ...]")

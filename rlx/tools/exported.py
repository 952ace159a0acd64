"""One step of a trained policy as a module of plain tensors: what an exported file holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlx.agent.agent import Agent
from rlx.data import DictTensor, EnvSpecs, TemporalDictTensor
from rlx.env.spaces import Leaf, leaves
from rlx.run.agent_info import Asked

STATE, NEW_STATE = "state/", "new_state/"

Tensors = dict[str, Tensor]


class ExportedPolicy(nn.Module):
    """From what the environment shows, as it shows it, to the action that it gets; all tensors are `[B, ...]`.

    Inputs: the observation, `obs` or `obs/<key>`, in the environment's own dtypes and numbers. Of a policy that depends
    on earlier steps also `is_first` (bool, whether an episode begins), `state/<key>`, which is what the step before
    returned as `new_state/<key>` (anything of that shape where `is_first`), and `prev_reward` (float32), where the
    policy sees that. Outputs: `action` or `action/<key>`, the mode of the policy, within the bounds and from the start
    of the environment's space, and `new_state/<key>`.

    Attributes:
        example: zeros for each input, `[2, ...]`.
        agent_info: as it was given.
        reward_scale: as it was given.
        action_keys: the parts of the action.
        action_space: Gymnasium's action space, None where there is none.
        asked: the fields of `agent_info` that the agent has looked for.
    """

    def __init__(
        self,
        agent: Agent,
        specs: EnvSpecs,
        spaces: tuple[Any, Any] | None,
        *,
        agent_info: Mapping[str, Tensor],
        reward_scale: float,
        clip_reward: bool,
    ) -> None:
        """Take an agent with its weights, on the CPU; they are not copied, and lose their gradients.

        Args:
            agent: what acts.
            specs: what it was built from.
            spaces: Gymnasium's, as `VecEnv.spaces`.
            agent_info: the fields of `agent_info`, without the batch dimension, the same for every row.
            reward_scale: what rewards are multiplied with before the agent sees them.
            clip_reward: whether they are clipped to [-1, 1] before that.
        """
        super().__init__()
        self.agent = agent.requires_grad_(False)
        self.eval()
        self._actor = [agent.actor()]  # in a list, so that the parameters stay the agent's alone
        self._specs, self.agent_info = specs, dict(agent_info)
        self.action_keys, self.action_space = list(specs.action), None if spaces is None else spaces[1]
        self.reward_scale, self._clip_reward = reward_scale, clip_reward
        observed, acted = ([], []) if spaces is None else (leaves(spaces[0], "obs"), leaves(spaces[1], "action"))
        self._seen = {leaf.key: leaf for leaf in observed}
        # As tensors here, and not at each step, so that they are constants of the file.
        self._starts = {leaf.key: torch.as_tensor(leaf.start) for leaf in (*observed, *acted) if leaf.shifted}
        self._dtypes = {leaf.key: torch.from_numpy(np.zeros(0, leaf.dtype)).dtype for leaf in acted}
        self._bounds = {leaf.key: _bounds(leaf) for leaf in acted if leaf.spec.low}
        self._generator = torch.Generator()  # never drawn from
        self.asked: set[str] = set()
        actor = self._actor[0]
        info = self._info_of(2)
        state = actor.initial_state(info, 2)
        self._begins = list(state)
        if actor.history_length:
            state = actor.recall(TemporalDictTensor({}, torch.zeros(2, dtype=torch.int64)), state, info)
        kept = {STATE + key: value.detach().clone() for key, value in state.items()}
        self._remembers = [f"prev_{key}" for key in specs.action] if "prev_action" in actor.inputs else []
        kept |= {STATE + key: specs.action[key.removeprefix("prev_")].zeros(2) for key in self._remembers}
        self.example = {key: self.from_stored(key, spec.zeros(2)) for key, spec in specs.observation.items()}
        if kept or {"prev_reward", "is_first"} & set(actor.inputs):
            self.example["is_first"] = torch.ones(2, dtype=torch.bool)
        if "prev_reward" in actor.inputs:
            self.example["prev_reward"] = torch.zeros(2)
        self.example |= kept

    def from_stored(self, key: str, value: Tensor) -> Tensor:
        """Return an observation that rlx stores, `[B, ...]`, as the environment shows it: what comes in here."""
        leaf = self._seen.get(key)
        if leaf is None:
            return value
        return torch.from_numpy(value.numpy().astype(leaf.dtype) + np.asarray(leaf.start, leaf.dtype))

    def forward(self, inputs: Tensors) -> Tensors:
        """Return the outputs for one step of each row."""
        actor = self._actor[0]
        first = inputs.get("is_first")
        size = inputs[next(iter(self._specs.observation))].shape[0]
        info = self._info_of(size)
        observation = {key: self._stored(key, inputs[key]) for key in self._specs.observation}
        state = {key.removeprefix(STATE): value for key, value in inputs.items() if key.startswith(STATE)}
        if first is not None:
            observation["is_first"] = first
            if "prev_reward" in inputs:
                observation["prev_reward"] = self._reward(inputs["prev_reward"]).masked_fill(first, 0.0)
            for key in self._remembers:
                before = state.pop(key)
                observation[key] = _where(first, torch.zeros_like(before), before)
            initial = actor.initial_state(info, size)
            # What is derived from steps before the first is of no use to the agent; but 0 times NaN is NaN.
            state = {
                key: _where(first, initial[key] if key in self._begins else torch.zeros_like(value), value)
                for key, value in state.items()
            }
        with _NoDraws():
            seen = DictTensor.trusted(observation, size)
            outputs, new_state = actor.forward(seen, DictTensor.trusted(state, size), info)
            taken = actor.act(outputs, info, self._generator)
            new_state = actor.remember(new_state, taken)
        found = {key: self._to_environment(key, taken[key]) for key in self._specs.action}
        found |= {NEW_STATE + key: new_state[key] for key in state}
        return found | {NEW_STATE + key: taken[key.removeprefix("prev_")] for key in self._remembers}

    def _info_of(self, size: int) -> DictTensor:
        fields = {key: value.expand(size, *value.shape) for key, value in self.agent_info.items()}
        return Asked.noting({**fields, "deterministic": torch.ones(size, dtype=torch.bool)}, size, self.asked)

    def _stored(self, key: str, value: Tensor) -> Tensor:
        """Return what rlx stores of a part of the observation: what `ObservationWriter` makes of it."""
        stored = value.to(self._specs.observation[key].dtype)
        return stored - self._starts[key] if key in self._starts else stored

    def _reward(self, reward: Tensor) -> Tensor:
        return (reward.clamp(-1, 1) if self._clip_reward else reward) * self.reward_scale

    def _to_environment(self, key: str, action: Tensor) -> Tensor:
        """Return what the environment gets for a part of the action: what `ActionReader` makes of it."""
        value = action.to(self._dtypes.get(key, action.dtype))
        if key in self._bounds:
            return _common(value).clamp(*self._bounds[key]).to(value.dtype)
        return (value + self._starts[key]).to(value.dtype) if key in self._starts else value


class _NoDraws(TorchFunctionMode):
    """Puts a constant where an agent draws: a file has no generator, and rows that take the mode do not use the draw.

    An agent whose mode does depend on a draw differs from itself, and is found out by the check of its file.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.exponential_, Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.bernoulli_):
            return args[0].fill_(0.5)
        if func in (torch.rand, torch.randn):
            kwargs.pop("generator", None)
            return torch.full(args if isinstance(args[0], int) else args[0], 0.5, **kwargs)
        return func(*args, **kwargs)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    chosen = torch.where(mask.reshape(-1, *[1] * (b.dim() - 1)), _common(a), _common(b))
    return chosen.to(b.dtype)


def _common(value: Tensor) -> Tensor:
    """Return numbers in the next wider type that engines have all operations for."""
    if value.dtype.is_floating_point:
        return value if value.dtype.itemsize >= 4 else value.float()
    return value if value.dtype is torch.bool else value.long()


def _bounds(leaf: Leaf) -> tuple[Tensor, Tensor]:
    box: Any = leaf.space
    return _common(torch.from_numpy(box.low)), _common(torch.from_numpy(box.high))

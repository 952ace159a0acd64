"""An actor-critic that reads its history: a transformer over the last steps of the episode."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from rlx.agent.attention import Place, WindowBlock
from rlx.agent.memory import MemoryActorCritic
from rlx.agent.networks import Activation, activation_of, linear
from rlx.data import DictTensor, EnvSpecs, TemporalDictTensor
from rlx.errors import AgentError
from rlx.validate import Range


class TransformerActorCritic(MemoryActorCritic):
    """A causal transformer (Vaswani et al. 2017, arXiv:1706.03762) of L blocks over one's own episode.

    In each block a step attends to the last W steps, itself included, and never past the episode's first one. Through
    all blocks, L (W - 1) earlier steps reach it: that is the agent's `history_length`. Policy and critic are those of
    `MemoryActorCritic`.

    State: `position` `[B]` int64, the steps of the episode so far. Derived from the steps before, by `recall`:
    `cache/<block>` `[B, 2, H, W, D]`, keys and values of the last W steps, written round and round. A step costs the
    same however long the episode is.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        num_layers: Annotated[int, Range(1)],
        window: Annotated[int, Range(2)],
        model_size: Annotated[int, Range(1)],
        num_heads: Annotated[int, Range(1)],
        feedforward_size: Annotated[int, Range(1)],
        activation: Activation,
        critic_hidden_sizes: Annotated[Sequence[int], Range(1)],
        prev_action: bool,
        prev_reward: bool,
        log_std_init: Annotated[float, Range(-5, 2)],
        normalize_observation: bool = False,
        normalize_return: bool = False,
    ) -> None:
        """Build the networks, orthogonally initialised, biases zero; gains as `MemoryActorCritic` has them.

        Args:
            specs: what the environment shows and takes.
            num_layers: blocks, L, usually 1 to 4.
            window: steps that a block looks at, W, the present one included; usually 8 to 128.
            model_size: width of the blocks, E, usually 64 to 512.
            num_heads: attention heads, H, a divisor of E; usually 2 to 8.
            feedforward_size: width of the dense layer in each block, usually 2 to 4 times E.
            activation: applied there and in the critic.
            critic_hidden_sizes: widths of the critic's hidden layers, usually two of 64 to 256.
            prev_action: whether the agent sees the action before (zero at an episode's first step).
            prev_reward: whether the agent sees the reward before (zero at an episode's first step).
            log_std_init: initial log of the standard deviation of continuous actions, as a part of half the action
                range; usually -1 to 0.
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.
            normalize_return: whether the critic learns returns in standard deviations from their mean.

        Raises:
            AgentError: the heads do not divide the width, or there is no such activation.
        """
        super().__init__()
        if model_size % num_heads:
            raise AgentError(f"agent.num_heads: got {num_heads}, expected a divisor of agent.model_size={model_size}")
        self._make_inputs(
            specs, prev_action=prev_action, prev_reward=prev_reward, normalize_observation=normalize_observation
        )
        self.window = window
        self.history_length = num_layers * (window - 1)
        self.embed = linear(self.encoder.num_features, model_size, 1.0)
        nn.init.normal_(self.embed.bias)  # beside it, the norms leave an observation its magnitude
        self.blocks = nn.ModuleList(
            [
                WindowBlock(
                    model_size,
                    num_heads=num_heads,
                    window=window,
                    feedforward_size=feedforward_size,
                    activation=activation_of(activation)[0],
                    gain=(2 * num_layers) ** -0.5,  # so that the sum over all blocks keeps its variance
                )
                for _ in range(num_layers)
            ]
        )
        self.norm = nn.LayerNorm(model_size)
        self._make_outputs(
            specs,
            model_size,
            critic_hidden_sizes=critic_hidden_sizes,
            activation=activation,
            log_std_init=log_std_init,
            normalize_return=normalize_return,
        )

    def _blocks(self) -> list[tuple[str, WindowBlock]]:
        """Return each block, and where its cache is in the state."""
        return [(f"cache/{index}", block) for index, block in enumerate(self.blocks) if isinstance(block, WindowBlock)]

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return `position` 0."""
        position = torch.zeros(batch_size, dtype=torch.int64, device=self.policy.weight.device)
        return DictTensor.trusted({"position": position}, batch_size)

    def recall(self, context: TemporalDictTensor, state: DictTensor, agent_info: DictTensor) -> DictTensor:
        """Return `state` with the keys and values of the steps before it, by the weights of now, `cache/<block>`."""
        size, window = state.batch_size, self.window
        caches = {
            name: state[name] if name in state and not torch.is_grad_enabled() else block.empty_cache(size)
            for name, block in self._blocks()
        }
        if any(key.startswith("env/") for key in context):
            seen, segment = self._in_line(context.group("env"), context.lengths, None)
            x = self.embed(seen)
            # The last step before the next one goes where it would have been written: behind it in the ring.
            slots = torch.arange(window, device=x.device)
            age = (state["position"].unsqueeze(1) - 1 - slots).remainder(window)
            rows, place = torch.arange(size, device=x.device).unsqueeze(1), (window - 2 - age).clamp(min=0)
            for name, block in self._blocks():
                last = block.keys_values(x[:, 1 - window :])
                caches[name] = _put(caches[name], last[rows, :, :, place].permute(0, 2, 3, 1, 4))
                if x.shape[1] >= window:  # of the last block only the keys are wanted
                    x = block.sequence(x, segment[:, -x.shape[1] :])
        return DictTensor.trusted({"position": state["position"], **caches}, size)

    def memorise(self, seen: Tensor, state: DictTensor) -> tuple[Tensor, DictTensor]:
        """Return the transformer's output `[B, E]` for one step, and the state with that step in it.

        Raises:
            AgentError: the state goes on inside an episode, and has no cache.
        """
        size, position = state.batch_size, state["position"]
        if "cache/0" not in state:
            if bool((position > 0).any()):
                raise AgentError(
                    "TransformerActorCritic.forward(): the state goes on inside an episode, but the steps before are "
                    "not known; state = agent.recall(context, state, agent_info) comes first"
                )
            state = state | DictTensor.trusted({name: block.empty_cache(size) for name, block in self._blocks()}, size)
        place = Place.of(position, self.window)
        x, fields = self.embed(seen), {"position": position + 1}
        for name, block in self._blocks():
            x, fields[name] = block.step(x, state[name], place)
        return self.norm(x), DictTensor.trusted(fields, size)

    def forward_history(
        self,
        context: TemporalDictTensor,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return the outputs `[B, T]` of sequences that go on from `context`, in one masked pass over both."""
        size, length = observation.leading_shape
        if not size * length:
            return super().forward_history(context, observation, state, agent_info, taken)
        seen, segment = self._in_line(context.group("env"), context.lengths, observation)
        x = self.embed(seen)
        for _, block in self._blocks():  # each leaves out the W - 1 steps in front that only it had to see
            x = block.sequence(x, segment[:, -x.shape[1] :])
        mask = self.masking.of(observation)
        fields = self.fields(
            seen[:, -length:].flatten(0, 1), self.norm(x).flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        )
        in_time = {key: field.view(size, length, *field.shape[1:]) for key, field in fields.items()}
        return TemporalDictTensor.trusted(in_time, observation.lengths, length)

    def _in_line(
        self, context: TemporalDictTensor, lengths: Tensor, observation: TemporalDictTensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the encoder gives for C steps of context and T of observation, and which see each other.

        Args:
            context: `[B, <= C]`, its steps at the front.
            lengths: `[B]`, how many they are.
            observation: `[B, T]`; None for T = 0.

        Returns:
            `[B, C + T, E]`, the context's steps at its end; and numbers `[B, C + T]` int64, one for each episode and -1
            where there is no step.
        """
        device, size, before = lengths.device, len(lengths), self.history_length
        place = torch.arange(-before, 0, device=device) + lengths.unsqueeze(1)
        rows, clamped = torch.arange(size, device=device).unsqueeze(1), place.clamp(min=0)
        segment = (place >= 0).long() - 1

        def in_line(key: str) -> Tensor:
            after = None if observation is None else observation[key]
            if key in context:
                line = context[key][rows, clamped]
                return line if after is None else torch.cat([line, after], dim=1)
            assert after is not None, "context and observation cannot both lack a field"
            return torch.cat([after.new_zeros(size, before, *after.shape[2:]), after], dim=1)

        if observation is not None:
            segment = torch.cat([segment, observation["is_first"].long().cumsum(1)], dim=1)
        total = segment.shape[1]
        flat = {key: in_line(key).flatten(0, 1) for key in self.encoder.specs}
        return self.encoder(DictTensor.trusted(flat, size * total)).unflatten(0, (size, total)), segment


def _put(memory: Tensor, values: Tensor) -> Tensor:
    """Return `values`, in `memory` where no gradient is wanted."""
    return values if torch.is_grad_enabled() else memory.copy_(values)

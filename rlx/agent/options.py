"""A policy of two levels: one chooses among options, the option in force chooses the action."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from rlx.agent.actor_critic import wants_mode
from rlx.agent.agent import ActorCriticAgent, Agent
from rlx.agent.distribution import Categorical
from rlx.agent.heads import ActionHead
from rlx.agent.masking import ActionMasking
from rlx.agent.networks import Activation, Encoder, TwinMLP
from rlx.agent.normalizer import ReturnNormalizer
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor
from rlx.validate import Range

Named = DictTensor | TemporalDictTensor


class OptionActorCritic(ActorCriticAgent):
    """Options (Sutton, Precup and Singh 1999) learned by the gradient of all that was decided.

    At an episode's first step, and wherever the option in force has ended, the upper policy mu draws one of O options;
    the policy of the option in force draws the action. An option ends after `option_steps` steps or, where that is
    null, when the termination head beta(s, o) fires (Bacon et al. 2017, arXiv:1609.05140).

    Objective: with the option in force made part of the state, what is decided at a step is one joint action, (end?,
    option, action); Zhang and Whiteson (2019, arXiv:1904.12691) join the levels likewise. `log_prob` is that of all
    parts that were open to decision:

        log pi(a | s, o)  +  [option chosen] log mu(o | s)  +  [end not forced] log P(ended or not; beta(s, o_before))

    so any policy-gradient loss trains both levels and the termination. `entropy` is the sum for the same parts. The
    value is that on arrival, before anything is decided: V(s, o_before), or V(s) where an option must be chosen.

    State: `option` `[B]` int64, the one in force, and `held` `[B]` int64, for how many steps (0: none was chosen yet).
    Kept under `agent/`, besides the action and its distribution under the option in force: `option` int64, `new_option`
    bool (it was chosen at this step), `must_choose` bool (it had to be), `option_logits` `[B, O]` and, without
    `option_steps`, `termination_logit` `[B]`.

    Outputs while acting: `policies` `[B, O, P]`, those of all options, for `act`; with `taken`: the distribution's
    fields under the option taken, for `log_prob` and `entropy`.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        num_options: Annotated[int, Range(1)],
        option_steps: Annotated[int, Range(1)] | None,
        termination_init: Annotated[float, Range(0, 1, low_open=True, high_open=True)],
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        log_std_init: Annotated[float, Range(-5, 2)],
        normalize_observation: bool = False,
        normalize_return: bool = False,
    ) -> None:
        """Build the networks: the options' policies, the upper level and the critic, three perceptrons run as one.

        Args:
            specs: what the environment shows and takes.
            num_options: O, usually 2 to 8.
            option_steps: steps for which an option is held, usually 2 to 20; None to learn when it ends.
            termination_init: without `option_steps`, the probability with which an option ends at first; usually 0.05
                to 0.5.
            hidden_sizes: widths of the hidden layers, usually two of 64 to 256.
            activation: applied after each hidden layer.
            log_std_init: initial log of the standard deviation of continuous actions (each option has its own), as a
                part of half the action range; usually -1 to 0.
            normalize_observation: whether numbers that are seen are brought to mean 0 and variance 1, by moments of all
                that was seen so far; see `rlx.agent.normalizer`.
            normalize_return: whether the critic learns returns in standard deviations from their mean.

        Raises:
            SpecError: the environment shows which actions are allowed in a form that does not fit them.
        """
        super().__init__()
        self.masking = ActionMasking(specs)
        self.num_options, self.option_steps = num_options, option_steps
        self.encoder = Encoder(specs.observation, normalize=normalize_observation)
        self.return_normalizer = ReturnNormalizer() if normalize_return else None
        self.head = ActionHead(specs.action, log_std_init=log_std_init, num_policies=num_options)
        self.chooser = Categorical(Spec((), torch.int64, "discrete", nvec=(num_options,)), "")
        learned = option_steps is None
        outputs = (num_options * self.head.num_parameters, num_options * (1 + learned), num_options + 1)
        self.network = TwinMLP(
            self.encoder.num_features,
            outputs,
            hidden_sizes=hidden_sizes,
            activation=activation,
            output_gains=(0.01, 0.01, 1.0),
        )
        if learned:
            with torch.no_grad():
                self.network.biases[-1][1, 0, num_options : 2 * num_options] = math.log(
                    termination_init / (1 - termination_init)
                )

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return a state in which no option has been chosen yet."""
        nothing = torch.zeros(batch_size, dtype=torch.int64, device=self.network.weights[0].device)
        return DictTensor.trusted({"option": nothing, "held": nothing.clone()}, batch_size)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the outputs and the new state; without `taken`, it is the old one until `remember`."""
        low, high, value = self.network(self.encoder(observation))
        fields, new_state = self.both_levels(low, high, observation, state, taken)
        due = torch.where(fields["must_choose"], self.num_options, state["option"])
        fields["value"] = self.expand_value(_pick(value, due))
        return DictTensor.trusted(fields, observation.batch_size), new_state

    def both_levels(
        self, low: Tensor, high: Tensor, observation: DictTensor, state: DictTensor, taken: DictTensor | None
    ) -> tuple[dict[str, Tensor], DictTensor]:
        """Return all outputs but the value, and the new state, from the policies' networks' outputs."""
        option, held = state["option"], state["held"]
        policies = low.view(-1, self.num_options, self.head.num_parameters)
        policies = self.masking.apply(policies, self.masking.of(observation))  # options themselves are all allowed
        fields = {"option_logits": high[:, : self.num_options]}
        if self.option_steps is None:
            fields["must_choose"] = held == 0
            fields["termination_logit"] = _pick(high[:, self.num_options :], option)
        else:
            fields["must_choose"] = (held == 0) | (held >= self.option_steps)
        if taken is None:
            return fields | {"policies": policies, "option_before": option}, state
        option = taken["option"]
        fields |= self.head.fields(_pick(policies, option), option)
        fields |= {"option": option, "new_option": taken["new_option"]}
        return fields, self.remember(state, taken)

    def forward_sequence(
        self,
        observation: TemporalDictTensor,
        state: DictTensor,
        agent_info: DictTensor | TemporalDictTensor,
        taken: TemporalDictTensor | None = None,
    ) -> TemporalDictTensor:
        """Return the outputs `[B, T]` in one call: `taken` tells which option was in force at each step."""
        size, length = observation.leading_shape
        if taken is None or not size * length:
            return super().forward_sequence(observation, state, agent_info, taken)
        option, held = _in_force(taken["option"], taken["new_option"], observation["is_first"], state)
        flat = DictTensor.trusted(
            {key: observation[key].flatten(0, 1) for key in observation if key.split("/")[0] in self.inputs}
            | {"option": option.flatten(), "held": held.flatten()},
            size * length,
        )
        chosen = {key: field.flatten(0, 1) for key, field in taken.items()}
        nothing = DictTensor.empty(size * length)
        outputs, _ = self.forward(flat, flat, nothing, DictTensor.trusted(chosen, size * length))
        fields = {key: outputs[key].view(size, length, *outputs[key].shape[1:]) for key in outputs}
        return TemporalDictTensor.trusted(fields, observation.lengths, length)

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Decide whether the option ends, which one follows, and the action.

        Rows whose `agent_info["deterministic"]` is true end it where that is more likely than not, and take the modes.
        """
        deterministic = wants_mode(agent_info)
        logits, must_choose = outputs["option_logits"], outputs["must_choose"]
        kept = {"option_logits": logits, "must_choose": must_choose}
        new = must_choose
        if self.option_steps is None:
            kept["termination_logit"] = outputs["termination_logit"]
            threshold = torch.rand(new.shape, generator=generator, device=new.device)
            if deterministic is not None:
                threshold.masked_fill_(deterministic, 0.5)
            new = new | (kept["termination_logit"].sigmoid() > threshold)
        drawn = self.chooser.sample({"logits": logits}, deterministic, generator)["action"]
        option = torch.where(new, drawn, outputs["option_before"])
        policy = self.head.fields(_pick(outputs["policies"], option), option)
        action = self.head.sample(policy, deterministic, generator)
        return DictTensor.trusted(action | kept | {"option": option, "new_option": new}, outputs.batch_size)

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        """Return the state with the option now in force, and for how many steps it has been."""
        held = torch.where(taken["new_option"], 1, state["held"] + 1)
        return DictTensor.trusted({"option": taken["option"], "held": held}, state.batch_size)

    def log_prob(self, outputs: Named, taken: Named) -> Tensor:
        """Return the log-probability `[...]` under `outputs` of all that was decided; see the class."""
        chosen = outputs["option_logits"].log_softmax(-1).gather(-1, taken["option"].unsqueeze(-1)).squeeze(-1)
        total = self.head.log_prob(outputs, taken) + torch.where(taken["new_option"], chosen, 0.0)
        if self.option_steps is None:
            ended = taken["new_option"].float()
            ending = -F.binary_cross_entropy_with_logits(outputs["termination_logit"], ended, reduction="none")
            total = total + torch.where(taken["must_choose"], 0.0, ending)
        return total

    def entropy(self, outputs: Named) -> Tensor:
        """Return the sum of the entropies `[...]` in nats of all that was decided; see the class."""
        log_probs = outputs["option_logits"].log_softmax(-1)
        choice = -(log_probs.exp() * log_probs).sum(-1)
        total = self.head.entropy(outputs) + torch.where(outputs["new_option"], choice, 0.0)
        if self.option_steps is None:
            logit = outputs["termination_logit"]
            ending = F.softplus(logit) - logit * logit.sigmoid()
            total = total + torch.where(outputs["must_choose"], 0.0, ending)
        return total

    def actor(self) -> Agent:
        """Return both levels without the critic."""
        return _Actor(self)


class _Actor(Agent):
    """Both levels of an `OptionActorCritic`, on the same parameters, without the critic."""

    def __init__(self, agent: OptionActorCritic) -> None:
        super().__init__()
        self._agent = [agent]  # in a list, so that the parameters stay the agent's alone
        self._low, self._high = agent.network.single(0), agent.network.single(1)

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        return self._agent[0].initial_state(agent_info, batch_size)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        agent = self._agent[0]
        features = agent.encoder(observation)
        fields, new_state = agent.both_levels(self._low(features), self._high(features), observation, state, taken)
        return DictTensor.trusted(fields, observation.batch_size), new_state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return self._agent[0].act(outputs, agent_info, generator)

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        return self._agent[0].remember(state, taken)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Return `values[n, index[n]]`, `[N, ...]` of `[N, K, ...]`."""
    return values[torch.arange(index.shape[0], device=index.device), index]


def _in_force(option: Tensor, new: Tensor, is_first: Tensor, state: DictTensor) -> tuple[Tensor, Tensor]:
    """Return the option before each step and for how many steps it was held then, `[B, T]` int64 each.

    Args:
        option: `[B, T]` int64, in force at each step.
        new: `[B, T]` bool, the steps at which it was chosen.
        is_first: `[B, T]` bool.
        state: `[B]`, with which the sequences began.
    """
    before = torch.cat([state["option"].unsqueeze(1), option[:, :-1]], dim=1)
    time = torch.arange(option.shape[1], device=option.device).expand_as(option)
    chosen = torch.where(new, time, -1).cummax(1).values  # the last step up to each at which one was chosen
    chosen = torch.cat([torch.full_like(chosen[:, :1], -1), chosen[:, :-1]], dim=1)
    held = torch.where(chosen >= 0, time - chosen, state["held"].unsqueeze(1) + time)
    return before.masked_fill(is_first, 0), held.masked_fill(is_first, 0)

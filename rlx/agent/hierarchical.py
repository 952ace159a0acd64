"""A Q-network of two levels: the manager chooses a goal, the worker the actions that lead there."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from rlx.agent.agent import Agent
from rlx.agent.masking import ActionMasking, features
from rlx.agent.networks import Activation
from rlx.agent.q_network import QAgent, QNetwork, explore, number_of_actions
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError
from rlx.validate import Range

ACHIEVED = "obs/achieved_goal"


class HierarchicalQNetwork(Agent):
    """Options as in h-DQN (Kulkarni et al. 2016, arXiv:1604.06057): option g is to bring the achieved goal to g.

    The environment shows `obs/achieved_goal`, one of M. The manager, a Q-network over M options, chooses one at an
    episode's first step, where the last one is achieved, and after `option_steps` steps. The worker, a Q-network with a
    head for each option, chooses the actions. `rlx.algo.hdqn` trains both.

    State: `option` `[B]` int64, the one in force, and `held` `[B]` int64, for how many steps (0: none was chosen yet).
    Kept under `agent/`: `action`, `option` int64 and `new_option` bool (it was chosen at this step).
    Outputs: `option_q` `[B, M]`, `worker_q` `[B, M, A]`, `option_before` `[B]` and `must_choose` `[B]`.

    Attributes:
        num_options: M.
        option_steps: steps for which an option is held at most.
        manager: values options.
        worker: values actions under the option taken.
    """

    def __init__(
        self,
        specs: EnvSpecs,
        *,
        option_steps: Annotated[int, Range(1)],
        hidden_sizes: Annotated[Sequence[int], Range(1)],
        activation: Activation,
        dueling: bool,
    ) -> None:
        """Build both networks, orthogonally initialised.

        Args:
            specs: what the environment shows and takes.
            option_steps: steps for which an option is held at most, usually what it takes to reach most goals.
            hidden_sizes: widths of the hidden layers of both, usually one or two of 64 to 256.
            activation: applied after each hidden layer, usually relu.
            dueling: whether the manager learns a state's value and its options' advantages apart.

        Raises:
            AgentError: the action is not one out of n, or the environment shows no discrete achieved goal.
        """
        super().__init__()
        achieved = specs.observation.get(ACHIEVED)
        if achieved is None or achieved.kind != "discrete":
            shown = ", ".join(f"{key} ({spec.kind})" for key, spec in specs.observation.items())
            raise AgentError(
                f"a hierarchical Q-network sets itself goals among the values of a discrete {ACHIEVED}; the "
                f"environment shows {shown}. env=Errand has one"
            )
        self.num_options, self.option_steps = achieved.nvec[0], option_steps
        option = Spec((), torch.int64, "discrete", nvec=(self.num_options,))
        self.manager = QNetwork(
            EnvSpecs(features(specs.observation), {"action": option}),
            hidden_sizes=hidden_sizes,
            activation=activation,
            dueling=dueling,
            num_quantiles=0,
        )
        self.worker = OptionWorker(specs, self.num_options, hidden_sizes=hidden_sizes, activation=activation)

    def initial_state(self, agent_info: DictTensor, batch_size: int) -> DictTensor:
        """Return a state in which no option has been chosen yet."""
        nothing = torch.zeros(batch_size, dtype=torch.int64, device=next(self.parameters()).device)
        return DictTensor.trusted({"option": nothing, "held": nothing.clone()}, batch_size)

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return the values at both levels; without `taken`, the state is the old one until `remember`."""
        option, held = state["option"], state["held"]
        manager, _ = self.manager.forward(observation, state, agent_info)
        fields = {
            "option_q": manager["q"],
            "worker_q": self.worker.of_all_options(observation),
            "option_before": option,
            "must_choose": (held == 0) | (held >= self.option_steps) | (observation[ACHIEVED] == option),
        }
        new_state = state if taken is None else self.remember(state, taken)
        return DictTensor.trusted(fields, observation.batch_size), new_state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        """Choose an option where one is due, and the action of greatest value under it.

        Rows explore options by `agent_info["epsilon"]` and actions by `agent_info["worker_epsilon"]`, `[B]` each; those
        whose `agent_info["deterministic"]` is true explore neither.
        """
        new, option_q = outputs["must_choose"], outputs["option_q"]
        chosen = explore(option_q.argmax(-1), option_q, agent_info, generator)
        option = torch.where(new, chosen, outputs["option_before"])
        q = _of_option(outputs["worker_q"], option)
        action = explore(q.argmax(-1), q, agent_info, generator, key="worker_epsilon")
        return DictTensor.trusted({"action": action, "option": option, "new_option": new}, outputs.batch_size)

    def remember(self, state: DictTensor, taken: DictTensor) -> DictTensor:
        """Return the state with the option now in force, and for how many steps it has been."""
        held = torch.where(taken["new_option"], 1, state["held"] + 1)
        return DictTensor.trusted({"option": taken["option"], "held": held}, state.batch_size)


class OptionWorker(QAgent):
    """Values the actions under the option that was taken, `agent/option`: a Q-network with a head for each option."""

    def __init__(
        self, specs: EnvSpecs, num_options: int, *, hidden_sizes: Sequence[int], activation: Activation
    ) -> None:
        """Build the network; arguments as those of `HierarchicalQNetwork`."""
        super().__init__()
        self.num_options, self.num_actions = num_options, number_of_actions(specs, "a hierarchical Q-network")
        self.masking = ActionMasking(specs)
        every = Spec((), torch.int64, "discrete", nvec=(num_options * self.num_actions,))
        self.network = QNetwork(
            EnvSpecs(features(specs.observation), {"action": every}),
            hidden_sizes=hidden_sizes,
            activation=activation,
            dueling=False,
            num_quantiles=0,
        )

    def of_all_options(self, observation: DictTensor) -> Tensor:
        """Return the values `[B, M, A]` of actions under each option."""
        nothing = DictTensor.empty(observation.batch_size)
        q = self.network.forward(observation, nothing, nothing)[0]["q"]
        return self.masking.apply(q.view(-1, self.num_options, self.num_actions), self.masking.of(observation))

    def forward(
        self,
        observation: DictTensor,
        state: DictTensor,
        agent_info: DictTensor,
        taken: DictTensor | None = None,
    ) -> tuple[DictTensor, DictTensor]:
        """Return `q` `[B, A]` under `taken["option"]` `[B]`, and the empty state."""
        assert taken is not None, "the option comes with what was taken"
        q = _of_option(self.of_all_options(observation), taken["option"])
        return DictTensor.trusted({"q": q}, observation.batch_size), state


def _of_option(values: Tensor, option: Tensor) -> Tensor:
    """Return `values[n, option[n]]`, `[N, A]` of `[N, M, A]`."""
    # Gathered: an index over all rows would have their number in an exported file for good.
    return values.gather(1, option.view(-1, 1, 1).expand(-1, 1, values.shape[-1])).squeeze(1)

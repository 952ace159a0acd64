"""Floor 3: the Agent contract, replay over trajectories, networks and ready-made agents."""

from rlx.agent.actor_critic import ActorCritic
from rlx.agent.agent import (
    ActorCriticAgent,
    Agent,
    AgentMaker,
    is_stateful,
    log_prob_then,
    reset_state,
    state_specs,
)
from rlx.agent.convolution import ConvActorCritic, ConvQNetwork
from rlx.agent.flat import flatten_parameters
from rlx.agent.heads import ActionHead
from rlx.agent.hierarchical import HierarchicalQNetwork
from rlx.agent.masking import ActionMasking, apply_mask, draw_allowed
from rlx.agent.memory import MemoryAgent
from rlx.agent.mixture import MixtureAgent
from rlx.agent.networks import Encoder
from rlx.agent.normalizer import Normalizer, ObservationNormalizer, ReturnNormalizer, update_normalizers
from rlx.agent.options import OptionActorCritic
from rlx.agent.q_network import QAgent, QHead, QNetwork
from rlx.agent.recurrence import Recurrence
from rlx.agent.recurrent import (
    GRUActorCritic,
    LSTMActorCritic,
    RecurrentActorCritic,
    RecurrentAgent,
    RecurrentQNetwork,
)
from rlx.agent.replay import burn_in, replay, replay_inputs, replay_next, replay_with_values, values
from rlx.agent.soft_actor_critic import Critics, RecurrentSoftActorCritic, SoftActorCritic, SoftActorCriticAgent
from rlx.agent.squashed_gaussian import SquashedGaussian
from rlx.agent.transformer import TransformerActorCritic
from rlx.data import find_mask

__all__ = [
    "ActionHead",
    "ActionMasking",
    "ActorCritic",
    "ActorCriticAgent",
    "Agent",
    "AgentMaker",
    "ConvActorCritic",
    "ConvQNetwork",
    "Critics",
    "Encoder",
    "GRUActorCritic",
    "HierarchicalQNetwork",
    "LSTMActorCritic",
    "MemoryAgent",
    "MixtureAgent",
    "Normalizer",
    "ObservationNormalizer",
    "OptionActorCritic",
    "QAgent",
    "QHead",
    "QNetwork",
    "Recurrence",
    "RecurrentActorCritic",
    "RecurrentAgent",
    "RecurrentQNetwork",
    "RecurrentSoftActorCritic",
    "ReturnNormalizer",
    "SoftActorCritic",
    "SoftActorCriticAgent",
    "SquashedGaussian",
    "TransformerActorCritic",
    "apply_mask",
    "burn_in",
    "draw_allowed",
    "find_mask",
    "flatten_parameters",
    "is_stateful",
    "log_prob_then",
    "replay",
    "replay_inputs",
    "replay_next",
    "replay_with_values",
    "reset_state",
    "state_specs",
    "update_normalizers",
    "values",
]

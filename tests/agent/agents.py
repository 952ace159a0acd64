"""Small agents and made-up experience for the tests of replay and of the losses."""

import torch
from torch import nn

from rlx.agent import ActorCritic, Agent
from rlx.data import DictTensor, EnvSpecs, Spec, TemporalDictTensor, Trajectories

SPECS = EnvSpecs(
    {"obs": Spec((3,), torch.float32)},
    {"action": Spec((), torch.int64, "discrete", nvec=(4,))},
)


def actor_critic(specs: EnvSpecs = SPECS, **changes) -> ActorCritic:
    options = {"hidden_sizes": [8, 8], "activation": "tanh", "log_std_init": -0.5} | changes
    return ActorCritic(specs, **options)


class Recurrent(Agent):
    """A GRU policy and value: the smallest agent whose past matters."""

    inputs = ("obs", "prev_reward")

    def __init__(self, specs: EnvSpecs) -> None:
        super().__init__()
        self.cell = nn.GRUCell(specs.observation["obs"].numel + 1, 6)
        self.head = nn.Linear(6, specs.action["action"].nvec[0] + 1)

    def initial_state(self, agent_info, batch_size):
        return DictTensor({"hidden": torch.full((batch_size, 6), 0.1)})

    def forward(self, observation, state, agent_info, taken=None):
        seen = torch.cat([observation["obs"], observation["prev_reward"].unsqueeze(-1)], dim=-1)
        hidden = self.cell(seen, state["hidden"])
        logits, value = self.head(hidden).tensor_split([self.head.out_features - 1], dim=-1)
        return DictTensor({"logits": logits, "value": value.squeeze(-1)}), DictTensor({"hidden": hidden})

    def act(self, outputs, agent_info, generator):
        action = torch.multinomial(outputs["logits"].softmax(-1), 1, generator=generator).squeeze(-1)
        return DictTensor({"action": action, "logits": outputs["logits"], "value": outputs["value"]})


def steps_of(lengths: list[int], max_length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Trajectories:
    """Return made-up trajectories of the discrete SPECS, with ends of both kinds and a bootstrap that fits."""
    generator = torch.Generator().manual_seed(seed)
    size = len(lengths)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, max_length, *shape, generator=generator, dtype=dtype)

    terminated = torch.rand(size, max_length, generator=generator) < 0.2
    truncated = torch.rand(size, max_length, generator=generator) < 0.2
    over = terminated | truncated
    is_first = torch.cat([torch.ones(size, 1, dtype=torch.bool), over[:, :-1]], dim=1)
    fields = {
        "env/obs": draw(3),
        "env/prev_reward": draw().masked_fill(is_first, 0.0),
        "env/is_first": is_first,
        "agent/action": torch.randint(0, 4, (size, max_length), generator=generator),
        "agent/logits": draw(4),
        "next/obs": draw(3),
        "next/reward": draw(),
        "next/terminated": terminated,
        "next/truncated": truncated,
    }
    following = torch.cat([fields["env/obs"][:, 1:], fields["next/obs"][:, -1:]], dim=1)
    fields["next/obs"] = torch.where(over.unsqueeze(-1), fields["next/obs"], following)
    steps = TemporalDictTensor(fields, lengths)
    last = torch.arange(max_length) == (steps.lengths - 1).unsqueeze(1)
    row, time = ((truncated | last) & ~terminated & steps.mask()).nonzero(as_tuple=True)
    bootstrap = DictTensor(
        {
            "row": row,
            "time": time,
            "obs": fields["next/obs"][row, time],
            "prev_reward": fields["next/reward"][row, time],
            "is_first": torch.zeros(len(row), dtype=torch.bool),
        },
        len(row),
    )
    return Trajectories(DictTensor.empty(size), steps, bootstrap)

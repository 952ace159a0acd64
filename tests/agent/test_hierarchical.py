"""Two levels of Q-networks: options last as long as they should, and replay is acting."""

from functools import partial

import torch

from rlx.agent import HierarchicalQNetwork, replay
from rlx.batcher import Batcher
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.env import Errand

MAKE_AGENT = partial(HierarchicalQNetwork, option_steps=4, hidden_sizes=[16], activation="tanh", dueling=True)
MAKE_ENV = partial(Errand, length=5, slip=0.2, empty_handed=0.1, max_episode_steps=30)


def collect(epsilon: float, worker_epsilon: float, pieces: int = 6) -> list:
    info = DictTensor({"epsilon": torch.full((6,), epsilon), "worker_epsilon": torch.full((6,), worker_epsilon)})
    found = []
    with Batcher(
        MAKE_AGENT, MAKE_ENV, num_workers=1, envs_per_worker=6, num_steps=15, seed=0, workers="local"
    ) as batcher:
        batcher.reset(info)
        torch.manual_seed(0)
        agent = MAKE_AGENT(batcher.specs)
        batcher.publish(agent)
        for _ in range(pieces):
            piece = batcher.collect()
            outputs = replay(agent, piece)
            greedy = outputs["worker_q"].gather(
                2, piece.steps["agent/option"][:, :, None, None].expand(-1, -1, 1, 2)
            ).squeeze(2).argmax(-1)  # fmt: skip
            assert torch.equal(outputs["must_choose"], piece.steps["agent/new_option"])
            if not worker_epsilon:
                assert torch.equal(greedy, piece.steps["agent/action"])
            if not epsilon:
                new = piece.steps["agent/new_option"]
                assert torch.equal(outputs["option_q"].argmax(-1)[new], piece.steps["agent/option"][new])
            found.append(piece.steps.clone())
    return found


def test_an_option_is_held_until_it_is_achieved_or_its_time_is_up_across_pieces() -> None:
    pieces = collect(epsilon=1.0, worker_epsilon=0.5)
    keys = ("env/is_first", "agent/new_option", "agent/option", "env/obs/achieved_goal")
    first, new, option, cell = (torch.cat([piece[key] for piece in pieces], dim=1) for key in keys)
    reasons = {"first": 0, "time": 0, "achieved": 0}
    for row in range(6):
        held = 0
        for t in range(new.shape[1]):
            reason = (
                "first" if first[row, t] else "time" if held == 4
                else "achieved" if cell[row, t] == option[row, t - 1] else None
            )  # fmt: skip
            assert bool(new[row, t]) == (reason is not None)
            if reason is None:
                assert option[row, t] == option[row, t - 1]
                held += 1
            else:
                reasons[reason] += 1
                held = 1
    assert min(reasons.values()) > 10
    assert len(option.unique()) == 5


def test_replay_chooses_as_acting_did_where_nobody_explores() -> None:
    collect(epsilon=0.0, worker_epsilon=0.0)


def test_levels_explore_each_by_an_epsilon_of_its_own_and_never_where_deterministic() -> None:
    specs = Errand(1, length=5, slip=0.2, empty_handed=0.1, max_episode_steps=30).specs
    torch.manual_seed(0)
    agent, count = MAKE_AGENT(specs), 2000
    nothing = DictTensor.empty(count)
    seen = DictTensor(
        {"obs/observation": torch.zeros(count, 1, dtype=torch.int8), "obs/achieved_goal": torch.full((count,), 2)}
    )
    outputs, _ = agent.forward(seen, agent.initial_state(nothing, count), nothing)

    def act(**info: torch.Tensor) -> DictTensor:
        return agent.act(outputs, DictTensor(info, count), torch.Generator().manual_seed(0))

    one, none = torch.ones(count), torch.zeros(count)
    high = act(epsilon=one, worker_epsilon=none)
    assert (torch.bincount(high["option"], minlength=5) / count - 0.2).abs().max() < 0.05
    assert torch.equal(high["action"], outputs["worker_q"][torch.arange(count), high["option"]].argmax(-1))
    low = act(epsilon=none, worker_epsilon=one)
    assert len(low["option"].unique()) == 1
    assert abs(low["action"].float().mean() - 0.5) < 0.05
    fixed = act(epsilon=one, worker_epsilon=one, deterministic=torch.ones(count, dtype=torch.bool))
    assert len(fixed["option"].unique()) == len(fixed["action"].unique()) == 1


def test_the_mask_is_for_actions_and_not_for_options() -> None:
    specs = EnvSpecs(
        {
            "obs/achieved_goal": Spec((), torch.int64, "discrete", nvec=(4,)),
            "obs/action_mask": Spec((2,), torch.int8, "multi_binary"),
        },
        {"action": Spec((), torch.int64, "discrete", nvec=(2,))},
    )
    agent, nothing = MAKE_AGENT(specs), DictTensor.empty(3)
    seen = DictTensor({"obs/achieved_goal": torch.arange(3), "obs/action_mask": torch.tensor([[1, 0]] * 3)})
    outputs, _ = agent.forward(seen, agent.initial_state(nothing, 3), nothing)
    assert (outputs["worker_q"][..., 1] == -1e9).all()
    assert (outputs["worker_q"][..., 0] > -1e3).all()
    assert (outputs["option_q"] > -1e3).all()

"""Which sequences a recurrent agent is to learn from, and that none of them is forgotten."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from rlx.agent import burn_in
from rlx.algo.sequences import tell_priority
from rlx.data import DictTensor, EnvSpecs, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.run.checkpoint import find_checkpoint
from tests.agent.agents import Recurrent
from tests.run.jobs import train

SPECS = EnvSpecs({"obs": Spec((3,), torch.float32)}, {"action": Spec((), torch.int64, "discrete", nvec=(2,))})


def test_sequences_known_no_further_than_the_burn_in_tell_no_priority_unless_they_are_over() -> None:
    state = {"hidden": Spec((6,), torch.float32)}
    buffer = ReplayBuffer(SPECS, capacity=80, num_envs=2, state=state, state_every=4, alpha=1.0)
    for piece in range(3):  # the first row's episode goes on, the second one's ends with the first piece
        is_first, ended = torch.zeros(2, 2, 4, dtype=torch.bool)
        is_first[:, 0] = torch.tensor([piece == 0, piece < 2])
        ended[1, 3] = piece == 0
        fields = {"env/obs": torch.zeros(2, 4, 3), "next/obs": torch.zeros(2, 4, 3), "env/is_first": is_first}
        fields |= {"agent/action": torch.zeros(2, 4, dtype=torch.int64), "next/reward": torch.zeros(2, 4)}
        fields |= {"next/terminated": ended, "next/truncated": torch.zeros_like(ended)}
        info = DictTensor({"agent_state/hidden": torch.zeros(2, 6)})
        buffer.add(Trajectories(info, TemporalDictTensor(fields, [4, 4]), DictTensor.empty(0)))
    batch = buffer.sample_sequences(60, torch.Generator().manual_seed(0), num_steps=12)
    begins = {(0, 0): 12, (0, 4): 8, (0, 8): 4, (1, 0): 4, (1, 5): 8, (1, 9): 4}  # row and place: steps
    rows, places = batch.info["slot"] % 2, batch.info["slot"] // 2
    found = list(zip(rows.tolist(), places.tolist(), strict=True))
    assert dict(zip(found, batch.steps.lengths.tolist(), strict=True)) == begins
    told = tell_priority(batch, burn_in(Recurrent(SPECS), batch, 6))
    waits = {(0, 8), (1, 9)}
    assert told.tolist() == [place not in waits for place in found]


def test_all_that_can_be_learned_from_stays_within_the_reach_of_priorities(tmp_path: Path) -> None:
    directory = train(
        tmp_path / "run",
        *("algo=dqn", "agent=recurrent_q_network", "env=CartPole", "batcher=local", "batcher.num_workers=1"),
        *("batcher.envs_per_worker=4", "logger.console=false", "logger=csv", "checkpoint.buffer=true"),
        *("algo.learning_starts=100", "algo.num_updates=8", "algo.batch_size=16", "total_steps=1000"),
        *("algo.num_steps=4", "algo.burn_in_steps=6", "algo.sequence_length=4", "algo.prioritized_alpha=1.0"),
    )
    kept: dict[str, torch.Tensor] = {}
    for path in find_checkpoint(directory).rglob("*.safetensors"):
        kept |= load_file(path)
    priority, is_first = kept["buffer/priorities"], kept["buffer/rings/fields/env/is_first"]
    known = kept["buffer/rings/is_step"][: len(is_first) + 4 * 6].view(-1, 4).unfold(0, 7, 1).all(-1).flatten()
    learned_from = (priority[: len(is_first)] > 0) & known & ~is_first  # a step behind the burn-in
    assert learned_from.sum() > 30
    assert priority[: len(is_first)][learned_from].min() > 1e-5  # of nothing it would be 1e-6

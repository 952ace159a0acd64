"""What two ranks find, each a process of its own: `python -m tests.run.two_ranks`, one JSON object a process."""

import json
import os
import signal
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from rlx.agent import Normalizer, ObservationNormalizer, update_normalizers
from rlx.agent.flat import flatten_parameters
from rlx.batcher.episode_log import EpisodeLog
from rlx.cli.report import end_at_once
from rlx.data import DictTensor, TemporalDictTensor, Trajectories
from rlx.errors import ConfigError, RankError
from rlx.run.agreement import Iteration, agree, agree_on_stop
from rlx.run.rank_states import gather_states
from rlx.run.ranks import Ranks
from rlx.run.rendezvous import join

SAMPLES = (3, 1)
DEVICE = os.environ.get("DEVICE", "cpu")
VALUES = torch.arange(7.0, device=DEVICE).square()
OWN = (slice(0, 2), slice(2, 7))


class Two(nn.Module):
    """Two parameters whose gradients are set, and an observation's normaliser."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))
        self.normalizer = ObservationNormalizer("obs", ())


def steps(values: torch.Tensor, batch_size: int = 1) -> Trajectories:
    fields = TemporalDictTensor({"env/obs": values.reshape(batch_size, -1)}, [len(values) // batch_size] * batch_size)
    return Trajectories(DictTensor.empty(batch_size), fields, DictTensor.empty(0)).to(DEVICE)


def gradients(ranks: Ranks, samples: int, flat: bool) -> list[float]:
    module = Two().to(DEVICE)
    if flat:
        flatten_parameters(module)
    for place, parameter in enumerate(module.parameters()):
        parameter.grad = None if not flat else parameter.grad
        value = torch.full_like(parameter, 10.0 * place + 2.0 * ranks.rank)
        if flat:
            assert parameter.grad is not None
            parameter.grad.copy_(value)
        else:
            parameter.grad = value
    ranks.average_gradients(module, samples)
    return [float(parameter.grad.mean()) for parameter in module.parameters() if parameter.grad is not None]


def report(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rank = ranks.rank
    found["flat"] = gradients(ranks, SAMPLES[rank], flat=True)
    found["apart"] = gradients(ranks, SAMPLES[rank], flat=False)
    found["one has none"] = gradients(ranks, (0, 1)[rank], flat=True)
    found["sum"] = ranks.sum(rank + 1.5)
    found["mean"] = ranks.mean((2.0, 6.0)[rank], SAMPLES[rank])
    found["mean of nothing"] = ranks.mean(float("nan") if rank else 4.0, (2, 0)[rank])
    found["gather"] = ranks.gather(torch.tensor([rank, 7], device=DEVICE)).tolist()
    moments = ranks.std_mean(VALUES[OWN[rank]])
    assert moments is not None
    found["std_mean"] = [float(value) for value in moments]
    moments = ranks.std_mean(VALUES if rank else VALUES[:0])
    assert moments is not None
    found["std_mean of one's"] = [float(value) for value in moments]

    module, seen = Two().to(DEVICE), Normalizer(()).to(DEVICE)
    update_normalizers(module, steps(VALUES[OWN[rank]]), gather=ranks.gather)
    update_normalizers(module, steps(VALUES + 3 if rank else VALUES[:0]), gather=ranks.gather)
    seen.update(torch.cat([VALUES, VALUES + 3]))
    found["normalizer"] = [float(module.normalizer.shift - seen.shift), float(module.normalizer.scale - seen.scale)]
    found["normalizer's bits"] = [float(value) for value in module.normalizer.moments]

    batch = steps(torch.arange(9.0 if rank else 4.0), 9 if rank else 4)
    found["minibatches"] = [ranks.num_minibatches(batch, size) for size in (100, 3, 2, 1)]
    found["text"] = ranks.exchange_text(f"from {rank}" * (rank + 1))
    found["data"] = [data.decode() for data in ranks.collect(b"" if rank else b"first")]
    with torch.no_grad():
        module.weight.fill_(rank + 1)
    module.register_buffer("flag", torch.tensor([rank == 0], device=DEVICE))
    ranks.broadcast(module)
    found["broadcast"] = [float(module.weight.mean()), bool(module.flag)]

    ended = [(0, 1.5, 3)] if rank == 0 else [(1, -2.0, 4), (0, 0.25, 5)]
    episodes, none = EpisodeLog(*np.array(ended).T), EpisodeLog()
    terms = {
        "loss/total": torch.tensor((1.0, 5.0)[rank], device=DEVICE),
        "count": (2, 3)[rank],
        "rate": 0.1,
        "of one": (float("nan"), 0.25)[rank],
    }
    stop = signal.SIGTERM if rank else None
    told = agree(ranks, Iteration(terms, (4, 6)[rank], SAMPLES[rank], episodes, stop, rank == 0, 1, 2))
    found["agreed"] = [told.terms, told.env_steps, list(told.episodes), told.stop == signal.SIGTERM, told.late]
    found["agreed counts"] = [told.samples, told.restarts, told.dropped_steps]
    told = agree(ranks, Iteration({"x": float("nan") if rank else 3.0}, (4, 0)[rank], 0, none, None, False, 0, 0))
    found["by steps"] = [told.terms, told.stop, told.late]
    found["evenly"] = agree(ranks, Iteration({"x": 1.0 + rank}, 0, 0, none, None, False, 0, 0)).terms  # all resets
    found["stop"] = agree_on_stop(ranks, signal.SIGINT if rank == 0 else None) == signal.SIGINT
    try:
        agree(ranks, Iteration({"this": 1.0} if rank else {"that": 1.0}, 1, 1, none, None, False, 0, 0))
    except RankError as error:
        found["other terms"] = str(error)

    state = {
        "agent": {"w": torch.ones(2, device=DEVICE)},
        "draws": {"seed": torch.tensor([rank])},
        "note": ("a", None, 1.5),
    }
    whole = gather_states(ranks, state, ["agent"])
    found["state"] = None if whole is None else [sorted(whole), whole["ranks"]["1"]["draws"]["seed"].tolist()]
    try:
        gather_states(ranks, {**state, "agent": {"w": torch.full((2,), 1 + 1e-7 * rank, device=DEVICE)}}, ["agent"])
    except RankError as error:
        found["drifted"] = str(error)
    return found


def main() -> None:
    ranks = join({"kind": "ddp", "timeout": float(os.environ["TIMEOUT"])})
    with ranks:
        if "SHORT" not in os.environ:
            sys.stdout.write(json.dumps(report(ranks)) + "\n")
        if "FAILS" in os.environ:
            if ranks.rank == int(os.environ["FAILS"]):
                raise ConfigError(f"rank {ranks.rank} alone is wrong")
            ranks.sum(1.0)
        ranks.wait_for_end()


if __name__ == "__main__":
    with end_at_once():
        try:
            main()
        except (ConfigError, RankError) as error:
            sys.stderr.write(f"told: {error}\n")
            sys.exit(error.exit_status)

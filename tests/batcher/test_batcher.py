"""What a batcher hands back, step by step against a plain loop over bare environments, in every mode."""

import os
import signal
import sys
from functools import partial

import pytest
import torch
from torch import nn

from rlx.agent import ActionHead, ActorCritic, ActorCriticAgent
from rlx.batcher import Batcher
from rlx.batcher.draws import Draws
from rlx.data import DictTensor, Trajectories
from rlx.env import make
from rlx.errors import AgentError, DataRevokedError, EnvironmentFault, SpecError, UserError, WorkerError
from rlx.seeding import env_seed
from tests.batcher.ledger import ID, VECTOR_ID, Counter, Parity, episode_length, expected_steps

MODES = {
    "per_instance": partial(make, ID),
    "next_step": partial(make, VECTOR_ID, vectorization="native", kwargs={"mode": "NextStep"}),
    "same_step": partial(make, VECTOR_ID, vectorization="native", kwargs={"mode": "SameStep"}),
    "disabled": partial(make, VECTOR_ID, vectorization="native", kwargs={"mode": "Disabled"}),
}


def batcher(make_env=MODES["per_instance"], make_agent=Parity, **changes) -> Batcher:
    options = {"num_workers": 2, "envs_per_worker": 3, "num_steps": 5, "seed": 3, "workers": "local"} | changes
    return Batcher(make_agent, make_env, **options)


def row_of(piece: Trajectories, row: int) -> list[dict]:
    """Return the valid steps of one row as plain data."""
    count = int(piece.steps.lengths[row])
    fields = {key: piece.steps[key][row, :count].tolist() for key in piece.steps.keys()}  # noqa: SIM118
    return [{key: values[t] for key, values in fields.items()} for t in range(count)]


@pytest.mark.parametrize("workers", ["local", "process"])
@pytest.mark.parametrize("mode", MODES)
def test_every_row_is_what_a_plain_loop_gives_whatever_the_autoreset_mode(mode: str, workers: str) -> None:
    make_agent = Counter if mode in ("per_instance", "next_step") else Parity
    with batcher(MODES[mode], make_agent, workers=workers) as b:
        rows: list[list[dict]] = [[] for _ in range(b.num_envs)]
        for _ in range(6):
            piece = b.collect()
            assert piece.num_steps == int(piece.steps.lengths.sum())
            for row in range(b.num_envs):
                rows[row].extend(row_of(piece, row))
        episodes = sorted(b.episodes)
    found = []
    for row, steps in enumerate(rows):
        worker_seed = env_seed(3, row) if mode in ("per_instance",) else None
        seed = worker_seed if worker_seed is not None else int(steps[0]["env/obs"][0])
        expected = expected_steps(seed, len(steps))
        assert len(steps) >= (20 if mode == "next_step" else 30)
        total = length = 0
        for step, wanted in zip(steps, expected, strict=True):
            for key, value in wanted.items():
                if key == "count":
                    continue
                assert step[key] == (pytest.approx(value) if isinstance(value, float) else value), (row, key)
            if make_agent is Counter:
                assert step["agent/count"] == wanted["count"]
                for key in ("prev_action", "prev_reward", "is_first"):
                    assert step[f"agent/{key}"] == wanted[f"env/{key}"], key
            total, length = total + step["next/reward"], length + 1
            if step["next/terminated"] or step["next/truncated"]:
                found.append((row, total, length))
                total = length = 0
    assert episodes == sorted(found)


@pytest.mark.parametrize("mode", MODES)
def test_bootstrap_names_the_step_it_follows_and_shows_the_true_observation(mode: str) -> None:
    with batcher(MODES[mode]) as b:
        for _ in range(4):
            piece = b.collect()
            steps, shown = piece.steps, piece.bootstrap
            wanted = set()
            for row in range(b.num_envs):
                count = int(steps.lengths[row])
                for t in range(count):
                    terminated = bool(steps["next/terminated"][row, t])
                    truncated = bool(steps["next/truncated"][row, t])
                    if not terminated and (truncated or t == count - 1):
                        wanted.add((row, t))
            assert set(zip(shown["row"].tolist(), shown["time"].tolist(), strict=True)) == wanted
            assert len(wanted) == shown.batch_size
            torch.testing.assert_close(shown["obs"], steps["next/obs"][shown["row"], shown["time"]])
            torch.testing.assert_close(shown["prev_reward"], steps["next/reward"][shown["row"], shown["time"]])


@pytest.mark.parametrize("mode", MODES)
def test_stop_mode_gives_each_environment_exactly_one_episode(mode: str) -> None:
    with batcher(MODES[mode], stop_at_episode_end=True, num_steps=3) as b:
        for _ in range(3):
            b.reset()
            running, lengths, ends = b.num_envs, torch.zeros(b.num_envs, dtype=torch.int64), 0
            while running:
                b.execute()
                piece, running = b.get()
                lengths += piece.steps.lengths
                ends += int((piece.steps["next/terminated"] | piece.steps["next/truncated"])[piece.steps.mask()].sum())
            assert ends == b.num_envs
            assert sorted(episode[0] for episode in b.episodes) == list(range(b.num_envs))
            assert [episode[2] for episode in sorted(b.episodes)] == lengths.tolist()
            b.episodes.clear()


def test_local_and_process_workers_give_the_same_data() -> None:
    pieces = []
    for workers in ("local", "process"):
        with batcher(workers=workers) as b:
            b.collect()
            pieces.append(b.collect().clone())
    for key in pieces[0].steps.keys():  # noqa: SIM118
        assert torch.equal(pieces[0].steps[key], pieces[1].steps[key]), key


@pytest.mark.parametrize("workers", ["local", "process"])
@pytest.mark.parametrize("mode", MODES)
def test_episodes_that_begin_with_the_next_piece_are_those_that_a_reset_begins(mode: str, workers: str) -> None:
    make_agent = Counter if mode in ("per_instance", "next_step") else Parity
    found = []
    for wait in (True, False):
        with batcher(MODES[mode], make_agent, workers=workers) as b:
            b.collect()
            b.reset(wait=wait)
            pieces = [b.collect().clone() for _ in range(2)]
            found.append([row_of(piece, row) for piece in pieces for row in range(b.num_envs)])
            assert pieces[0].steps["env/is_first"][:, 0].all()
    assert found[0] == found[1]


def test_trajectories_refuse_access_after_the_next_get() -> None:
    with batcher() as b:
        first = b.collect()
        kept, lazily = first.select("next/reward").clone(), first.steps.select("next/obs")
        after = first.bootstrap.select("prev_reward")
        b.execute()
        assert first.steps["next/reward"].shape == (6, 5)  # still there while the next piece is collected
        b.get()
        with pytest.raises(DataRevokedError, match="clone"):
            first.steps["next/reward"]
        with pytest.raises(DataRevokedError):
            lazily["next/obs"]
        with pytest.raises(DataRevokedError):
            after["prev_reward"]
        assert kept.steps["next/reward"].shape == (6, 5)


def test_agent_info_reaches_each_row_and_may_change_between_pieces() -> None:
    with batcher(make_agent=Told) as b:
        b.reset(agent_info=DictTensor({"tell": torch.arange(6)}))
        assert torch.equal(b.collect().steps["agent/told"], torch.arange(6)[:, None].expand(6, 5))
        b.execute(agent_info=DictTensor({"tell": torch.arange(6) + 10}))
        piece, _ = b.get()
        assert torch.equal(piece.steps["agent/told"], torch.arange(10, 16)[:, None].expand(6, 5))
        assert torch.equal(piece.info["agent_info/tell"], torch.arange(10, 16))


class Told(Parity):
    def forward(self, observation, state, agent_info, taken=None):
        return DictTensor({"seen": observation["obs"], "told": agent_info["tell"]}), state

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.select("told")


class Weighted(Parity):
    def __init__(self, specs) -> None:
        super().__init__(specs)
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | DictTensor(
            {"weight": self.weight[0].expand(outputs.batch_size)}
        )


@pytest.mark.parametrize("workers", ["local", "process"])
def test_workers_use_published_weights_from_their_next_piece_on(workers: str) -> None:
    with batcher(make_agent=Weighted, workers=workers) as b:
        agent = Weighted(b.specs)
        with pytest.raises(UserError, match="publish"):
            b.execute()
        for value in (1.0, 2.0, 3.0):
            agent.weight.data.fill_(value)
            b.publish(agent)
            assert (b.collect().steps["agent/weight"] == value).all()


@pytest.mark.parametrize("workers", ["local", "process"])
def test_publishing_while_a_piece_is_collected_never_touches_the_weights_that_it_reads(workers: str) -> None:
    with batcher(make_agent=Weighted, workers=workers) as b:
        agent = Weighted(b.specs)
        for value in (1.0, 2.0):
            agent.weight.data.fill_(value)
            b.publish(agent)
        b.execute()
        for value in (3.0, 4.0, 5.0):
            agent.weight.data.fill_(value)
            b.publish(agent)
        assert (b.get()[0].steps["agent/weight"] == 2.0).all()
        assert (b.collect().steps["agent/weight"] == 5.0).all()


def test_publishing_another_agent_names_what_differs() -> None:
    with batcher(make_agent=Weighted) as b:
        agent = Weighted(b.specs)
        agent.weight = torch.nn.Parameter(torch.zeros(3))
        with pytest.raises(AgentError, match="weight"):
            b.publish(agent)


@pytest.mark.parametrize("workers", ["local", "process"])
def test_an_environment_that_raises_is_named_with_its_traceback(workers: str) -> None:
    broken = partial(make, ID, kwargs={"break_at": 7})
    with batcher(broken, workers=workers, on_failure="raise") as b:
        b.collect()
        with pytest.raises(EnvironmentFault, match="the ledger tore") as caught:
            b.collect()
    assert caught.value.__cause__ is not None
    assert str(env_seed(3, 0)) in str(caught.value) or str(env_seed(3, 3)) in str(caught.value)


@pytest.mark.parametrize("workers", ["local", "process"])
def test_a_nan_is_found_before_it_is_handed_over(workers: str) -> None:
    broken = partial(make, ID, kwargs={"break_at": 7, "how": "nan"})
    with batcher(broken, workers=workers) as b:
        b.collect()
        with pytest.raises(EnvironmentFault, match=r"obs.*not finite.*environment"):
            b.collect()
    with batcher(broken, workers=workers, check_finite=False) as b:
        b.collect()
        assert b.collect().steps["next/obs"].isnan().any()


@pytest.mark.parametrize("mode", ["per_instance", "next_step"])
def test_a_nan_in_a_final_observation_is_found_though_the_reset_writes_over_it(mode: str) -> None:
    # The seed gives a first episode of known length: its last observation is the one that breaks.
    length = episode_length(env_seed(3, 0) % 1000, 0)
    how = {"break_at": length, "how": "nan"}
    if mode == "per_instance":
        broken = partial(make, ID, kwargs=how)
    else:
        broken = partial(make, VECTOR_ID, vectorization="native", kwargs={"mode": "NextStep", **how})
    with (
        batcher(broken, num_workers=1, envs_per_worker=1, num_steps=12) as b,
        pytest.raises(EnvironmentFault, match=r"not finite.*environment 0"),
    ):
        b.collect()


def test_a_worker_that_dies_is_named_and_leaves_no_other_behind() -> None:
    dying = partial(make, ID, kwargs={"break_at": 7, "how": "die"})
    b = batcher(dying, workers="process", on_failure="raise")
    b.collect()
    with pytest.raises(WorkerError, match=r"worker \d.*exit status 7"):
        b.collect()
    assert not any(handle.is_alive for handle in b._handles)
    with pytest.raises(UserError, match="closed"):
        b.collect()
    b.close()


def _scheduling_class(worker: object) -> int:
    return os.sched_getscheduler(0)


@pytest.mark.skipif(sys.platform != "linux", reason="classes of Linux's scheduler")
def test_workers_do_not_push_others_off_a_core_when_they_are_woken() -> None:
    own = os.sched_getscheduler(0)
    with batcher(workers="process") as running:
        expected = os.SCHED_BATCH if own == os.SCHED_OTHER else own
        assert running.call(_scheduling_class) == [expected, expected]
    assert os.sched_getscheduler(0) == own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no action", "no 'action'"),
        ("wrong dtype", "float32"),
        ("wrong rows", "rows"),
        ("unknown input", "prev_reward"),
        ("no state", r"Broken.forward\(\) must return two things, the outputs and the new state, got one DictTensor"),
    ],
)
def test_an_agent_that_breaks_the_contract_is_refused_before_anything_is_stepped(change: str, message: str) -> None:
    with batcher(make_agent=partial(Broken, change=change)) as b, pytest.raises(AgentError, match=message):
        b.collect()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("value", r"Columns.forward\(\): 'value' has shape \[6, 1\] for 6 rows, expected one number a row, \[6\]"),
        ("log_prob", r"Columns.log_prob\(\) has shape \[6, 1\] for 6 rows, expected one number a row, \[6\]"),
    ],
)
def test_columns_where_a_loss_wants_one_number_a_step_are_refused_before_they_broadcast(
    change: str, message: str
) -> None:
    settings = {"make_agent": partial(Columns, change=change), "num_workers": 1, "envs_per_worker": 6}
    with batcher(**settings) as b, pytest.raises(AgentError, match=message):
        b.collect()


class Columns(ActorCriticAgent):
    """Forgets to squeeze its value, or its log-probability."""

    def __init__(self, specs, change: str) -> None:
        super().__init__()
        self.change = change
        self.head = ActionHead(specs.action, log_std_init=0.0)
        self.policy = nn.Linear(specs.observation["obs"].numel, self.head.num_parameters + 1)

    def forward(self, observation, state, agent_info, taken=None):
        *parameters, value = self.policy(observation["obs"]).split([self.head.num_parameters, 1], dim=-1)
        fields = self.head.fields(parameters[0])
        return DictTensor({**fields, "value": value if self.change == "value" else value.squeeze(-1)}), state

    def act(self, outputs, agent_info, generator):
        return DictTensor(self.head.sample(outputs, None, generator))

    def log_prob(self, outputs, taken):
        log_prob = self.head.log_prob(outputs, taken)
        return log_prob.unsqueeze(-1) if self.change == "log_prob" else log_prob


class Broken(Parity):
    def __init__(self, specs, change: str) -> None:
        super().__init__(specs)
        self.change = change
        if change == "unknown input":
            self.inputs = ("obs", "prev_rewards")

    def forward(self, observation, state, agent_info, taken=None):
        outputs, state = super().forward(observation, state, agent_info, taken)
        return outputs if self.change == "no state" else (outputs, state)

    def act(self, outputs, agent_info, generator):
        taken = super().act(outputs, agent_info, generator)
        if self.change == "no action":
            return taken.exclude("action")
        if self.change == "wrong dtype":
            return DictTensor({"action": taken["action"].float()})
        return taken[:1] if self.change == "wrong rows" else taken


def test_wrong_rows_of_agent_info_are_refused() -> None:
    with batcher() as b, pytest.raises(SpecError, match="2 rows"):
        b.reset(agent_info=DictTensor({"x": torch.zeros(2)}))


def test_close_is_harmless_when_repeated_and_ends_every_process() -> None:
    b = batcher(workers="process")
    b.execute()
    b.close()
    b.close()
    assert not any(handle.is_alive for handle in b._handles)


def test_get_without_blocking_returns_none_until_the_piece_is_there() -> None:
    with batcher(workers="process") as b:
        b.reset()
        os.kill(b._handles[1].pid, signal.SIGSTOP)
        b.execute()
        assert b.get(blocking=False) is None
        with pytest.raises(UserError, match="get"):
            b.execute()
        os.kill(b._handles[1].pid, signal.SIGCONT)
        piece, running = b.get()
        assert running == b.num_envs
        assert piece.is_full()


class Versioned(Parity):
    """Puts out its only parameter."""

    def __init__(self, specs) -> None:
        super().__init__(specs)
        self.number = torch.nn.Parameter(torch.zeros(1))

    def forward(self, observation, state, agent_info, taken=None):
        outputs, state = super().forward(observation, state, agent_info)
        return outputs | DictTensor({"number": self.number.expand(observation.batch_size)}), state

    def act(self, outputs, agent_info, generator):
        return super().act(outputs, agent_info, generator) | outputs.select("number")


@pytest.mark.parametrize("workers", ["local", "process"])
def test_workers_that_run_ahead_say_with_which_weights_and_lose_no_step(workers: str) -> None:
    with batcher(make_agent=Versioned, workers=workers, asynchronous=True) as b:
        agent = Versioned(b.specs)
        rows: list[list[dict]] = [[] for _ in range(b.num_envs)]
        versions = []
        for update in range(6):
            with torch.no_grad():
                agent.number.fill_(update)
            b.publish(agent)
            b.publish(agent)  # again, before anybody used it: the same version
            steps = b.collect()
            versions.append(set(steps.steps["agent/policy_version"].flatten().tolist()))
            assert steps.steps["agent/policy_version"].dtype == torch.int64
            assert torch.equal(steps.steps["agent/number"], steps.steps["agent/policy_version"].float())
            for row in range(b.num_envs):
                rows[row].extend(row_of(steps, row))
        assert versions == [{0}, {0}, {1}, {2}, {3}, {4}]
        for row, found in enumerate(rows):
            wanted = expected_steps(env_seed(3, row), 30)
            assert [step["env/obs"] for step in found] == [step["env/obs"] for step in wanted]
        with pytest.raises(UserError, match="call"):
            b.call(str)
        b.reset()  # drops what they ran ahead with
        assert b.collect().steps["env/is_first"][:, 0].all()


def test_batchers_of_several_ranks_play_what_one_with_all_their_workers_plays() -> None:
    make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
    dealt = Draws({"kind": {"deal": list(range(8))}, "luck": {"uniform": [0, 1]}}, "agent_info")
    settings = {"envs_per_worker": 2, "num_steps": 40, "seed": 3, "workers": "local", "agent_info": dealt}
    found: list[list[Trajectories]] = []
    for num_workers, ranks in ((4, [0]), (2, [0, 1])):
        found.append([])
        for rank in ranks:
            with Batcher(
                make_agent, partial(make, "CartPole-v1"), num_workers=num_workers, rank=rank, **settings
            ) as batcher:
                torch.manual_seed(0)
                batcher.publish(make_agent(batcher.specs))
                batcher.collect()
                found[-1].append(batcher.collect().clone())
    (one,), two = found
    for key in one.steps:
        assert torch.equal(one.steps[key], torch.cat([piece.steps[key] for piece in two])), key
    assert one.steps["agent_info/kind"][:, 0].tolist() == list(range(8))

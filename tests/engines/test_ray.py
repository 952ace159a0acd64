"""Workers in actors of Ray, in a real cluster of two nodes: the same data, and the same rules when something breaks."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from rlx.agent import ActorCritic, replay
from rlx.batcher import Batcher, EpisodeBatcher
from rlx.batcher.worker import Worker
from rlx.data import DictTensor, Trajectories
from rlx.env import make
from rlx.errors import EnvironmentFault, WorkerError
from rlx.seeding import env_seed
from tests.batcher.ledger import Counter
from tests.batcher.tasks import SkilledWithMemory, sample_skill, sample_task
from tests.batcher.test_batcher import MODES
from tests.engines.clusters import TwoNodes, two_nodes
from tests.faults import ledger, sick

pytest.importorskip("ray")
pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore::ResourceWarning")]

SETTINGS = {"num_workers": 2, "envs_per_worker": 3, "num_steps": 16, "seed": 3}
make_cartpole = partial(make, "CartPole-v1")
make_actor_critic = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def on_ray(cluster: TwoNodes) -> dict:
    return {"workers": "ray", "address": cluster.address}


def fields_of(piece: Trajectories) -> dict[str, torch.Tensor]:
    """Return all that a piece holds, what is built when asked for included; behind a row's end there is nothing."""
    steps = piece.steps
    mask = steps.mask()
    found = {key: steps[key].clone() for key in steps.keys()}  # noqa: SIM118
    for value in found.values():
        value[~mask] = 0
    found |= {f"info {key}": value.clone() for key, value in piece.info.items()}
    found |= {f"boot {key}": piece.bootstrap[key].clone() for key in piece.bootstrap.keys()}  # noqa: SIM118
    return found | {"lengths": steps.lengths.clone()}


def experience(make_agent, make_env, pieces: int = 5, **changes) -> tuple[list, list]:
    """Return what a batcher hands over, with weights that change from piece to piece, and its episodes."""
    found = []
    with Batcher(make_agent, make_env, **(SETTINGS | changes)) as batcher:
        agent = make_agent(batcher.specs)
        for _ in range(pieces):
            batcher.publish(agent)
            found.append(fields_of(batcher.collect()))
            with torch.no_grad():
                for value in agent.parameters():
                    value.mul_(1.1)
        return found, list(batcher.episodes)


def same_experience(left: tuple[list, list], right: tuple[list, list]) -> None:
    assert left[1] == right[1]
    for number, (one, other) in enumerate(zip(left[0], right[0], strict=True)):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), (number, key)


def make_seeded(specs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make_actor_critic(specs)


CASES = {
    "a policy": (make_seeded, make_cartpole, {}),
    "ahead by one": (make_seeded, make_cartpole, {"asynchronous": True}),
    "one episode each": (Counter, MODES["per_instance"], {"stop_at_episode_end": True, "evaluation": True}),
    "next step, with a state": (Counter, MODES["next_step"], {}),
    "same step": (Counter, MODES["same_step"], {}),
    "drawn": (SkilledWithMemory, MODES["per_instance"], {"agent_info": sample_skill}),
    "one worker": (make_seeded, make_cartpole, {"num_workers": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_experience_as_processes_do(case: str, on_ray: dict) -> None:
    make_agent, make_env, changes = CASES[case]
    workers = "process" if case == "a policy" else "local"  # which are compared elsewhere
    wanted = experience(make_agent, make_env, **changes, workers=workers)
    same_experience(experience(make_agent, make_env, **changes, **on_ray), wanted)


def test_tasks_reach_the_environments_and_rows_of_information_the_agents(on_ray: dict) -> None:
    def play(**where) -> list:
        found = []
        with Batcher(SkilledWithMemory, partial(make, "tests.batcher.tasks:Told-v0"), **SETTINGS, **where) as batcher:
            rows = DictTensor({"skill": torch.arange(6)}, 6)
            batcher.reset(agent_info=rows, env_info=sample_task)
            for number in range(3):
                batcher.execute(DictTensor({"skill": torch.arange(6) * number}, 6))
                piece = batcher.get()
                assert piece is not None
                found.append(fields_of(piece[0]))
            batcher.reset(agent_info=rows, env_info=sample_task)
            found.append(fields_of(batcher.collect()))
            return found

    same_experience((play(**on_ray), []), (play(workers="local"), []))


def test_whole_episodes_are_those_of_processes(on_ray: dict) -> None:
    def play(**where) -> dict:
        with EpisodeBatcher(make_seeded, make_cartpole, num_episodes=10, **SETTINGS, **where) as batcher:
            batcher.publish(make_seeded(batcher.specs))
            batch = batcher.collect()
            assert batch.batch_size == 10
            return fields_of(batch)

    same_experience(([play(**on_ray)], []), ([play(workers="local")], []))


def test_a_batcher_goes_on_where_another_one_was(on_ray: dict) -> None:
    with Batcher(make_seeded, make_cartpole, **SETTINGS, **on_ray) as first:
        agent = make_seeded(first.specs)
        first.publish(agent)
        for _ in range(3):
            first.collect()
        state = first.state_dict()
        wanted = [fields_of(first.collect()) for _ in range(3)]
    with Batcher(make_seeded, make_cartpole, **SETTINGS, **on_ray) as second:
        second.publish(agent)
        assert second.load_state_dict(state) == []
        same_experience(([fields_of(second.collect()) for _ in range(3)], []), (wanted, []))


def where_it_is(worker: Worker) -> tuple[str, int]:
    import ray

    return ray.util.get_node_ip_address(), os.getpid()


def test_workers_are_spread_over_the_nodes_with_one_thread_each(on_ray: dict) -> None:
    with Batcher(Counter, MODES["per_instance"], **SETTINGS, **on_ray) as batcher:
        assert {ip for ip, _ in batcher.call(where_it_is)} == {"127.0.0.2", "127.0.0.3"}
        assert batcher.call(threads_of) == [1, 1]
        assert not batcher.num_bytes
        batcher.collect()
        assert batcher.num_bytes > 0
        assert batcher.cpu_seconds > 0


def threads_of(worker: Worker) -> int:
    return torch.get_num_threads()


class Account:
    """What an environment's books say was done, and what a batcher handed over."""

    def __init__(self, batcher: Batcher, books: ledger.Books) -> None:
        self.batcher, self.books = batcher, books
        self.pieces: list[list[torch.Tensor]] = []

    def take(self) -> None:
        found = self.batcher.get()
        assert found is not None
        steps, size = found[0].steps, self.batcher.num_envs
        assert (found[0].batch_size, found[1], found[0].num_steps) == (size, size, size * self.batcher.num_steps)
        keys = ("env/obs", "next/obs", "agent/action", "next/reward")
        self.pieces.append([steps[key].clone() for key in keys])

    def check(self, most_lost: int) -> None:
        """Check that every row is whole; and that what was done was handed over, or is among what was dropped.

        Nobody knows how far an actor was that was killed: the whole of its piece is counted.
        """
        columns = [torch.cat(parts, dim=1) for parts in zip(*self.pieces, strict=True)]
        for row in range(self.batcher.num_envs):
            ledger.check_row(*(column[row] for column in columns))
        handed_over = len(self.pieces) * self.batcher.num_envs * self.batcher.num_steps
        lost = self.books.total() - handed_over
        assert 0 <= lost <= self.batcher.dropped_steps == most_lost


@pytest.fixture
def make_ledger(tmp_path: Path) -> tuple:
    path = str(tmp_path / "books")
    books = ledger.Books.create(path)
    return partial(make, ledger.ID, kwargs={"books": path}), books


def test_killed_actors_are_replaced_and_nothing_is_lost_or_doubled(on_ray: dict, make_ledger: tuple) -> None:
    make_env, books = make_ledger
    with Batcher(ledger.Parity, make_env, **SETTINGS, **on_ray) as batcher:
        account = Account(batcher, books)
        for number in range(3):
            victim = batcher.call(where_it_is)[number % 2][1]
            batcher.execute()
            os.kill(victim, signal.SIGKILL)  # before its piece, in it, or behind it
            account.take()
            batcher.execute()
            account.take()
            assert batcher.restarts == number + 1
        account.check(most_lost=3 * 3 * 16)


def test_an_actor_that_is_started_again_acts_with_the_weights_that_its_command_names(on_ray: dict) -> None:
    with Batcher(make_seeded, make_cartpole, **SETTINGS, **on_ray) as batcher:
        agent = make_seeded(batcher.specs)
        with torch.no_grad():
            for value in agent.parameters():
                value.mul_(2.0)
        batcher.publish(agent)
        batcher.collect()
        os.kill(batcher.call(where_it_is)[1][1], signal.SIGKILL)
        piece = batcher.collect()  # with the same weights, which are not put again
        assert batcher.restarts == 1
        with torch.no_grad():
            logits = replay(agent, piece)["logits"]
        torch.testing.assert_close(piece.steps["agent/logits"], logits)


def test_a_killed_node_costs_its_unfinished_pieces_and_ten_seconds_at_most(
    cluster: TwoNodes, on_ray: dict, make_ledger: tuple
) -> None:
    make_env, books = make_ledger
    node = cluster.add("127.0.0.4")
    settings = SETTINGS | {"num_workers": 3, "num_steps": 64}
    with Batcher(ledger.Parity, make_env, **settings, **on_ray) as batcher:
        account = Account(batcher, books)
        victims = [ip for ip, _ in batcher.call(where_it_is)].count("127.0.0.4")
        assert victims
        for _ in range(3):
            batcher.execute()
            account.take()
        batcher.execute()
        cluster.kill(node)
        longest, begun = 0.0, time.monotonic()
        while not batcher.restarts and time.monotonic() - begun < 20:  # its actors may live a little longer
            started = time.monotonic()
            account.take()
            longest = max(longest, time.monotonic() - started)
            batcher.execute()
        account.take()
        assert longest <= 10
        # Once more where an actor failed before the cluster knew that its node is gone, and was put on it again.
        assert victims <= batcher.restarts <= 2 * victims
        for _ in range(3):
            batcher.execute()
            account.take()
        assert {ip for ip, _ in batcher.call(where_it_is)} <= {"127.0.0.2", "127.0.0.3"}
        account.check(most_lost=victims * 3 * 64)


def sick_batcher(way: str, place: str, on_ray: dict, **changes) -> Batcher:
    make_env = partial(make, sick.ID, kwargs={"way": way, "place": place})
    options = {"num_workers": 1, "envs_per_worker": 1, "num_steps": 8, "seed": 1} | on_ray | changes
    batcher = Batcher(make_seeded, make_env, **options)
    batcher.publish(make_seeded(batcher.specs))
    return batcher


def test_an_environment_that_raises_is_started_again_three_times_then_told(on_ray: dict) -> None:
    with (
        pytest.raises(EnvironmentFault, match=r"(?s)worker 0.*out of order.*started again 3 times") as caught,
        sick_batcher("raises", "step", on_ray) as batcher,
    ):
        batcher.collect()
    assert "sick.py" in str(caught.value.__cause__)
    assert batcher.dropped_steps == 3 * 2  # an exception tells how far it was


def test_an_environment_that_cannot_be_made_is_an_error_at_once(on_ray: dict) -> None:
    with pytest.raises(EnvironmentFault, match="out of order") as caught:
        sick_batcher("raises", "constructor", on_ray)
    assert "started again" not in str(caught.value)


@pytest.mark.parametrize(
    ("way", "error", "said"),
    [("exits", WorkerError, "died"), ("system exit", EnvironmentFault, ".*raised SystemExit: 3")],
)
def test_an_environment_that_ends_its_actor_is_told(way: str, error: type[Exception], said: str, on_ray: dict) -> None:
    with (
        pytest.raises(error, match=rf"(?s)worker 0 \(environments 0 to 0\).{{0,2}}{said}.*started again 3 times"),
        sick_batcher(way, "step", on_ray) as batcher,
    ):
        batcher.collect()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("waits", r"environment 0 \(reset seed {seed}\) hangs"),
        ("waits in C", "its node or its process does not answer"),
        ("stops", "its node or its process does not answer"),
    ],
)
def test_an_actor_that_does_nothing_is_found(way: str, said: str, on_ray: dict) -> None:
    started = time.monotonic()
    options = {"step_timeout": 1.0, "on_failure": "raise"}
    with (
        pytest.raises(WorkerError, match="no sign of life") as caught,
        sick_batcher(way, "step", on_ray, **options) as batcher,
    ):
        batcher.collect()
    assert said.format(seed=env_seed(1, 0)).replace("\\", "") in str(caught.value)
    if way == "waits":
        assert "wait_in_python" in str(caught.value.__cause__)
    assert time.monotonic() - started < 30


def test_weights_are_put_into_the_object_store_once_a_version_and_sent_once(on_ray: dict, monkeypatch) -> None:
    import ray

    from rlx.batcher import ray_handle

    put: list[int] = []
    with Batcher(make_seeded, make_cartpole, **SETTINGS, **on_ray) as batcher:
        agent = make_seeded(batcher.specs)
        monkeypatch.setattr(ray_handle.ray, "put", lambda value, put_=ray.put: put.append(value.nbytes) or put_(value))
        for _ in range(3):
            batcher.publish(agent)
            batcher.publish(agent)  # takes the other's place
            batcher.collect()
            batcher.collect()  # the same weights
        assert len(put) == 3
        assert set(put) == {batcher.bytes_by_block["weights"] // 2}


def test_what_cannot_travel_is_refused(on_ray: dict) -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(WorkerError, match="must be picklable to reach an actor of Ray"):
        Batcher(Counter, partial(make, ledger.ID, kwargs={"books": lock}), **SETTINGS, **on_ray)

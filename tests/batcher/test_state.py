"""A batcher that goes on where another one was: the same experience, to the bit."""

import gc
import os
import signal
from functools import partial

import pytest
import torch

from rlx.agent import ActorCritic, Agent
from rlx.batcher import Batcher, EpisodeBatcher
from rlx.batcher.journal import RESEED_AFTER
from rlx.data import DictTensor, Trajectories
from rlx.env import Autoreset, TorchCartPole, VecEnv, make
from rlx.errors import EnvironmentFault
from rlx.run.state import decode, encode
from rlx.seeding import derive, env_seed
from tests.batcher.ledger import ID, Parity

make_agent = partial(ActorCritic, hidden_sizes=[8], activation="tanh", log_std_init=0.0)
ENVIRONMENTS = {
    "again": partial(make, "CartPole-v1"),
    "native": partial(make, "CartPole-v1", vectorization="native"),
    **{
        mode: partial(TorchCartPole, autoreset=mode, max_episode_steps=60, device="cpu")
        for mode in ("none", "next_step", "same_step")
    },
}


def same(left: Trajectories, right: Trajectories) -> bool:
    return set(left.steps) == set(right.steps) and all(torch.equal(left.steps[k], right.steps[k]) for k in left.steps)


def there_and_back(state: dict) -> dict:
    tensors: dict[str, torch.Tensor] = {}
    return decode(encode(state, tensors), tensors)


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("pieces", [0, 3, 30])
def test_a_batcher_goes_on_where_another_one_was(name: str, pieces: int) -> None:
    settings = {"num_workers": 2, "envs_per_worker": 2, "num_steps": 50, "seed": 3, "workers": "local"}
    with Batcher(make_agent, ENVIRONMENTS[name], **settings) as first:
        agent = make_agent(first.specs)
        first.publish(agent)
        for _ in range(pieces):
            first.collect()
        first.episodes.clear()
        state = there_and_back(first.state_dict())
        wanted = [first.collect().clone() for _ in range(30)]
        episodes = list(first.episodes)
    with Batcher(make_agent, ENVIRONMENTS[name], **settings) as second:
        second.publish(agent)
        assert second.load_state_dict(state) == []
        assert all(same(piece, second.collect()) for piece in wanted)
        assert second.episodes == episodes


@pytest.mark.parametrize("kind", [Batcher, EpisodeBatcher])
def test_the_rows_that_pieces_were_last_given_are_those_of_the_batcher_that_goes_on(kind: type[Batcher]) -> None:
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 20, "seed": 3, "workers": "local"}
    drawn, chosen = (DictTensor({"deterministic": torch.tensor([mode, mode])}) for mode in (False, True))
    with kind(make_agent, ENVIRONMENTS["again"], **settings) as first:
        agent = make_agent(first.specs)
        first.reset(drawn)
        first.publish(agent)
        first.collect(chosen)
        state = there_and_back(first.state_dict())
        wanted = first.collect().clone()
    assert wanted.info["agent_info/deterministic"].all()
    with kind(make_agent, ENVIRONMENTS["again"], **settings) as second:
        second.reset(drawn)
        second.publish(agent)
        assert second.load_state_dict(state) == []
        found = second.collect()
        assert found.info["agent_info/deterministic"].all()
        assert same(wanted, found)


@pytest.mark.parametrize("kind", [Batcher, EpisodeBatcher])
def test_a_reset_that_waits_for_the_next_piece_is_part_of_a_state_and_changes_nothing(kind: type[Batcher]) -> None:
    settings = {"num_workers": 2, "envs_per_worker": 2, "num_steps": 5, "seed": 3, "workers": "local"}
    agent = make_agent(make("CartPole-v1", 1).specs)
    found: list[Trajectories] = []
    states: list[dict] = []
    for way in ("saves", "saves nothing", "goes on", "goes on instead of its own reset"):
        with kind(make_agent, ENVIRONMENTS["again"], **settings) as batcher:
            batcher.publish(agent)
            batcher.collect()
            if way != "goes on":
                batcher.reset(wait=False)
            if way == "saves":
                states.append(there_and_back(batcher.state_dict()))
            if way.startswith("goes on"):
                assert batcher.load_state_dict(states[0]) == []
            found.append(batcher.collect().clone())
    assert found[0].steps["env/is_first"][:, 0].all()
    assert [same(found[0], other) for other in found[1:]] == [True, True, True]


class Counts(VecEnv):
    """Makes its tensors anew as it steps, and writes to them as it is reset or takes a state."""

    autoreset, row_reset, own_state = Autoreset.NONE, True, True

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.specs = num_envs, make("CartPole-v1", num_envs).specs
        self.steps = torch.zeros(num_envs)

    def reset(self, out, rows=None, seeds=None, env_info=None) -> None:
        self.steps[slice(None) if rows is None else list(rows)] = 0.0
        out.obs["obs"].copy_(self.steps.unsqueeze(1).expand(-1, 4))

    def step(self, action, out, rows=None) -> None:
        self.steps = self.steps + 1.0
        out.obs["obs"].copy_(self.steps.unsqueeze(1).expand(-1, 4))
        out.reward.fill_(1.0)
        out.terminated.copy_(self.steps >= 3.0)
        out.truncated.zero_()

    def get_state(self) -> dict:
        return {"steps": self.steps.clone()}

    def set_state(self, state) -> None:
        self.steps.copy_(state["steps"])


def test_an_environment_in_torch_may_write_to_what_it_made_in_a_step() -> None:
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 4, "seed": 3, "workers": "local"}
    with Batcher(make_agent, Counts, **settings) as batcher:
        agent = make_agent(batcher.specs)
        batcher.publish(agent)
        batcher.collect()
        batcher.reset()
        assert batcher.collect().steps["env/obs"][0, :, 0].tolist() == [0.0, 1.0, 2.0, 0.0]
        assert batcher.load_state_dict(there_and_back(batcher.state_dict())) == []
        assert batcher.collect().steps["env/obs"][0, :, 0].tolist() == [1.0, 2.0, 0.0, 1.0]


class Looks(Agent):
    """Pushes to the right, but to the left where it sees nothing."""

    def __init__(self, specs: object) -> None:
        super().__init__()

    def forward(self, observation, state, agent_info, taken=None) -> tuple[DictTensor, DictTensor]:
        return DictTensor({"sees": (observation["obs"] != 0).any(-1)}), state

    def act(self, outputs: DictTensor, agent_info: DictTensor, generator: torch.Generator) -> DictTensor:
        return DictTensor({"action": outputs["sees"].long()})


@pytest.mark.parametrize("name", ["none", "same_step"])
def test_rows_that_wait_for_a_reset_and_are_stepped_all_the_same_go_on_where_they_were(name: str) -> None:
    settings = {"num_workers": 1, "envs_per_worker": 4, "num_steps": 1, "seed": 4, "workers": "local"}

    def places(batcher: Batcher) -> torch.Tensor:
        batcher.collect()
        return batcher.call(lambda worker: worker.env.get_state()["state"])[0]

    with Batcher(Looks, ENVIRONMENTS[name], **settings, stop_at_episode_end=True) as first:
        running = 4
        while running == 4:
            first.execute()
            _, running = first.get()
        assert running
        state = there_and_back(first.state_dict())
        wanted = places(first)
    with Batcher(Looks, ENVIRONMENTS[name], **settings, stop_at_episode_end=True) as second:
        second.publish(Looks(second.specs))
        assert second.load_state_dict(state) == []
        assert torch.equal(places(second), wanted)


class Breaks(TorchCartPole):
    """Raises in one of its calls."""

    def __init__(self, num_envs: int, call: str, error: BaseException) -> None:
        super().__init__(num_envs, autoreset="same_step", max_episode_steps=60, device="cpu")

        def broken(*_: object) -> None:
            raise error

        setattr(self, call, broken)


@pytest.mark.parametrize(
    "error", [ValueError("torn"), SystemExit(0)], ids=["raises", "quits"]
)  # in silence, as games do
@pytest.mark.parametrize("call", ["reset", "step", "get_state", "set_state"])
def test_whatever_an_own_environment_raises_is_its_fault_and_says_in_which_call(
    call: str, error: BaseException
) -> None:
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 5, "seed": 3, "workers": "local"}
    reason = f"environment '.*': {call} raised {type(error).__name__}: {error}"
    with Batcher(make_agent, partial(Breaks, call=call, error=error), **settings) as batcher:
        agent = make_agent(batcher.specs)

        def use() -> None:
            batcher.publish(agent)
            batcher.collect()
            batcher.load_state_dict(there_and_back(batcher.state_dict()))

        with pytest.raises(EnvironmentFault, match=reason) as caught:
            use()
    assert caught.value.__cause__ is error


def test_an_own_environment_that_quits_as_it_is_closed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 5, "seed": 3, "workers": "local"}
    with Batcher(make_agent, partial(Breaks, call="close", error=SystemExit(0)), **settings):
        pass
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["close raised SystemExit: 0"]


def test_the_numbers_of_weights_go_on_where_workers_run_ahead() -> None:
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 5, "seed": 3, "workers": "local"}

    def numbers(batcher: Batcher, pieces: int) -> list[int]:
        found: list[int] = []
        for _ in range(pieces):
            batcher.publish(agent)
            found.append(int(batcher.collect().steps["agent/policy_version"][0, 0]))
        return found

    state: dict | None = None
    for expected in ([0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]):  # weights 3 played a piece that went with the stop
        with Batcher(make_agent, ENVIRONMENTS["again"], **settings, asynchronous=True) as batcher:
            agent = make_agent(batcher.specs)
            batcher.publish(agent)
            if state is not None:
                batcher.load_state_dict(state)
            assert numbers(batcher, 4) == expected
            batcher.publish(agent)
            state = there_and_back(batcher.state_dict())


def test_workers_that_ran_ahead_and_died_before_a_checkpoint_die_behind_it_with_new_seeds() -> None:
    settings = {"num_workers": 1, "envs_per_worker": 2, "num_steps": 5, "seed": 3, "asynchronous": True}
    state, seeds = None, set[tuple[float, ...]]()
    for _ in range(2):
        with Batcher(Parity, partial(make, ID), **settings) as b:
            b.publish(Parity(b.specs))
            if state is not None:
                b.load_state_dict(state)
            b.collect()
            os.kill(b._handles[0].pid, signal.SIGKILL)  # pyright: ignore
            b.collect()
            seeds.add(tuple(b.collect().steps["env/obs"][:, 0, 0].tolist()))
            state = there_and_back(b.state_dict())
    assert b.restarts == 2
    assert len(seeds) == 2


def test_a_row_gets_a_new_seed_with_the_first_episode_a_thousand_steps_after_its_last() -> None:
    with Batcher(
        Parity, partial(make, ID), num_workers=1, envs_per_worker=3, num_steps=70, seed=3, workers="local"
    ) as batcher:
        batcher.publish(Parity(batcher.specs))
        first = [env_seed(3, row) for row in range(3)]
        begun = torch.zeros(3, dtype=torch.int64)  # each row's last step at which an episode began before its new seed
        for number in range(20):
            piece = batcher.collect()
            (state,) = batcher.state_dict()["workers"]
            seeds = state["journal"]["seeds"]
            ends = piece.steps["next/terminated"] | piece.steps["next/truncated"]
            for row in range(3):
                at = ends[row].nonzero().squeeze(1) + 1 + 70 * number  # where its episodes of this piece begin
                late = at[(at >= RESEED_AFTER)]
                if not begun[row] and len(late):
                    begun[row] = late[0]
                expected = env_seed(derive(3, "again", 1), row) if begun[row] else first[row]
                if 70 * (number + 1) < begun[row] + RESEED_AFTER or not begun[row]:
                    assert seeds[row] == expected
                    assert len(state["journal"]["actions"]["action"]) == sum(state["journal"]["lengths"])
        assert (begun > 0).all()


def test_what_was_done_is_kept_since_the_last_seed_only() -> None:
    with Batcher(
        make_agent, ENVIRONMENTS["again"], num_workers=1, envs_per_worker=2, num_steps=100, seed=3, workers="local"
    ) as batcher:
        batcher.publish(make_agent(batcher.specs))
        for _ in range(60):
            batcher.collect()
            (state,) = batcher.state_dict()["workers"]
            # An untrained policy's episodes are far shorter than 500 steps, which is CartPole's limit.
            assert max(state["journal"]["lengths"]) < RESEED_AFTER + 500


def test_what_was_done_takes_no_more_tensors_the_shorter_the_pieces_are() -> None:
    def tensors() -> int:
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    with Batcher(
        make_agent, ENVIRONMENTS["again"], num_workers=1, envs_per_worker=2, num_steps=1, seed=3, workers="local"
    ) as batcher:
        batcher.publish(make_agent(batcher.specs))
        batcher.collect()
        before = tensors()
        for _ in range(RESEED_AFTER - 10):
            batcher.collect()
        assert tensors() - before < 100
        (state,) = batcher.state_dict()["workers"]
        assert list(state["journal"]["lengths"]) == [RESEED_AFTER - 9] * 2
        assert len(state["journal"]["actions"]["action"]) == 2 * (RESEED_AFTER - 9)


def test_a_batcher_of_single_steps_goes_on_where_another_one_was() -> None:
    settings = {"num_workers": 1, "envs_per_worker": 3, "num_steps": 1, "seed": 3, "workers": "local"}
    with Batcher(make_agent, ENVIRONMENTS["again"], **settings) as first:
        agent = make_agent(first.specs)
        first.publish(agent)
        for _ in range(1300):  # past a new seed of each row
            first.collect()
        state = there_and_back(first.state_dict())
        wanted = [first.collect().clone() for _ in range(300)]
    with Batcher(make_agent, ENVIRONMENTS["again"], **settings) as second:
        second.publish(agent)
        assert second.load_state_dict(state) == []
        again = there_and_back(second.state_dict())
        assert again["workers"][0]["journal"]["seen"] == state["workers"][0]["journal"]["seen"]
        assert all(same(piece, second.collect()) for piece in wanted)

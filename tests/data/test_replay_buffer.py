"""The replay buffer beside a list of steps in plain Python."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from rlx.data import DictTensor, EnvSpecs, MissingFieldError, ReplayBuffer, Spec, TemporalDictTensor, Trajectories
from rlx.errors import SpecError, UserError

ACTION = {"action": Spec((), torch.int64, "discrete", nvec=(1000,))}
PLAIN = EnvSpecs({"obs": Spec((2,), torch.float32)}, ACTION)
STACKED = EnvSpecs({"obs": Spec((3, 2, 2), torch.uint8, frame_stack_axis=0), "speed": Spec((), torch.float32)}, ACTION)
STACKED_LAST = EnvSpecs({"obs": Spec((2, 2, 3), torch.uint8, frame_stack_axis=2)}, ACTION)


@dataclass
class Step:
    """One step, as the reference keeps it."""

    obs: dict[str, torch.Tensor]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_obs: dict[str, torch.Tensor]
    is_first: bool
    prev_action: int
    prev_reward: float
    state: float | None  # that with which the piece began, at its first step


@dataclass
class Stream:
    """Makes up what B environments go through, piece by piece, and remembers it; numbers are never used twice."""

    specs: EnvSpecs
    num_envs: int
    seed: int
    end: float = 0.15
    cuts: float = 0.0  # how often an episode is cut off inside a piece
    rows: list[list[Step]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.count = 0
        self.rows = [[] for _ in range(self.num_envs)]
        self.now = [self.first() for _ in range(self.num_envs)]
        self.is_first = [True] * self.num_envs

    def number(self) -> int:
        self.count += 1
        return self.count

    def chance(self, probability: float) -> bool:
        return bool(torch.rand(1, generator=self.generator) < probability)

    def first(self) -> dict[str, torch.Tensor]:
        """Return an observation of an episode's start; what its older frames are is the environment's own affair."""
        return {key: self.fresh(spec, spec.shape) for key, spec in self.specs.observation.items()}

    def fresh(self, spec: Spec, shape: tuple[int, ...]) -> torch.Tensor:
        if spec.dtype == torch.uint8:
            return torch.randint(0, 256, shape, generator=self.generator, dtype=torch.uint8)
        return torch.full(shape, float(self.number()))

    def following(self, obs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        new = {}
        for key, spec in self.specs.observation.items():
            axis = spec.frame_stack_axis
            if axis is None:
                new[key] = self.fresh(spec, spec.shape)
            else:
                frame = self.fresh(spec, (*spec.shape[:axis], 1, *spec.shape[axis + 1 :]))
                new[key] = torch.cat([obs[key].narrow(axis, 1, spec.shape[axis] - 1), frame], dim=axis)
        return new

    def piece(self, lengths: list[int], cut: bool = False) -> Trajectories:
        """Return the next piece; with `cut`, all episodes begin anew first, as after a batcher's reset()."""
        longest = max(lengths, default=0)
        state = torch.tensor([float(self.number()) for _ in range(self.num_envs)])
        table: list[list[Step]] = []
        for row, length in enumerate(lengths):
            if cut:
                self.now[row], self.is_first[row] = self.first(), True
            taken = []
            for t in range(length):
                if t and self.cuts and self.chance(self.cuts):
                    self.now[row], self.is_first[row] = self.first(), True
                before = None if self.is_first[row] else self.rows[row][-1]
                following = self.following(self.now[row])
                step = Step(
                    self.now[row],
                    self.number() % 1000,
                    float(self.number()),
                    self.chance(self.end),
                    self.chance(self.end),
                    following,
                    self.is_first[row],
                    before.action if before else 0,
                    before.reward if before else 0.0,
                    float(state[row]) if t == 0 else None,
                )
                self.is_first[row] = step.terminated or step.truncated
                self.now[row] = self.first() if self.is_first[row] else following
                self.rows[row].append(step)
                taken.append(step)
            table.append(taken)

        def column(get, like: torch.Tensor) -> torch.Tensor:
            out = torch.zeros(self.num_envs, longest, *like.shape, dtype=like.dtype)
            for row, taken in enumerate(table):
                for t, step in enumerate(taken):
                    out[row, t] = torch.as_tensor(get(step))
            return out

        fields = {}
        for key, spec in self.specs.observation.items():
            fields[f"env/{key}"] = column(lambda s, key=key: s.obs[key], spec.zeros())
            fields[f"next/{key}"] = column(lambda s, key=key: s.next_obs[key], spec.zeros())
        fields["env/is_first"] = column(lambda s: s.is_first, torch.tensor(False))
        fields["env/prev_action"] = column(lambda s: s.prev_action, torch.tensor(0))
        fields["env/prev_reward"] = column(lambda s: s.prev_reward, torch.tensor(0.0))
        fields["agent/action"] = column(lambda s: s.action, torch.tensor(0))
        fields["next/reward"] = column(lambda s: s.reward, torch.tensor(0.0))
        fields["next/terminated"] = column(lambda s: s.terminated, torch.tensor(False))
        fields["next/truncated"] = column(lambda s: s.truncated, torch.tensor(False))
        info = DictTensor({"agent_state/hidden": state, "agent_info/skill": torch.arange(self.num_envs)})
        steps = TemporalDictTensor(fields, lengths)
        return Trajectories(info, steps, DictTensor.empty(0))

    def feed(self, buffer: ReplayBuffer, pieces: int, length: int = 5, ragged: bool = True) -> None:
        for _ in range(pieces):
            lengths = [
                int(torch.randint(0, length + 1, (1,), generator=self.generator)) if ragged else length
                for _ in range(self.num_envs)
            ]
            buffer.add(self.piece(lengths, cut=self.chance(0.1)))

    def by_reward(self) -> dict[float, tuple[int, int]]:
        return {step.reward: (row, t) for row, steps in enumerate(self.rows) for t, step in enumerate(steps)}

    def run(self, row: int, t: int) -> list[Step]:
        """Return the steps from this one to the end of its episode, or of what is known of it."""
        steps = self.rows[row]
        out = [steps[t]]
        while not (out[-1].terminated or out[-1].truncated) and t + 1 < len(steps) and not steps[t + 1].is_first:
            t += 1
            out.append(steps[t])
        return out


def drawn(buffer: ReplayBuffer, count: int = 400, **options) -> Trajectories:
    return buffer.sample(count, torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("specs", [PLAIN, STACKED, STACKED_LAST], ids=["plain", "stacked", "stacked_last"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [None, 0.6])
def test_every_transition_is_one_that_happened(specs: EnvSpecs, seed: int, alpha: float | None) -> None:
    stream = Stream(specs, 3, seed, end=[0.02, 0.15, 0.6][seed % 3])
    buffer = ReplayBuffer(
        specs, capacity=150, num_envs=3, alpha=alpha, extra={"agent_info/skill": Spec((), torch.int64)}
    )
    for pieces in (1, 3, 10, 40):
        stream.feed(buffer, pieces)
        batch = drawn(buffer)
        places = stream.by_reward()
        steps = batch.steps
        for i, reward in enumerate(steps["next/reward"][:, 0].tolist()):
            row, t = places[reward]
            step = stream.rows[row][t]
            for key in specs.observation:
                assert torch.equal(steps[f"env/{key}"][i, 0], step.obs[key])
                assert torch.equal(steps[f"next/{key}"][i, 0], step.next_obs[key])
            assert steps["agent/action"][i, 0] == step.action
            assert steps["next/terminated"][i, 0] == step.terminated
            assert steps["next/truncated"][i, 0] == step.truncated
            assert batch.info["agent_info/skill"][i] == row


@pytest.mark.parametrize("specs", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("seed", range(3))
def test_the_newest_steps_of_each_environment_are_all_there_and_are_drawn_evenly(specs: EnvSpecs, seed: int) -> None:
    stream = Stream(specs, 3, seed)
    buffer = ReplayBuffer(specs, capacity=120, num_envs=3)
    stream.feed(buffer, 60)
    counts: dict[float, int] = {}
    for reward in drawn(buffer, 100_000).steps["next/reward"][:, 0].tolist():
        counts[reward] = counts.get(reward, 0) + 1
    kept = [sorted(t for r, t in map(stream.by_reward().get, counts) if r == row) for row in range(3)]
    for row, times in enumerate(kept):
        newest = len(stream.rows[row])
        assert times == list(range(newest - len(times), newest))  # the newest, and none left out
        ends = sum(step.terminated or step.truncated for step in stream.rows[row][-len(times) :])
        spent = ends * (3 if specs is STACKED else 1)
        assert len(times) + spent >= 40 - 10  # the rest: cut episodes, and what the newest frames have made unusable
    assert len(counts) == len(buffer)
    expected = 100_000 / len(counts)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("n_step", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_n_step_transitions_sum_to_the_end_of_the_episode_and_never_beyond(n_step: int, seed: int) -> None:
    stream = Stream(PLAIN, 3, seed)
    buffer = ReplayBuffer(PLAIN, capacity=200, num_envs=3)
    first_step = {}
    for _ in range(4):
        stream.feed(buffer, 8)
        batch = drawn(buffer, n_step=n_step, gamma=0.5)
        for name in ("next/reward", "next/discount"):
            assert batch.steps[name].dtype == torch.float32
            assert buffer.sample(4, torch.Generator()).steps[name].dtype == torch.float32
        for row, steps in enumerate(stream.rows):
            first_step |= {step.action: (row, t) for t, step in enumerate(steps)}  # the newest of that number
        for i in range(400):
            row, t = first_step[int(batch.steps["agent/action"][i, 0])]
            run = stream.run(row, t)[:n_step]
            assert batch.steps["next/reward"][i, 0] == pytest.approx(sum(0.5**k * s.reward for k, s in enumerate(run)))
            assert batch.steps["next/discount"][i, 0] == 0.5 ** len(run)
            assert torch.equal(batch.steps["next/obs"][i, 0], run[-1].next_obs["obs"])
            assert batch.steps["next/terminated"][i, 0] == run[-1].terminated
            assert batch.steps["next/truncated"][i, 0] == run[-1].truncated


@pytest.mark.parametrize("specs", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("cuts", [0.3, 1.0])
def test_an_episode_that_is_cut_off_inside_a_piece_keeps_what_followed_its_last_step(
    specs: EnvSpecs, cuts: float
) -> None:
    stream = Stream(specs, 3, 0, end=0.1, cuts=cuts)
    buffer = ReplayBuffer(specs, capacity=300, num_envs=3)
    for _ in range(5):
        stream.feed(buffer, 6)
        places, steps = stream.by_reward(), drawn(buffer).steps
        for i, reward in enumerate(steps["next/reward"][:, 0].tolist()):
            row, t = places[reward]
            assert torch.equal(steps["env/obs"][i, 0], stream.rows[row][t].obs["obs"])
            assert torch.equal(steps["next/obs"][i, 0], stream.rows[row][t].next_obs["obs"])
        sequences = buffer.sample_sequences(64, torch.Generator().manual_seed(0), num_steps=4).steps
        for i, reward in enumerate(sequences["next/reward"][:, 0].tolist()):
            assert sequences.lengths[i] == len(stream.run(*places[reward])[:4])


@pytest.mark.parametrize("specs", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_sequences_are_runs_of_one_episode_with_the_states_that_they_began_with(
    specs: EnvSpecs, recurrent: bool, seed: int
) -> None:
    stream = Stream(specs, 3, seed, end=[0.02, 0.1, 0.5][seed % 3])
    state = {"state": {"hidden": Spec((), torch.float32)}, "state_every": 5} if recurrent else {}
    buffer = ReplayBuffer(specs, capacity=300, num_envs=3, **state)
    for _ in range(5):
        stream.feed(buffer, 12, ragged=seed >= 3)
        batch = buffer.sample_sequences(64, torch.Generator().manual_seed(seed), num_steps=8)
        places, steps = stream.by_reward(), batch.steps
        for i in range(64):
            row, t = places[steps["next/reward"][i, 0].item()]
            run = stream.run(row, t)[:8]
            assert steps.lengths[i] == len(run)
            for k, step in enumerate(run):
                for key in specs.observation:
                    assert torch.equal(steps[f"env/{key}"][i, k], step.obs[key])
                    assert torch.equal(steps[f"next/{key}"][i, k], step.next_obs[key])
                assert steps["env/is_first"][i, k] == step.is_first
                assert steps["env/prev_action"][i, k] == step.prev_action
                assert steps["env/prev_reward"][i, k] == step.prev_reward
                assert steps["next/reward"][i, k] == step.reward
            if recurrent and not run[0].is_first:
                assert batch.info["agent_state/hidden"][i] == run[0].state
        bootstrap = batch.bootstrap
        ends = {int(row): int(time) for row, time in zip(bootstrap["row"], bootstrap["time"], strict=True)}
        for i in range(64):
            last = int(steps.lengths[i]) - 1
            assert ends.get(i) == (None if steps["next/terminated"][i, last] else last)
        assert torch.equal(bootstrap["obs"], steps["next/obs"][bootstrap["row"], bootstrap["time"]])
        assert torch.equal(bootstrap["prev_reward"], steps["next/reward"][bootstrap["row"], bootstrap["time"]])
        assert torch.equal(bootstrap["prev_action"], steps["agent/action"][bootstrap["row"], bootstrap["time"]])


@pytest.mark.parametrize("specs", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("told", [True, False])
def test_what_was_done_before_a_piece_that_follows_nothing_is_as_the_piece_tells_it(
    specs: EnvSpecs, told: bool
) -> None:
    stream = Stream(specs, 3, 0, end=0.05)
    state = {"hidden": Spec((), torch.float32)}
    buffer, again = (ReplayBuffer(specs, capacity=210, num_envs=3, state=state, state_every=5) for _ in range(2))
    alone = 0
    for number in range(60):
        piece = stream.piece([5, 5, 5])
        if number % 3 == 0:  # never the first ones of an episode alone, nor those before the others
            continue
        piece = piece if told else piece.exclude("env/prev_action", "env/prev_reward")
        buffer.add(piece)
        again.load_state_dict(buffer.state_dict())
        places, steps = stream.by_reward(), again.sample_sequences(64, torch.Generator(), num_steps=4).steps
        for i in range(64):
            row, t = places[steps["next/reward"][i, 0].item()]
            step = stream.rows[row][t]
            follows = bool(t) and (t // 5 % 3 != 1 or t % 5 > 0)  # the step before is there
            alone += not follows and not step.is_first
            known = told or follows
            assert steps["env/prev_action"][i, 0] == (step.prev_action if known else 0)
            assert steps["env/prev_reward"][i, 0] == (step.prev_reward if known else 0.0)
    assert alone > 100


def test_a_recurrent_agents_sequences_begin_at_every_piece_and_every_episode() -> None:
    stream = Stream(PLAIN, 2, 0)
    buffer = ReplayBuffer(PLAIN, capacity=400, num_envs=2, state={"hidden": Spec((), torch.float32)}, state_every=5)
    for _ in range(20):
        buffer.add(stream.piece([5, 5]))
    expected = {step.reward for steps in stream.rows for step in steps if step.is_first or step.state is not None}
    batch = buffer.sample_sequences(20_000, torch.Generator().manual_seed(0), num_steps=2)
    assert set(batch.steps["next/reward"][:, 0].tolist()) == expected
    assert len(buffer) == len(expected)


def test_states_that_were_forgotten_begin_no_sequence() -> None:
    stream = Stream(PLAIN, 2, 3, end=0.0)
    buffer = ReplayBuffer(PLAIN, capacity=400, num_envs=2, state={"hidden": Spec((), torch.float32)}, state_every=50)
    for _ in range(30):  # pieces of one step, where 50 were promised: there is no room for so many states
        buffer.add(stream.piece([1, 1]))
    batch = buffer.sample_sequences(2000, torch.Generator().manual_seed(0), num_steps=2)
    places = stream.by_reward()
    for i, reward in enumerate(batch.steps["next/reward"][:, 0].tolist()):
        row, t = places[reward]
        step = stream.rows[row][t]
        assert step.is_first or step.state == batch.info["agent_state/hidden"][i]
    assert len(buffer) == 2 * (1 + buffer._states.num_pieces)


def test_priorities_decide_how_often_a_step_is_drawn_and_weights_make_up_for_it() -> None:
    stream = Stream(PLAIN, 1, 0, end=0.0)
    buffer = ReplayBuffer(PLAIN, capacity=100, num_envs=1, alpha=0.5)
    buffer.add(stream.piece([4]))
    generator = torch.Generator().manual_seed(0)
    slots = buffer.sample(64, generator).info["slot"].unique()
    buffer.update_priorities(slots, torch.tensor([1.0, -4.0, 9.0, 16.0]))
    batch = buffer.sample(10_000, generator, beta=1.0)
    counts = torch.bincount(batch.info["slot"])[slots]
    torch.testing.assert_close(counts / 10_000, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=1e-3, rtol=0)
    place = torch.searchsorted(slots, batch.info["slot"])
    torch.testing.assert_close(batch.info["weight"], torch.tensor([1.0, 1 / 2, 1 / 3, 1 / 4])[place], atol=1e-5, rtol=0)
    half = buffer.sample(1000, generator, beta=0.5)
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0])[torch.searchsorted(slots, half.info["slot"])] ** -0.5
    torch.testing.assert_close(half.info["weight"], expected, atol=1e-5, rtol=0)


def test_new_steps_have_the_greatest_priority_so_far() -> None:
    stream = Stream(PLAIN, 1, 0, end=0.0)
    buffer = ReplayBuffer(PLAIN, capacity=100, num_envs=1, alpha=1.0)
    buffer.add(stream.piece([4]))
    generator = torch.Generator().manual_seed(0)
    slots = buffer.sample(64, generator).info["slot"].unique()
    buffer.update_priorities(slots, torch.tensor([1.0, 2.0, 3.0, 8.0]))
    buffer.add(stream.piece([2]))
    drawn_slots = buffer.sample(30_000, generator).info["slot"]
    new = ~torch.isin(drawn_slots, slots)
    assert new.float().mean().item() == pytest.approx(16 / 30, abs=0.01)


def test_priorities_of_steps_that_were_overwritten_since_are_let_go() -> None:
    stream = Stream(PLAIN, 1, 0, end=0.0)
    buffer = ReplayBuffer(PLAIN, capacity=20, num_envs=1, alpha=1.0)
    buffer.add(stream.piece([10]))
    slots = torch.arange(20)
    buffer.update_priorities(slots, torch.full((20,), 5.0))
    assert len(buffer) == 10
    drawn(buffer)
    assert set(drawn(buffer).info["slot"].tolist()) <= set(range(10))


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_buffer_restored_goes_on_as_the_first_would_have(disk: bool, recurrent: bool, tmp_path) -> None:
    options = {"alpha": 0.6, "capacity": 200, "num_envs": 3}
    if recurrent:
        options |= {"state": {"hidden": Spec((), torch.float32)}, "state_every": 50}  # more pieces than states
    first = ReplayBuffer(STACKED, **options)
    again = ReplayBuffer(STACKED, **options, directory=tmp_path / "kept" if disk else None)
    streams = [Stream(STACKED, 3, 5), Stream(STACKED, 3, 5)]
    streams[0].feed(first, 30)
    streams[1].feed(ReplayBuffer(STACKED, **options), 30)
    state = {
        key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in first.state_dict().items()
    }
    again.load_state_dict(state)
    for pieces in (0, 2, 18):
        streams[0].feed(first, pieces)
        streams[1].feed(again, pieces)
        found = [buffer.sample(50, torch.Generator().manual_seed(9)) for buffer in (first, again)]
        for key in found[0].steps:
            assert torch.equal(found[0].steps[key], found[1].steps[key]), key
        for key in found[0].info:
            assert torch.equal(found[0].info[key], found[1].info[key]), key
        assert len(first) == len(again)
        assert first.num_added == again.num_added
    if disk:
        assert not list((tmp_path / "kept").iterdir())  # room on the disk without a name: nothing to clean up
        assert f"{tmp_path / 'kept'}/rlx-" in Path("/proc/self/maps").read_text()


def test_another_buffers_state_is_refused() -> None:
    small = ReplayBuffer(PLAIN, capacity=20, num_envs=2)
    with pytest.raises(SpecError, match=r"20 slots .* 40"):
        ReplayBuffer(PLAIN, capacity=40, num_envs=2).load_state_dict(small.state_dict())


def test_a_million_atari_steps_take_less_than_seven_and_a_half_gib_and_that_is_known_beforehand() -> None:
    atari = EnvSpecs({"obs": Spec((4, 84, 84), torch.uint8, frame_stack_axis=0)}, ACTION)
    with pytest.raises(SpecError, match=r"takes .* TiB, but memory has .* left; lower algo.buffer_size"):
        ReplayBuffer(atari, capacity=10**12, num_envs=8)
    buffer = ReplayBuffer(atari, capacity=1000, num_envs=8, alpha=0.5)
    assert buffer.num_bytes * 1000 < 7.5 * 2**30
    kept = sum(memory.nbytes for memory in buffer._rings.fields.values())
    assert kept <= buffer.num_bytes < 1.02 * kept


def test_what_does_not_fit_is_refused_by_name(tmp_path) -> None:
    stream = Stream(PLAIN, 2, 0)
    buffer = ReplayBuffer(PLAIN, capacity=16, num_envs=2)
    with pytest.raises(SpecError, match=r"raise algo\.buffer_size"):
        buffer.add(stream.piece([9, 9]))
    with pytest.raises(SpecError, match="expected pieces of 2 environments, got 3"):
        buffer.add(Stream(PLAIN, 3, 0).piece([1, 1, 1]))
    with pytest.raises(UserError, match="empty"):
        buffer.sample(4, torch.Generator())
    with pytest.raises(UserError, match="alpha"):
        buffer.update_priorities(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(SpecError, match=rf"but '{tmp_path}' has .* left"):
        ReplayBuffer(PLAIN, capacity=10**14, num_envs=2, directory=tmp_path / "new" / "one")
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"file/in' cannot hold .* KiB: Not a directory"):
        ReplayBuffer(PLAIN, capacity=1000, num_envs=2, directory=tmp_path / "file" / "in")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "agent/action",
            torch.full((2, 1), 0.7),
            r"'agent/action' is torch.float32 of shape \[2, 1\]; expected torch.int64",
        ),
        ("agent/action", torch.zeros(2, 1, 4, dtype=torch.int64), r"of shape \[2, 1, 4\]; .* of shape \[2, 1\]"),
        ("next/obs", torch.zeros(2, 1, 3), r"'next/obs' .* \[2, 1, 3\]; expected torch.float32 of shape \[2, 1, 2\]"),
        ("next/terminated", torch.zeros(2, 1), "'next/terminated' is torch.float32 .* expected torch.bool"),
        (
            "agent_info/skill",
            torch.zeros(2),
            r"'agent_info/skill' is torch.float32 of shape \[2\]; expected torch.int64",
        ),
    ],
)
def test_a_piece_made_by_hand_is_refused_where_its_numbers_would_be_cast_or_stretched(
    field: str, value: torch.Tensor, message: str
) -> None:
    buffer = ReplayBuffer(PLAIN, capacity=16, num_envs=2, extra={"agent_info/skill": Spec((), torch.int64)})
    piece = Stream(PLAIN, 2, 0).piece([1, 1])
    info, steps = piece.info, piece.steps
    if field in info:
        info = info.exclude(field) | DictTensor({field: value})
    else:
        steps = steps.exclude(field) | TemporalDictTensor({field: value}, [1, 1])
    with pytest.raises(SpecError, match=message):
        buffer.add(Trajectories(info, steps, piece.bootstrap))
    assert len(buffer) == 0


def test_a_field_to_keep_that_no_step_has_is_refused_with_the_nearest_that_there_is() -> None:
    buffer = ReplayBuffer(PLAIN, capacity=16, num_envs=2, extra={"agent_info/skil": Spec((), torch.int64)})
    message = r"replay: 'agent_info/skil', which extra= names, .* Did you mean 'agent_info/skill'\?"
    with pytest.raises(MissingFieldError, match=message):
        buffer.add(Stream(PLAIN, 2, 0).piece([1, 1]))


def test_counts_below_one_are_refused_by_name() -> None:
    buffer, draws = ReplayBuffer(PLAIN, capacity=40, num_envs=2), torch.Generator()
    buffer.add(Stream(PLAIN, 2, 0).piece([3, 3]))
    with pytest.raises(UserError, match=r"sample\(n_step=...\): got 0, expected 1 or more"):
        buffer.sample(4, draws, n_step=0)
    with pytest.raises(UserError, match=r"sample\(batch_size=...\): got 0"):
        buffer.sample(0, draws)
    with pytest.raises(UserError, match=r"sample_sequences\(num_steps=...\): got 0"):
        buffer.sample_sequences(4, draws, num_steps=0)
    for counts in ({"capacity": 0, "num_envs": 2}, {"capacity": 10, "num_envs": 0}):
        with pytest.raises(UserError, match="got 0"):
            ReplayBuffer(PLAIN, **counts)


def test_more_steps_than_the_buffer_holds_of_an_environment_are_refused() -> None:
    buffer, draws = ReplayBuffer(PLAIN, capacity=40, num_envs=2), torch.Generator()
    buffer.add(Stream(PLAIN, 2, 0).piece([3, 3]))
    held = buffer.num_slots // 2
    buffer.sample(4, draws, n_step=held)
    with pytest.raises(UserError, match=rf"sample\(n_step=...\): got {held + 1}, but the buffer holds {held} steps of"):
        buffer.sample(4, draws, n_step=held + 1)
    with pytest.raises(UserError, match=r"sample_sequences\(num_steps=...\): got 1000000000, but"):
        buffer.sample_sequences(4, draws, num_steps=10**9)


def test_numbers_that_the_buffer_is_too_small_for_are_refused_before_anything_is_added() -> None:
    buffer = ReplayBuffer(PLAIN, capacity=40, num_envs=2)  # 20 of each
    buffer.check(piece=17, n_step=20, sequence=20)
    with pytest.raises(SpecError, match=r"a piece takes 18 slots of an environment, and there are 20"):
        buffer.check(piece=18)
    with pytest.raises(UserError, match=r"algo\.n_step: got 21, but the replay buffer holds 20 steps of each of 2"):
        buffer.check(piece=1, n_step=21)
    with pytest.raises(UserError, match=r"algo\.sequence_length and algo\.burn_in_steps: got 21, but"):
        buffer.check(piece=1, sequence=21)


def test_steps_may_begin_with_priorities_of_their_own() -> None:
    stream = Stream(PLAIN, 2, 0)
    buffer = ReplayBuffer(PLAIN, capacity=100, num_envs=2, alpha=1.0)
    for _ in range(3):
        piece = stream.piece([4, 2])
        slots = buffer.add(piece)
        buffer.update_priorities(slots, piece.steps.flatten()["next/reward"] % 2)  # of odd numbers 1, of others 0
    assert set((drawn(buffer).steps["next/reward"] % 2).flatten().tolist()) == {1.0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_priority_that_is_not_finite_is_refused_and_changes_nothing(wrong: float) -> None:
    stream = Stream(PLAIN, 2, 0)
    buffer = ReplayBuffer(PLAIN, capacity=100, num_envs=2, alpha=1.0)
    slots = buffer.add(stream.piece([4, 4]))
    with pytest.raises(UserError, match=f"an error of {wrong}, expected finite"):
        buffer.update_priorities(slots[:2], torch.tensor([1.0, wrong]))
    assert len(drawn(buffer).info["slot"].unique()) == 8


def test_a_buffer_that_joins_in_the_middle_of_an_episode_has_the_frames_before() -> None:
    stream = Stream(STACKED, 2, 0, end=0.0)
    buffer = ReplayBuffer(STACKED, capacity=60, num_envs=2)
    stream.piece([4, 4])
    buffer.add(stream.piece([3, 3]))
    batch, places = drawn(buffer), stream.by_reward()
    for i, reward in enumerate(batch.steps["next/reward"][:, 0].tolist()):
        row, t = places[reward]
        assert torch.equal(batch.steps["env/obs"][i, 0], stream.rows[row][t].obs["obs"])
    assert len(buffer) == 6


def test_a_piece_without_steps_changes_nothing() -> None:
    stream = Stream(PLAIN, 2, 0)
    buffer = ReplayBuffer(PLAIN, capacity=40, num_envs=2)
    buffer.add(stream.piece([3, 0]))
    before = len(buffer)
    buffer.add(stream.piece([0, 0]))
    buffer.add(stream.piece([0, 2]))
    assert len(buffer) == before + 2


@pytest.mark.parametrize("specs", [PLAIN, STACKED, STACKED_LAST], ids=["plain", "stacked", "stacked_last"])
def test_pieces_that_are_left_out_or_come_in_another_order_make_up_no_transition(specs: EnvSpecs) -> None:
    stream = Stream(specs, 3, 0, end=0.02)
    pieces = [stream.piece([5, 5, 5]) for _ in range(8)]
    buffer = ReplayBuffer(specs, capacity=600, num_envs=3)
    for number in (0, 1, 3, 2, 7, 5, 6):
        buffer.add(pieces[number])
    places = stream.by_reward()
    steps = drawn(buffer).steps
    for i, reward in enumerate(steps["next/reward"][:, 0].tolist()):
        row, t = places[reward]
        for key in specs.observation:
            assert torch.equal(steps[f"env/{key}"][i, 0], stream.rows[row][t].obs[key])
            assert torch.equal(steps[f"next/{key}"][i, 0], stream.rows[row][t].next_obs[key])
    # Those that follow one another are still one: a sequence goes on over the border between 0 and 1, 5 and 6.
    assert buffer.sample_sequences(400, torch.Generator().manual_seed(0), num_steps=10).steps.lengths.max() == 10

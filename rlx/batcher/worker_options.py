"""What a worker is made from, and which of all environments are its own."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rlx.agent.agent import AgentMaker
from rlx.batcher.memory import ADVICE
from rlx.batcher.start import main_is_importable
from rlx.data.storage import check_room
from rlx.env.registry import typed_in
from rlx.env.vec_env import Autoreset, VecEnv
from rlx.errors import UserError
from rlx.seeding import derive, env_seed

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

_WORKER_BYTES = {"local": 16 * 2**10, "process": 8 * 2**20}
"""Less than any worker of this machine takes: its generator and views, and for a process the interpreter."""
_STEP_BYTES = 12
"""Of each step in two slots: a reward and two flags."""


class EnvMaker(Protocol):
    """How a batcher makes its environments: `make_env(num_envs=B)`, picklable."""

    def __call__(self, *, num_envs: int) -> VecEnv:
        """Return `num_envs` new environments, stepped together."""
        ...


def check_sizes(**sizes: int | None) -> None:
    """Check that numbers of things, by name, are at least 1; None stands for a default.

    Raises:
        UserError: one is not.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"{name}: expected an integer >= 1, got {size}")


def check_least_room(workers: str, *, num_workers: int, envs_per_worker: int, num_steps: int) -> None:
    """Refuse what memory surely has no room for, before anything is made: what it is exactly is known much later.

    Args:
        workers: their kind.
        num_workers: how many.
        envs_per_worker: of each.
        num_steps: of a piece.

    Raises:
        UserError: a number is below 1.
        SpecError: there is less memory than the least that all this takes; says both figures.
    """
    check_sizes(num_workers=num_workers, envs_per_worker=envs_per_worker, num_steps=num_steps)
    num_envs = num_workers * envs_per_worker
    check_room(
        num_workers * _WORKER_BYTES.get(workers, 0) + num_envs * num_steps * _STEP_BYTES,
        f"the least for {num_workers:,} workers and {num_steps:,} steps of {num_envs:,} environments",
        advice=ADVICE,
    )


def check_env(env: object, options: "WorkerOptions") -> VecEnv:
    """Return what `make_env` made, where it is what a worker can step.

    Raises:
        UserError: it is no VecEnv, has another number of environments, or rows that nobody can reset.
    """
    if not isinstance(env, VecEnv):
        raise UserError(
            f"make_env returned a {type(env).__name__}, expected a VecEnv: functools.partial(rlx.env.make, ID) "
            "makes one, and so does rlx.env.GymVecEnv(make_one, num_envs)"
        )
    if env.num_envs != options.num_envs:
        raise UserError(
            f"make_env(num_envs={options.num_envs}) returned {env.num_envs} environments of '{env.name}', expected "
            f"{options.num_envs}"
        )
    if env.autoreset is Autoreset.NONE and not env.row_reset:
        raise UserError(f"environment '{env.name}' resets no row itself, and no single row can be reset (row_reset)")
    return env


def _registered() -> "tuple[EnvSpec, ...]":
    return () if main_is_importable() else tuple(typed_in())


@dataclass(frozen=True)
class WorkerOptions:
    """All that a worker is made from; it travels to another process once.

    Attributes:
        index: which of the batcher's workers.
        first_row: index of its first environment among all workers'.
        num_envs: how many environments it has.
        make_env: see `EnvMaker`.
        make_agent: see `AgentMaker`.
        seed: the run's seed.
        evaluation: whether environment seeds come from the evaluation half.
        stop_at_episode_end: see `Rollout`.
        check_finite: whether pieces are checked, by `PieceCheck`.
        incarnation: how many processes this worker has had before; its environments' seeds depend on it, so that
            nothing is played twice.
        workers_before: workers of the ranks before this one; seeds depend on the place among all.
        envs_before: environments of these.
        registered: what the program itself has registered with Gymnasium, where no worker can import the program.
    """

    index: int
    first_row: int
    num_envs: int
    make_env: EnvMaker
    make_agent: AgentMaker
    seed: int
    evaluation: bool
    stop_at_episode_end: bool
    check_finite: bool
    incarnation: int = 0
    workers_before: int = 0
    envs_before: int = 0
    registered: "tuple[EnvSpec, ...]" = field(default_factory=_registered)

    @property
    def columns(self) -> slice:
        """Return which of all environments are this worker's."""
        return slice(self.first_row, self.first_row + self.num_envs)

    @property
    def root(self) -> int:
        """Return the seed from which those of this incarnation's environments and draws derive."""
        return derive(self.seed, "incarnation", self.incarnation) if self.incarnation else self.seed

    @property
    def env_seeds(self) -> list[int]:
        """Return the reset seed with which each environment of this incarnation began."""
        return self.seeds_of(self.root)

    def seeds_of(self, root: int) -> list[int]:
        """Return the reset seed of each environment."""
        return [env_seed(root, row, evaluation=self.evaluation) for row in self.places]

    def act_seed(self, root: int) -> int:
        """Return the seed of the agent's draws."""
        return derive(root, "evaluation" if self.evaluation else "act", self.workers_before + self.index)

    def info_seed(self, root: int) -> int:
        """Return the seed of what samplers draw."""
        return derive(root, "evaluation") if self.evaluation else root

    @property
    def places(self) -> range:
        """Return which of the environments of all ranks are this worker's."""
        first = self.envs_before + self.first_row
        return range(first, first + self.num_envs)

"""Hindsight for algorithms with a replay buffer: what other goals would have paid, asked of an environment."""

from collections.abc import Generator
from contextlib import contextmanager

from rlx.batcher import Batcher
from rlx.data import Hindsight
from rlx.errors import ConfigError

_ACHIEVED, _DESIRED = "obs/achieved_goal", "obs/desired_goal"


@contextmanager
def hindsight_of(ratio: float | None, batcher: Batcher) -> Generator[Hindsight | None, None, None]:
    """Yield what relabels a replay buffer's transitions; None where `ratio` is.

    The workers have the environments, the learner has the buffer: so those of one worker are made here once more, to be
    asked what other goals would have paid. They are never reset nor stepped.

    Args:
        ratio: `algo.hindsight`, part of the transitions that get another goal; None for none.
        batcher: its environments pursue goals.

    Raises:
        ConfigError: they do not.
    """
    if ratio is None:
        yield None
        return
    seen = batcher.specs.observation
    missing = [key.removeprefix("obs/") for key in (_ACHIEVED, _DESIRED) if key not in seen]
    if missing:
        raise ConfigError(
            f"algo.hindsight: got {ratio}, but the environment shows no {' and no '.join(missing)} (it shows "
            f"{', '.join(seen)}); expected null, or an environment that pursues goals, such as env=BitFlip"
        )
    achieved, desired = seen[_ACHIEVED], seen[_DESIRED]
    if (achieved.shape, achieved.dtype) != (desired.shape, desired.dtype):
        raise ConfigError(
            f"algo.hindsight: achieved_goal is {achieved.dtype} {list(achieved.shape)} and desired_goal "
            f"{desired.dtype} {list(desired.shape)}; expected the same, so that the one can stand for the other"
        )
    with batcher.make_env(num_envs=batcher.envs_per_worker) as env:
        try:
            env.goal_outcome(achieved.zeros(2), desired.zeros(2))  # whoever cannot say it, says so now
        except ConfigError as error:
            raise ConfigError(
                f"algo.hindsight: got {ratio}, but {error}; or algo.hindsight=null, to learn without"
            ) from None
        yield Hindsight(ratio, env.goal_outcome, _ACHIEVED, f"env/{_DESIRED}")

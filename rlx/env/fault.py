"""Faults of the user's environment, told so that the user can find them again."""

from typing import Any

from rlx.errors import EnvironmentFault, RlxError, message_of

RAISED = (Exception, SystemExit)
"""What is an environment's fault when it raises it: `sys.exit()`, as games have it, would end the run in silence."""


def environment_fault(
    name: str,
    what: str,
    *,
    row: int | None = None,
    seed: int | None = None,
    episode: int | None = None,
    step: int | None = None,
) -> EnvironmentFault:
    """Return the error for an environment that raised or broke its contract.

    Args:
        name: the environment's id.
        what: what it did, such as `step raised ValueError: boom`.
        row: which of the environments that are stepped together.
        seed: the last seed that it was reset with.
        episode: how many episodes it has begun since that seed, from 1.
        step: which step of this episode, from 1; 0 for its reset.
    """
    places = {"row": row, "seed": seed, "episode": episode, "step": step}
    where = ", ".join(f"{key} {value}" for key, value in places.items() if value is not None)
    return EnvironmentFault(f"environment '{name}'{f' ({where})' if where else ''}: {what}")


def asked(env: Any, doing: str, *given: Any) -> Any:
    """Return what a method of a VecEnv returns.

    Args:
        env: the environment.
        doing: the method's name.
        given: its arguments.

    Raises:
        EnvironmentFault: it raised, whatever that was.
        RlxError: what it raised, where that tells of itself already.
    """
    try:
        return getattr(env, doing)(*given)
    except RlxError:
        raise
    except RAISED as error:
        raise environment_fault(env.name, raised(doing, error)) from error


def raised(doing: str, error: BaseException) -> str:
    """Return `step raised ValueError: boom`."""
    return f"{doing} raised {type(error).__name__}: {message_of(error)}"

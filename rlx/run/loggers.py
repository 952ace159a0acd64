"""Where a run's rows go, as `logger=[csv,tensorboard,...]` names it, and what a logger is told of its run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rlx.errors import ConfigError
from rlx.run.build import maker
from rlx.run.directory import METRICS, TENSORBOARD
from rlx.run.metrics import CsvSink, MetricSink
from rlx.run.tensorboard import TensorBoardSink


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told of the run whose rows it takes.

    Attributes:
        directory: the run directory, which is there.
        title: what runs: `ppo on CartPole`.
        config: the resolved configuration, plain data.
        env_steps: environment steps so far: 0, or where a resumed run goes on.
        position: what the logger's `position()` had returned when the checkpoint was written from which the run is
            resumed; None for a new run, and for a logger that is new in a resumed one.
    """

    directory: Path
    title: str
    config: Mapping[str, Any]
    env_steps: int = 0
    position: Any = None

    @property
    def is_new(self) -> bool:
        """Return whether the logger is new in a resumed run: what it had written since, if anything, is to go."""
        return self.env_steps > 0 and self.position is None


LoggerMaker = Callable[[RunInfo], MetricSink]
"""Makes a logger; called once the run directory is there."""


def csv(run: RunInfo) -> MetricSink:
    """Return the logger that writes `metrics.csv`; a resumed run's rows beyond its checkpoint go."""
    return CsvSink(run.directory / METRICS, keep_rows=0 if run.is_new else run.position)


def tensorboard(run: RunInfo, *, hparams: bool) -> MetricSink:
    """Return the logger that writes TensorBoard's events; a resumed run's events beyond its checkpoint go.

    Args:
        run: the run.
        hparams: whether the configuration goes to TensorBoard's HParams tab, too.
    """
    told = hyperparameters(run.config) if hparams else None
    resumed = run.env_steps > 0
    return TensorBoardSink(
        run.directory / TENSORBOARD,
        known={} if run.is_new else run.position,
        purge_step=run.env_steps + 1 if resumed else None,
        hparams=told,
    )


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return what of a configuration tells experiments apart, by dotted key: numbers, flags and text.

    Args:
        config: the resolved configuration. How it is logged, saved and evaluated is left out, and what is null; lists
            become text.
    """
    left_out = ("logger", "checkpoint", "evaluation", "run_dir", "resume")
    return dict(_flatten({key: value for key, value in config.items() if key not in left_out}))


def _flatten(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, bool | float | str]]:
    found: list[tuple[str, bool | float | str]] = []
    for key, value in group.items():
        if isinstance(value, Mapping):
            found += _flatten(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        elif value is not None:
            found.append((f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else str(value)))
    return found


def read_loggers(group: Mapping[str, Any], plain: tuple[str, ...]) -> dict[str, LoggerMaker]:
    """Return the makers of a configuration's loggers, by name, in their order.

    Args:
        group: the configuration's `logger`.
        plain: those of its keys that are no loggers.

    Raises:
        ConfigError: a wrong target, key, type or range.
    """
    makers: dict[str, LoggerMaker] = {}
    for name, values in group.items():
        if name in plain:
            continue
        if not isinstance(values, Mapping):
            members = ",".join(other for other in group if other not in (*plain, name))
            raise ConfigError(
                f"logger.{name}: got {values!r}, expected a logger's own keys; to leave it out: logger=[{members}]"
            )
        makers[name] = maker(f"logger.{name}", values, given=("run",))
    return makers


def logger_targets(group: Mapping[str, Any]) -> set[str]:
    """Return the dotted names of the loggers of a configuration: code that making them would import."""
    members = [cast("Mapping[str, Any]", values) for values in group.values() if isinstance(values, Mapping)]
    return {str(values.get("_target_", "")) for values in members}

"""Loggers of services that keep the runs of many people: Weights & Biases, MLflow. Each needs an extra of rlx."""

import importlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

from rlx.errors import MissingPackageError
from rlx.run.loggers import RunInfo, hyperparameters
from rlx.run.metrics import MetricSink, Row

_MOST_PARAMETERS = 100
"""What MLflow takes in one call."""

Status = Literal["done", "stopped", "failed"]
_MLFLOW_STATUS: Mapping[Status, str] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_WANDB_EXIT_CODE: Mapping[Status, int] = {"done": 0, "stopped": 255, "failed": 1}
"""Weights & Biases has no other word for how a run ended; 255 is what it takes for Ctrl-C itself."""


def wandb(
    run: RunInfo,
    *,
    project: str,
    entity: str | None,
    group: str | None,
    mode: Literal["online", "offline", "disabled"],
) -> MetricSink:
    """Return the logger that sends rows to Weights & Biases; its own files go into the run directory.

    A resumed run goes on in the same run there. Rows that came after the checkpoint are there twice, with the same
    `env_steps`, which is the axis of all.

    Args:
        run: the run.
        project: the project there.
        entity: user or team; None for your default one.
        group: a name that several runs share; None for none.
        mode: `offline` writes files only, for `wandb sync`.

    Raises:
        MissingPackageError: wandb is not installed.
    """
    return _Wandb(_imported("wandb"), run, {"project": project, "entity": entity, "group": group, "mode": mode})


def mlflow(run: RunInfo, *, tracking_uri: str | None, experiment: str) -> MetricSink:
    """Return the logger that sends rows to MLflow, with `env_steps` as the step.

    A resumed run goes on in the same run there.

    Args:
        run: the run.
        tracking_uri: a server or a store, such as `sqlite:///mlflow.db`; None for what `MLFLOW_TRACKING_URI` says.
        experiment: its name; made where it is missing.

    Raises:
        MissingPackageError: mlflow is not installed.
    """
    return _MLflow(_imported("mlflow"), run, tracking_uri, experiment)


def _imported(name: str) -> Any:
    """Import a package, whose own log stays quiet."""
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError.of(f"logger={name}", name, name) from error
    logging.getLogger(name).setLevel(logging.ERROR)
    return package


def _numbers(row: Row) -> dict[str, float]:
    """Return a row's finite numbers."""
    numbers = {key: float(value) for key, value in row.items() if value is not None and not isinstance(value, str)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


class _Wandb:
    """A run of Weights & Biases."""

    status: Status = "done"

    def __init__(self, package: Any, run: RunInfo, where: Mapping[str, Any]) -> None:
        self._run = package.init(
            **where,
            id=run.position,
            resume=None if run.position is None else "allow",
            name=run.directory.name,
            dir=str(run.directory),
            config=dict(run.config),
            settings=package.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, row: Row) -> None:
        self._run.log(_numbers(row))

    def flush(self) -> None:
        """Do nothing: its own process sends what there is."""

    def position(self) -> str:
        return self._run.id

    def close(self) -> None:
        self._run.finish(exit_code=_WANDB_EXIT_CODE[self.status])


class _MLflow:
    """A run of MLflow."""

    status: Status = "done"

    def __init__(self, package: Any, run: RunInfo, tracking_uri: str | None, experiment: str) -> None:
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client: Any = package.MlflowClient(tracking_uri=tracking_uri)
        if run.position is not None:
            self._id: str = run.position
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        where = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self._id = self._client.create_run(where, run_name=run.directory.name).info.run_id
        told = [self._entities.Param(key, str(value)) for key, value in hyperparameters(run.config).items()]
        for start in range(0, len(told), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=told[start : start + _MOST_PARAMETERS])

    def write(self, row: Row) -> None:
        moment, step = int(1000 * time.time()), int(row["env_steps"] or 0)
        metrics = [self._entities.Metric(key, value, moment, step) for key, value in _numbers(row).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        """Do nothing: each row is there when `write` returns."""

    def position(self) -> str:
        return self._id

    def close(self) -> None:
        self._client.set_terminated(self._id, status=_MLFLOW_STATUS[self.status])

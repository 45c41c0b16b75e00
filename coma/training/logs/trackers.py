"""Experiment trackers of `--log-to`: Weights & Biases, MLflow and Trackio.

Server, project and account are set by their own variables: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, TRACKIO_SPACE_ID, ... A run that is resumed is the same run there; its id is in
RUN/trackers.json.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from coma.errors import DataError, UsageError
from coma.installed.installation import installation
from coma.runs.lines import read_object
from coma.runs.names import TRACKERS_NAME
from coma.shards.files import without_credentials, write_atomically
from coma.training.config.options import RunConfig

logger = logging.getLogger(__name__)

_PROJECT = "coma"


class Tracker(Protocol):
    """Receives metrics."""

    id: str
    """The tracker's id of the run."""

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step, without waiting for a network."""

    def close(self, *, failed: bool) -> None:
        """Send what is left, and end the run there, as one that failed or not."""


class _Wandb:
    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = wandb.init(project=project, name=run.name, dir=run, id=known, resume="allow", config=dict(config))
        self.id = str(self._run.id)

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
            mlflow.set_experiment(_PROJECT)
        self.id = mlflow.start_run(run_id=known, run_name=None if known else run.name).info.run_id
        if known is None:
            mlflow.log_params(dict(config))

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=step, synchronous=False)

    def close(self, *, failed: bool) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _Trackio:
    """Trackio resumes by name and lets two runs share one, so the id is part of the name."""

    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None) -> None:
        import trackio

        self.id = known or f"{run.name}-{uuid.uuid4().hex[:8]}"
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        with redirect_stdout(sys.stderr):  # stdout is for the result
            self._run = trackio.init(
                project, self.id, config=dict(config), resume="allow", embed=False, auto_log_gpu=False
            )

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()


_KINDS: dict[str, Callable[..., Tracker]] = {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}


def check_installed(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--log-to {name}: it is not installed here: {installation().install(name)}, or leave it out"
            )


def open_trackers(config: RunConfig, run: Path) -> list[Tracker]:
    """Begin or resume a run in each tracker of --log-to.

    Raises:
        UsageError: a tracker fails, for want of a login or of its server.
    """
    path = run / TRACKERS_NAME
    known: dict[str, str] = {}
    try:
        known = read_object(path) if path.exists() else {}
    except DataError as error:
        logger.warning("%s: new runs are begun in the trackers", error)
    opened: dict[str, Tracker] = {}
    for name in config.trackers:
        try:
            options = json.loads(without_credentials(json.dumps(config.to_json())))
            opened[name] = _KINDS[name](run, options, known.get(name))
        except Exception as error:  # whatever their libraries raise
            close_all(list(opened.values()), failed=True)
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"--log-to {name}: {reason or type(error).__name__}") from error
    if opened:
        ids = {name: tracker.id for name, tracker in opened.items()}
        write_atomically(path, json.dumps(known | ids) + "\n")
    return list(opened.values())


def write_all(trackers: list[Tracker], figures: Mapping[str, float], step: int) -> None:
    """Log the metrics of a step to all trackers; one that fails is dropped, and training continues."""
    for tracker in list(trackers):
        try:
            tracker.write(figures, step)
        except Exception as error:
            logger.warning("%s fails, and gets no more metrics: %s", type(tracker).__name__.strip("_"), error)
            trackers.remove(tracker)


def close_all(trackers: list[Tracker], *, failed: bool) -> None:
    """End the run in all trackers; one that fails is named."""
    for tracker in trackers:
        try:
            tracker.close(failed=failed)
        except Exception as error:
            logger.warning("%s could not be closed: %s", type(tracker).__name__.strip("_"), error)

"""Score a run's checkpoint or an export on a labelled data set, and add a run's scores to its metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coma.errors import DataError, UsageError
from coma.evaluation.extraction.feature_job import extract_on
from coma.evaluation.extraction.processes import BackboneName, Processes, choose_processes
from coma.evaluation.features import Features
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.evaluation.score import BATCH_SIZE, Elsewhere, Progress, labelled_manifests, score
from coma.exports.folder import is_export
from coma.exports.load import load_export
from coma.runs.lines import append_line
from coma.runs.names import METRICS_NAME, checkpoint_step
from coma.runs.read import load_autoencoder, naming_the_weights, run_data, run_of
from coma.shards.files import folder_at, is_remote, without_credentials
from coma.shards.manifest import Manifest

logger = logging.getLogger(__name__)


def score_run(
    run_or_checkpoint: Path | str,
    data: Path | str | None = None,
    *,
    probe: bool = True,
    knn: bool = True,
    protocol: str = "logistic",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    devices: int | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run's newest checkpoint (or the one named) and add the result to RUN/metrics.jsonl.

    An export is scored likewise, and nothing is written into it.

    Args:
        run_or_checkpoint: run folder, one of its checkpoints, or what `coma export` wrote.
        data: sharded data set; None: the one that the run was trained on, which an export does not name.
        probe, knn: what to score.
        protocol: how the probe is fitted, one of `PROTOCOLS`.
        batch_size: images at a time.
        device: "cpu", "cuda"; None: a GPU if there is one.
        devices: number of processes that extract the features, or "auto", one on each GPU; None: this one.
        progress: called after each batch.

    Returns:
        the scores asked for, `step` of the checkpoint, and what they were taken on.

    Raises:
        DataError: no such run or data, no checkpoint, no labels.
        DivergedError: weights or features are not finite.
        UsageError: an export without data.
    """
    run_or_checkpoint = Path(run_or_checkpoint)
    exported = is_export(run_or_checkpoint)
    run, checkpoint = (run_or_checkpoint,) * 2 if exported else run_of(run_or_checkpoint)
    if exported and data is None:
        raise UsageError(f"{run} is an export, which names no data set: name one after it")
    trained_on = None if exported else run_data(run)
    if data is not None:
        data = folder_at(data)
    else:
        assert trained_on is not None
        data = trained_on
        if not is_remote(data) and not data.exists():  # a web server has no folders to ask for
            raise DataError(f"{data}, which {run} was trained on, is not there: name the sharded data set")
        logger.info("data: %s, which the run was trained on", data)
    train, val = labelled_manifests(data)  # before the network is loaded
    if val is None:
        logger.info("%s has no split val: a fifth of train is held out for testing", train.folder.parent)
    processes = choose_processes(devices, device)
    device = processes.devices[0]
    if exported:
        autoencoder, step = load_export(run, device)
    else:
        autoencoder, step = load_autoencoder(checkpoint, device), checkpoint_step(checkpoint)
    with naming_the_weights(checkpoint):
        scores = score(
            autoencoder,
            train,
            val,
            probe=probe,
            knn=knn,
            protocol=protocol,
            batch_size=batch_size,
            device=device,
            progress=progress,
            elsewhere=_on(processes, checkpoint, batch_size) if len(processes) > 1 else None,
        )
    line = scores.metrics_line(step)
    kept = False
    if trained_on is not None:
        if _shown(data) != _shown(trained_on):
            line["data"] = without_credentials(str(data))
        kept = append_metrics(run, line)
    return {
        **line,
        **scores.to_json(),
        "data": without_credentials(str(data)),
        "run": str(run),
        "checkpoint": str(checkpoint),
        "metrics": str(run / METRICS_NAME) if kept else None,
        "device": device if len(processes) == 1 else processes.kind,
        "processes": len(processes),
    }


def _on(processes: Processes, model: Path, batch_size: int) -> Elsewhere:
    """Return the extraction of a split's features on several processes."""
    name = BackboneName(str(model.absolute()))

    def extract(manifest: Manifest, tell: Callable[[int], None]) -> Features:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            tell(done)

        return extract_on(processes, name, manifest, batch_size, count)

    return extract


def score_by(options: KnnOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Score a run as `coma probe` does, given its options, or as `coma knn` does; see `score_run`."""
    probe = isinstance(options, ProbeOptions)
    return score_run(
        options.run,
        options.data,
        probe=probe,
        knn=not probe,
        protocol=options.protocol if isinstance(options, ProbeOptions) else "logistic",
        batch_size=options.batch_size,
        device=options.device,
        devices=options.devices,
        progress=progress,
    )


def _shown(data: Path) -> str:
    return without_credentials(str(data if is_remote(data) else data.resolve()))


def append_metrics(run: Path, line: dict[str, Any]) -> bool:
    """Append a line to RUN/metrics.jsonl; return False, with a warning, if it cannot be written."""
    try:
        append_line(run / METRICS_NAME, line)
    except OSError as error:
        logger.warning("the scores are not kept in %s: %s", run / METRICS_NAME, (error.strerror or "").lower())
        return False
    return True

"""Score a run's checkpoint or an export on a labelled data set, and add a run's scores to its metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from coma.evaluation.extraction.feature_job import extract_on
from coma.evaluation.extraction.processes import BackboneName, Processes, choose_processes
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.evaluation.score import BATCH_SIZE, Elsewhere, Progress, labelled_manifests, score
from coma.exports.load import load_export
from coma.exports.scored import what_to_score
from coma.runs.names import checkpoint_step
from coma.runs.read import load_autoencoder, naming_the_weights

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
    scored = what_to_score(run_or_checkpoint, data)
    train, val = labelled_manifests(scored.data)  # before the network is loaded
    if val is None:
        logger.info("%s has no split val: a fifth of train is held out for testing", train.folder.parent)
    processes = choose_processes(devices, device)
    device = processes.devices[0]
    if scored.is_export:
        autoencoder, step = load_export(scored.run, device)
    else:
        autoencoder, step = load_autoencoder(scored.checkpoint, device), checkpoint_step(scored.checkpoint)
    with naming_the_weights(scored.checkpoint):
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
            elsewhere=_on(processes, scored.checkpoint, batch_size) if len(processes) > 1 else None,
        )
    return {
        **scores.to_json(),
        **scored.kept(scores.metrics_line(step)),
        "device": device if len(processes) == 1 else processes.kind,
        "processes": len(processes),
    }


def _on(processes: Processes, model: Path, batch_size: int) -> Elsewhere:
    """Return the extraction of features on several processes."""
    name = BackboneName(str(model.absolute()))
    return lambda manifests, progress: extract_on(processes, name, manifests, batch_size, progress)


def score_by(options: KnnOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Score a run as `coma probe` does, given its options, or as `coma knn` does."""
    probe = isinstance(options, ProbeOptions)
    if options.task == "segmentation":
        from coma.evaluation.dense.segment_run import segment_by

        return segment_by(options, progress)
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

"""Score a run's checkpoint or an export by segmentation, and add a run's scores to its metrics."""

from __future__ import annotations

import logging
from typing import Any

from coma.evaluation.dense.segment import MOST_PATCHES, DenseOptions, HeadName, masked_manifests, segment
from coma.evaluation.device import choose_device
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.evaluation.score import Progress
from coma.exports.backbone import load_backbone
from coma.exports.scored import what_to_score
from coma.runs.read import naming_the_weights

logger = logging.getLogger(__name__)


def segment_by(options: KnnOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Score a run or an export as `coma probe --task segmentation` does, or as `coma knn` does.

    Returns:
        the scores of each head, a table of the classes, `step` of the checkpoint, and what they were taken on.

    Raises:
        DataError: no such run or data, no checkpoint, or no masks.
        DivergedError: weights or features are not finite.
        UsageError: an export without data, or sizes that do not fit each other.
    """
    scored = what_to_score(options.run, options.data)
    train, val = masked_manifests(scored.data)  # before the network is loaded
    if val is None:
        logger.info("%s has no split val: a fifth of train is held out for testing", train.folder.parent)
    device = choose_device(options.device)
    backbone = load_backbone(scored.checkpoint, image_size=options.window_size, device=device)
    with naming_the_weights(scored.checkpoint):
        scores = segment(
            backbone.module,
            train,
            val,
            _dense_options(options, backbone.image_size),
            stream_options=backbone.stream_options(),
            batch_size=options.batch_size,
            device=device,
            progress=progress,
        )
    return {
        **scores.to_json(),
        **scored.kept(scores.metrics_line(backbone.step or 0)),
        "device": device,
        "processes": 1,
    }


def _dense_options(options: KnnOptions, image_size: int) -> DenseOptions:
    heads: tuple[HeadName, ...] = ("knn",)
    shorter_side = options.shorter_side
    if isinstance(options, ProbeOptions) and options.protocol == "dinov2":
        heads, shorter_side = ("dinov2",), shorter_side or image_size
    elif isinstance(options, ProbeOptions):
        heads = ("logistic", "knn")
    return DenseOptions(
        heads=heads,
        window_size=image_size,
        shorter_side=shorter_side,
        stride=options.stride,
        most_patches=options.patches or MOST_PATCHES,
    )

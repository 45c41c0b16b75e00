"""Functions of `coma` for Python: each takes what its command takes, and returns a small dataclass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coma.api.keywords import with_keywords
from coma.api.results import (
    DryRunResult,
    EmbedResult,
    ExportResult,
    PictureResult,
    ScoreResult,
    SegmentationResult,
    ShardResult,
    TrainingResult,
    VerifyResult,
)
from coma.embedding.options import EmbedOptions
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.exports.options import ExportOptions
from coma.pictures.options import ReconstructOptions
from coma.shards.check.options import VerifyOptions
from coma.shards.index.options import IndexOptions
from coma.shards.write.options import ShardCommand
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.options import PretrainConfig

if TYPE_CHECKING:
    from coma.shards.check.verify import VerifyProgress
    from coma.shards.index.index import IndexProgress
    from coma.shards.write.dry_run import DryRun
    from coma.shards.write.summary import ShardProgress, ShardSummary
    from coma.training.logs.metrics import Progress


@with_keywords(ShardCommand)
def shard(options: ShardCommand, progress: Callable[[ShardProgress], None] | None = None) -> ShardResult | DryRunResult:
    """Pack images into WebDataset shards; damaged ones are listed.

    Images are shuffled once by seed and copied untouched. The same call resumes where it stopped or was killed.
    """
    from coma.shards.write.command import run_command
    from coma.shards.write.dry_run import DryRun

    done = run_command(options, progress)
    return _dry_run_result(done) if isinstance(done, DryRun) else _shard_result(done)


@with_keywords(IndexOptions)
def index(options: IndexOptions, progress: Callable[[IndexProgress], None] | None = None) -> ShardResult:
    """Make a manifest for WebDataset tars that already exist, which are not rewritten."""
    from coma.shards.index.index import run_command

    return _shard_result(run_command(options, progress))


@with_keywords(VerifyOptions)
def verify(options: VerifyOptions, progress: Callable[[VerifyProgress], None] | None = None) -> VerifyResult:
    """Check every byte of a data set against its manifest.

    Differences are returned as `problems`, not raised.
    """
    from coma.shards.check.verify import verify as check
    from coma.shards.manifest import chosen_data

    data = chosen_data(options.data)
    report = check(data, decode=options.decode, progress=progress)
    return VerifyResult.of(vars(report), data=data)


@with_keywords(PretrainConfig, file=True)
def pretrain(options: PretrainConfig, progress: Callable[[Progress], None] | None = None) -> TrainingResult:
    """Pre-train a vision backbone on complementary views of images.

    The same call resumes where it stopped. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.
    """
    from coma.training import pretrain as train

    return TrainingResult.of(train(options, progress))


@with_keywords(FinetuneConfig, file=True)
def finetune(options: FinetuneConfig, progress: Callable[[Progress], None] | None = None) -> TrainingResult:
    """Fine-tune a pre-trained backbone on labelled images.

    The same call resumes where it stopped. The defaults are MAE's for ViT-B.
    """
    from coma.training import finetune as train

    return TrainingResult.of(train(options, progress))


@with_keywords(ProbeOptions)
def probe(
    options: ProbeOptions, progress: Callable[[int, int], None] | None = None
) -> ScoreResult | SegmentationResult:
    """Fit a linear classifier on frozen features, of images or of their pixels.

    It is fitted on split train and tested on split val, or on a held-out fifth of train.
    """
    return _score(options, progress)


@with_keywords(KnnOptions)
def knn(options: KnnOptions, progress: Callable[[int, int], None] | None = None) -> ScoreResult | SegmentationResult:
    """Classify images or their pixels by the nearest neighbours among frozen features.

    Neighbours come from split train, tested images from split val, or from a held-out fifth of train.
    """
    return _score(options, progress)


@with_keywords(EmbedOptions)
def embed(options: EmbedOptions, progress: Callable[[str, int, int | None], None] | None = None) -> EmbedResult:
    """Write the features of images as a table.

    Each image becomes a vector, in a row with its path and label. The same call goes on where it was stopped or killed.
    """
    from coma.embedding.command import run_command
    from coma.training.processes.torch_state import own_torch_state

    with own_torch_state():
        return EmbedResult.of(run_command(options, progress or (lambda *_: None)))


@with_keywords(ReconstructOptions)
def reconstruct(options: ReconstructOptions) -> PictureResult:
    """Draw originals, views and reconstructions side by side."""
    from coma.evaluation.device import choose_device
    from coma.pictures.reconstruct import draw
    from coma.training.processes.torch_state import own_torch_state

    with own_torch_state():
        return PictureResult(draw(options, choose_device(options.device)))


@with_keywords(ExportOptions)
def export(options: ExportOptions) -> ExportResult:
    """Write the backbone of a run as a timm model, with a model card."""
    from coma.exports.export import export_run
    from coma.training.processes.torch_state import own_torch_state

    with own_torch_state():
        return ExportResult.of(export_run(**vars(options)))


def _score(options: KnnOptions, progress: Callable[[int, int], None] | None) -> ScoreResult | SegmentationResult:
    from coma.evaluation.score_run import score_by
    from coma.training.processes.torch_state import own_torch_state

    with own_torch_state():
        scores = score_by(options, progress)
    protocol = options.protocol if isinstance(options, ProbeOptions) else None
    if options.task == "segmentation":
        return _segmentation_result(scores, protocol)
    name = "knn" if protocol is None else "probe" if protocol == "logistic" else f"probe_{protocol}"
    return ScoreResult.of(
        scores,
        accuracy=scores[name],
        interval=tuple(scores[f"{name}_interval"]),
        accuracy_top5=scores.get(f"{name}_top5"),
        protocol=protocol,
    )


def _segmentation_result(scores: dict[str, Any], protocol: str | None) -> SegmentationResult:
    end = "_knn" if protocol is None else "" if protocol == "logistic" else f"_{protocol}"
    return SegmentationResult.of(
        scores,
        miou=scores[f"miou{end}"],
        interval=tuple(scores[f"miou{end}_interval"]),
        pixel_accuracy=scores[f"pixel_accuracy{end}"],
        class_iou={row["class"]: row[f"iou{end}"] for row in scores["class_iou"]},
        miou_knn=None if protocol is None else scores.get("miou_knn"),
        protocol=protocol,
    )


def _shard_result(summary: ShardSummary) -> ShardResult:
    from coma.shards.manifest import QUARANTINE_NAME

    return ShardResult.of(
        vars(summary),
        splits={split.name: split.images for split in summary.splits},
        shards=summary.shards,
        shard_bytes=summary.shard_bytes,
        quarantine=summary.out / QUARANTINE_NAME if summary.set_aside and summary.part is None else None,
    )


def _dry_run_result(preview: DryRun) -> DryRunResult:
    return DryRunResult.of(
        vars(preview),
        splits={split.name: split.images for split in preview.splits},
        shards=sum(split.shards for split in preview.splits),
        shard_bytes=sum(split.bytes for split in preview.splits),
    )

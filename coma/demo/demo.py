"""Demonstration of all stages on a small scale: images, shards, pre-training, probes before and after, a picture."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import DataError, Preempted, UsageError

if TYPE_CHECKING:
    from coma.evaluation.score import Scores
    from coma.model.autoencoder import MaskedAutoencoder
    from coma.shards.manifest import Manifest
    from coma.training import PretrainConfig

logger = logging.getLogger(__name__)

TRAIN_SCENES, VAL_SCENES = 2400, 600
MODEL = "dyvit_nano"
VIEWS = 2
IMAGE_SIZE, PATCH_SIZE = 48, 2  # pixels
STEPS, BATCH_SIZE = 2200, 16
BASE_LR = 0.016  # at 256 images a step
DS_CONFIG = "zero0"  # one process has nothing to shard
PICTURE_ROWS = 6

DEFAULT_OUT = Path("coma-demo")

Progress = Callable[[str, int, int], None]
"""Called with the stage ("drawing", "sharding", "probing", "training"), how much is done, and of how much."""


@dataclass(frozen=True)
class DemoResult:
    """Result of a demo; the scores are percentages, None if the images have no labels."""

    out: Path
    data: Path
    run: Path
    picture: Path
    report: Path
    drawn: bool
    """Whether the images are the demo's own."""
    train_images: int
    val_images: int
    classes: int
    set_aside: int
    steps: int
    images_seen: int
    parameters: int
    first_loss: float
    last_loss: float
    training_s: float
    elapsed_s: float
    probe_before: float | None
    probe_after: float | None
    knn_before: float | None
    knn_after: float | None
    no_probe: str | None
    """Reason that there are no scores, None if there are."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, paths as strings."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in vars(self).items()}


def demo(
    images: Path | str | None = None, out: Path | str | None = None, *, seed: int = 0, progress: Progress | None = None
) -> DemoResult:
    """Run the demo in a new folder: OUT/images (if drawn), OUT/shards, OUT/run.

    Args:
        images: a folder of images as `coma shard` takes it; None: a labelled set is drawn.
        out: a folder that is new or empty; None: `coma-demo`, or the next free name after it.
        seed: random seed for the drawing, the shuffle, the weights and the masks.
        progress: called as the demo goes on; without it, lines are logged now and then.

    Raises:
        UsageError, DataError: `out` is taken, `images` are none, DALI is missing; nothing has been written then.
        Preempted: SIGTERM or SIGUSR1 arrived during training.
    """
    images = None if images is None else Path(images)
    out = None if out is None else Path(out)
    from coma.evaluation.device import choose_device
    from coma.evaluation.score import labelled_manifests
    from coma.exports.scored import append_metrics
    from coma.installed.cuda import check_dali
    from coma.pictures.reconstruct import reconstruct_run
    from coma.runs.names import RECONSTRUCTION_NAME, checkpoint_step
    from coma.runs.read import load_autoencoder, run_of
    from coma.runs.report import write_report
    from coma.training import PretrainConfig, pretrain

    began_s = time.monotonic()
    check_dali()
    out = free_folder() if out is None else new_folder(out)
    watched = progress is not None
    progress = progress or (lambda *_: None)
    data, run = out / "shards", out / "run"

    source = images if images is not None else _draw(out / "images", seed, progress)
    summary = _shard(source, data, seed, progress)
    splits = {split.name: split.images for split in summary.splits}
    if "train" not in splits:
        raise DataError(f"{source} has no training images, only {' and '.join(splits)}: put them beside val/")
    manifests, no_probe = None, None
    try:
        manifests = labelled_manifests(data)
    except DataError as error:
        no_probe = str(error)
        logger.info("no probe: %s", no_probe)

    config = PretrainConfig(
        data=data,
        model=MODEL,
        views=VIEWS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        base_lr=BASE_LR,
        seed=seed,
        out=run,
        ds_config=DS_CONFIG,
        save_every=STEPS,
    )
    device = choose_device()
    before = _score_untrained(config, manifests, device, progress) if manifests else None

    with _quiet_training(watched):
        try:
            training = pretrain(config, (lambda now: progress("training", now.step, now.steps)) if watched else None)
        except Preempted:
            raise Preempted(f"asked to stop: {out} stays as it is; coma demo does not resume, it begins anew") from None

    _, checkpoint = run_of(run)
    autoencoder = load_autoencoder(checkpoint, device)
    after = _score(autoencoder, manifests, device, progress) if manifests else None
    for step, scores in ((0, before), (checkpoint_step(checkpoint), after)):
        if scores is not None:
            append_metrics(run, scores.metrics_line(step))
    picture = reconstruct_run(run, out=run / RECONSTRUCTION_NAME, count=PICTURE_ROWS, seed=seed, device=device)
    report = write_report(run)
    first_loss, last_loss = _losses(run)
    return DemoResult(
        out=out,
        data=data,
        run=run,
        picture=picture,
        report=report,
        drawn=images is None,
        train_images=splits["train"],
        val_images=splits.get("val", 0),
        classes=summary.classes,
        set_aside=summary.set_aside,
        steps=checkpoint_step(checkpoint),
        images_seen=checkpoint_step(checkpoint) * BATCH_SIZE,
        parameters=sum(parameter.numel() for parameter in autoencoder.backbone.parameters()),
        first_loss=first_loss,
        last_loss=last_loss,
        training_s=training["elapsed_s"],
        elapsed_s=time.monotonic() - began_s,
        probe_before=before.probe if before else None,
        probe_after=after.probe if after else None,
        knn_before=before.knn if before else None,
        knn_after=after.knn if after else None,
        no_probe=no_probe,
    )


def new_folder(out: Path) -> Path:
    """Return `out` if it is new or empty; UsageError otherwise. Nothing is made yet."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty: name a folder that is new or empty")
    return out


def free_folder(parent: Path = Path()) -> Path:
    """Return `coma-demo`, or the first of `coma-demo-2`, ... that is new or empty. Nothing is made yet."""
    number, path = 1, parent / DEFAULT_OUT
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        number += 1
        path = parent / f"{DEFAULT_OUT}-{number}"
    if number > 1:
        logger.info("%s is there already: this demo goes to %s", parent / DEFAULT_OUT, path)
    return path


def _draw(folder: Path, seed: int, progress: Progress) -> Path:
    from coma.demo.scene_files import write_scenes

    logger.info("drawing %d images into %s", TRAIN_SCENES + VAL_SCENES, folder)
    write_scenes(
        folder,
        train=TRAIN_SCENES,
        val=VAL_SCENES,
        seed=seed,
        progress=lambda done, total: progress("drawing", done, total),
    )
    return folder


def _shard(source: Path, data: Path, seed: int, progress: Progress) -> Any:
    from coma.shards.write.options import ShardOptions
    from coma.shards.write.writer import shard

    logger.info("sharding %s into %s", source, data)
    return shard(source, data, ShardOptions(seed=seed), lambda now: progress("sharding", now.images, now.total_images))


def _score_untrained(
    config: PretrainConfig, manifests: tuple[Manifest, Manifest | None], device: str, progress: Progress
) -> Scores:
    """Score the very network that training begins with."""
    import torch

    from coma.runs.read import build_model

    torch.manual_seed(config.seed)
    return _score(build_model(config.to_json()).to(device), manifests, device, progress)


def _score(
    autoencoder: MaskedAutoencoder, manifests: tuple[Manifest, Manifest | None], device: str, progress: Progress
) -> Scores:
    from coma.evaluation.score import score

    scores = score(
        autoencoder, *manifests, device=device, progress=lambda done, total: progress("probing", done, total)
    )
    logger.info("probe %.1f%%, nearest neighbours %.1f%%", scores.probe, scores.knn)
    return scores


def _losses(run: Path) -> tuple[float, float]:
    """Return the mean loss of the first and of the last few steps."""
    from coma.runs.lines import read_lines
    from coma.runs.names import METRICS_NAME

    losses = [line["loss"] for line in read_lines(run / METRICS_NAME) if line.get("loss") is not None]
    few = max(1, min(10, len(losses) // 4))
    return sum(losses[:few]) / few, sum(losses[-few:]) / few


@contextmanager
def _quiet_training(quiet: bool) -> Iterator[None]:
    """Keep training's messages out of a demo that shows a progress bar instead."""
    training = logging.getLogger("coma.training")
    level = training.level
    if quiet:
        training.setLevel(logging.WARNING)
    try:
        yield
    finally:
        training.setLevel(level)

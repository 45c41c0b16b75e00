"""Score a backbone by its frozen features of two splits: linear probe, nearest neighbours, effective rank.

The split `val` is the test if there is one; otherwise a fifth of `train`, always the same one, is held out: of tiles,
those of a fifth of the images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.errors import DataError
from coma.evaluation.features import Features, extract, held_out_fifth
from coma.evaluation.interval import wilson
from coma.evaluation.knn import knn_accuracy
from coma.evaluation.linear import lars_logits, sgd_logits
from coma.evaluation.probe import logistic_logits, top_accuracy
from coma.evaluation.rankme import rankme
from coma.shards.files import folder_at, is_there
from coma.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from coma.shards.tiles.grid import image_numbers

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
HELD_OUT = "a fifth of train, held out"

PROTOCOLS = {"logistic": logistic_logits, "dinov2": sgd_logits, "mae": lars_logits}
"""How a probe is fitted: (train_x, train_labels, test_x, images of tiles) to the test rows' logits."""

Progress = Callable[[int, int], None]  # images done, images in all
Elsewhere = Callable[[Sequence[Manifest], Progress | None], list[Features]]
"""Extracts the features of splits."""


@dataclass(frozen=True)
class Scores:
    """Scores of frozen features; percentages are top-1 accuracy on the test rows."""

    probe: float | None
    probe_top5: float | None
    """None where there are 5 classes or fewer, too."""
    knn: float | None
    rankme: float
    """Effective rank of the training features, at most their channels."""
    train_images: int
    test_images: int
    tested_on: str
    channels: int
    classes: int
    protocol: str = "logistic"

    @property
    def probe_name(self) -> str:
        """Key of the probe's accuracy, which tells the protocol: `probe`, `probe_dinov2`, `probe_mae`."""
        return "probe" if self.protocol == "logistic" else f"probe_{self.protocol}"

    def metrics_line(self, step: int) -> dict[str, Any]:
        """Return an evaluation line of metrics.jsonl: the step, then the scores that were taken."""
        values = {self.probe_name: self.probe, "knn": self.knn, "rankme": self.rankme}
        return {"step": step} | {name: round(v, 3) for name, v in values.items() if v is not None}

    def to_json(self) -> dict[str, Any]:
        """Return what belongs beside a metrics line: 95% intervals, top-5, and what was tested on what."""
        accuracies = {self.probe_name: self.probe, "knn": self.knn}
        details: dict[str, Any] = {
            f"{name}_interval": [round(end, 3) for end in wilson(value, self.test_images)]
            for name, value in accuracies.items()
            if value is not None
        }
        if self.probe_top5 is not None:
            details[f"{self.probe_name}_top5"] = round(self.probe_top5, 3)
        return details | {
            "train_images": self.train_images,
            "test_images": self.test_images,
            "tested_on": self.tested_on,
            "channels": self.channels,
            "classes": self.classes,
        }


def has_split(data: Path, split: str) -> bool:
    """Tell whether the data set at `data` has the split."""
    return is_there(data / split / MANIFEST_NAME)


def can_be_probed(data: Path | str) -> bool:
    """Tell whether `coma probe` and `coma knn` can score features of the data set at `data`."""
    try:
        labelled_manifests(data)
    except (DataError, OSError):
        return False
    return True


def split_manifests(data: Path | str) -> tuple[Manifest, Manifest | None]:
    """Open train and, if there is one, val of a data set (or of that which a split's folder lies in).

    Raises DataError if there are none.
    """
    data = folder_at(data)
    if is_there(data / MANIFEST_NAME) and has_split(data.parent, "train"):
        data = data.parent
    train = read_manifest(data, "train")  # or the one folder that was given
    return train, read_manifest(data, "val") if has_split(data, "val") else None


def labelled_manifests(data: Path | str) -> tuple[Manifest, Manifest | None]:
    """Open train and, if there is one, val of a data set (or of that which a split's folder lies in).

    Raises:
        DataError: no such data, no labels in them, one class alone, or too few images to hold any out.
    """
    train, val = split_manifests(data)
    for manifest in (train, val):
        if manifest is None:
            check_enough(train)
        elif manifest.label is None:
            raise DataError(f"{manifest.folder} has no labels, so nothing can be probed: shard a tree of class folders")
        elif len(manifest) and (manifest.label == manifest.label[0]).all():
            raise DataError(f"{manifest.folder} has one class alone, so nothing can be told apart")
    return train, val


def check_enough(train: Manifest) -> None:
    """Raise DataError unless a fifth of the images can be held out."""
    if held_out_rows(train).any():
        return
    if len(train) < 5:
        raise DataError(f"{train.folder} has {len(train)} images; a probe needs 5 or more, or a split val")
    raise DataError(
        f"{train.folder} has tiles of one image alone; a probe needs those of 2 images or more, or a split val"
    )


def held_out_rows(train: Manifest) -> Tensor:
    """Choose the rows that a data set without val is tested on: bool [N], always the same ones.

    They are a fifth; of tiles, all those of a fifth of the images, and of one at least, if there are others.
    """
    return held_out_fifth(len(train), _image_of_tiles(train))


def _image_of_tiles(manifest: Manifest) -> Tensor | None:
    """Number the image that each row was cut from: [N] int64; None if no row is a tile."""
    numbers = image_numbers(manifest.sources(range(len(manifest))))
    return None if numbers is None else torch.from_numpy(numbers)


def features_of(
    autoencoder: MaskedAutoencoder,
    train: Manifest,
    val: Manifest | None,
    *,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    progress: Progress | None = None,
    elsewhere: Elsewhere | None = None,
    **decoding: Any,
) -> tuple[Features, Features, str]:
    """Extract frozen features of the backbone as it is, in float32: (train, test, what the test rows are).

    `elsewhere` extracts them in other processes, in place of this one.

    Raises:
        DataError: too few images to hold any out.
    """
    from coma.pipeline import Stream

    if val is None:
        check_enough(train)
    options = {**autoencoder.stream_options(), **decoding}
    manifests = [train] if val is None else [train, val]
    total, done = sum(map(len, manifests)), 0
    features: list[Features] = [] if elsewhere is None else elsewhere(manifests, progress)
    for manifest in manifests[len(features) :]:

        def tell(images: int, before: int = done) -> None:
            if progress is not None:
                progress(before + images, total)

        with Stream(manifest, batch_size=batch_size, training=False, device=device, **options) as stream:
            features.append(extract(autoencoder.backbone, stream, tell))
        done += len(manifest)
    if val is not None:
        return features[0], features[1], "val"
    held_out = held_out_rows(train)
    return features[0].select(~held_out), features[0].select(held_out), HELD_OUT


def score(
    autoencoder: MaskedAutoencoder,
    train: Manifest,
    val: Manifest | None,
    *,
    probe: bool = True,
    knn: bool = True,
    protocol: str = "logistic",
    device: str = "cpu",
    **extraction: Any,
) -> Scores:
    """Extract features once and score them: linear probe and neighbours, each if asked for, and RankMe.

    Args:
        autoencoder: its backbone is scored.
        train, val: splits, as `labelled_manifests` opens them; without probe and knn they need no labels.
        probe, knn: what to score.
        protocol: how the probe is fitted, one of `PROTOCOLS`.
        device: "cpu", "cuda".
        extraction: further options of `features_of`: batch_size, progress, and those of `Stream`.

    Raises:
        DataError: no labels, or too few images to hold any out.
    """
    bank, test, tested_on = features_of(autoencoder, train, val, device=device, **extraction)
    x, test_x = bank.x.to(device), test.x.to(device)
    supervised = probe or knn
    labels = bank.require_labels().to(device) if supervised else torch.empty(0)
    test_labels = test.require_labels().to(device) if supervised else torch.empty(0)
    classes = len(set(labels.tolist()) | set(test_labels.tolist()))
    if supervised:
        labels, test_labels = _numbered(labels, test_labels)
    logits = None
    if probe:
        image = _image_of_tiles(train)
        if image is not None and val is None:
            image = image[~held_out_fifth(len(train), image)]
        logits = PROTOCOLS[protocol](x, labels, test_x, image)
    return Scores(
        probe=None if logits is None else top_accuracy(logits, test_labels),
        probe_top5=None if logits is None or classes <= 5 else top_accuracy(logits, test_labels, 5),
        knn=knn_accuracy(x, labels, test_x, test_labels) if knn else None,
        rankme=rankme(bank.x),
        train_images=len(bank),
        test_images=len(test),
        tested_on=tested_on,
        channels=bank.x.shape[1],
        classes=classes,
        protocol=protocol,
    )


def _numbered(labels: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the classes that there are from 0, as classifiers want; in the test rows others become -1."""
    present, numbered = torch.unique(labels, return_inverse=True)
    place = torch.searchsorted(present, test_labels).clamp_(max=len(present) - 1)
    return numbered, torch.where(present[place] == test_labels, place, -1)

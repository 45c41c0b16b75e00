"""Images of a data set, decoded once and held in memory, so that the networks are measured and not the loading.

The order, windows, flips and normalisation are the stream's own functions of (seed, epoch, sample); only the decoder
(PIL, whole images) is not. For small images: n of them take n · height · width · 3 bytes. n images, B of a batch.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from coma.errors import DataError
from coma.pipeline.crops import center_crops, random_resized_crops
from coma.pipeline.order import Planner, SampleOrder
from coma.pipeline.preprocessing import EVAL_FRACTION
from coma.pipeline.reader import ShardReader, Unreadable
from coma.pipeline.squares import Squares, normalise
from coma.pipeline.stream import Batch
from coma.shards.files import folder_at
from coma.shards.manifest import MANIFEST_NAME, Manifest, read_manifest

EVALUATION_BATCH = 32
MOST_HELD_OUT = 10_000
HELD_OUT = "held-out images of train"


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images with their labels."""

    pixels: tuple[Tensor, ...]  # n of [height, width, 3] uint8
    labels: Tensor  # [n] int64

    def __len__(self) -> int:
        """Count the images."""
        return len(self.pixels)

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Return [n] widths and [n] heights in pixels."""
        shapes = np.array([image.shape[:2] for image in self.pixels], dtype=np.int64)
        return shapes[:, 1], shapes[:, 0]


@dataclass(frozen=True, eq=False)
class Data:
    """Images that every run of a comparison shares."""

    train: Images
    test: Images
    tested_on: str
    fingerprint: str


def load_to_choose(folder: Path, images: int) -> Data:
    """Decode `images` of split train to learn from, and its last fifth (10,000 at most) to choose by.

    Shards are shuffled, so the last samples are as good as any. Splits val and test are not opened: what is chosen here
    has not seen them.

    Raises:
        DataError: no such data, no labels, or fewer than 10 images.
    """
    manifest = read_manifest(folder_at(folder), "train")
    held_out = min(len(manifest) // 5, MOST_HELD_OUT)
    if held_out < 2:
        raise DataError(f"{folder} has {len(manifest)} images in train; to choose by a fifth of them takes 10 or more")
    rest = len(manifest) - held_out
    train = _decoded(manifest, range(min(images, rest)))
    return Data(train, _decoded(manifest, range(rest, len(manifest))), HELD_OUT, manifest.fingerprint)


def load_to_compare(folder: Path, images: int) -> Data:
    """Decode the first `images` of split train, and up to 10,000 of val, else of a labelled test, to test on.

    Raises:
        DataError: no such data, no labels, or no split to test on.
    """
    folder = folder_at(folder)
    manifest = read_manifest(folder, "train")
    for split in ("val", "test"):
        if (folder / split / MANIFEST_NAME).is_file():
            held = read_manifest(folder, split)
            if held.label is not None:
                test = _decoded(held, range(min(len(held), MOST_HELD_OUT)))
                return Data(_decoded(manifest, range(min(images, len(manifest)))), test, split, manifest.fingerprint)
    raise DataError(f"{folder} has no labelled split val or test to compare on: shard a folder with train/ and test/")


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Return the number of steps in so many epochs, at least one."""
    return max(1, round(epochs * images / batch_size))


def training_batches(
    images: Images,
    *,
    steps: int,
    batch_size: int,
    image_size: int,
    seed: int,
    crop_scale: tuple[float, float],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each step's images [B, 3, S, S], sample numbers [B] and epochs [B], as a `Stream` over them would give."""
    planner = Planner(SampleOrder([len(images)], seed), len(images), batch_size)
    width, height = images.sides()
    squares = Squares(image_size, threads=1)
    for index in range(steps):
        step = planner.at(index * batch_size)
        assert step is not None
        ids = step.samples
        crops = random_resized_crops(ids, step.epochs, width[ids], height[ids], seed=seed, scale=crop_scale)
        windows = _windows(images, ids.tolist(), crops.start, crops.shape)
        batch = squares.normalised(windows, crops.flip)
        yield batch, torch.from_numpy(ids), torch.from_numpy(step.epochs)


def evaluation_batches(images: Images, image_size: int) -> Iterator[Batch]:
    """Yield all images once, as `coma probe` takes them (centre windows), for `coma.evaluation.features.extract`."""
    width, height = images.sides()
    squares = Squares(image_size, threads=1)
    for start in range(0, len(images), EVALUATION_BATCH):
        ids = np.arange(start, min(start + EVALUATION_BATCH, len(images)))
        crops = center_crops(width[ids], height[ids], image_size=image_size, fraction=EVAL_FRACTION)
        batch = normalise(squares.raw(_windows(images, ids.tolist(), crops.start, crops.shape), crops.flip))
        rows = torch.from_numpy(ids)
        yield Batch(batch, torch.empty(len(ids), 0, dtype=torch.int64), (), images.labels[rows], rows)


def _windows(images: Images, ids: list[int], start: np.ndarray, shape: np.ndarray) -> list[Tensor]:
    windows = zip(ids, start.tolist(), shape.tolist(), strict=True)
    return [images.pixels[i][top : top + high, left : left + wide] for i, (top, left), (high, wide) in windows]


def _decoded(manifest: Manifest, samples: range) -> Images:
    if manifest.label is None:
        raise DataError(f"{manifest.folder} has no labels, so nothing can be probed: shard a tree of class folders")
    reader = ShardReader(manifest)
    pixels = []
    try:
        for sample in samples:
            (encoded,) = reader.read([sample])
            if isinstance(encoded, Unreadable):
                raise DataError(f"{manifest.keys([sample])[0]} in {manifest.folder}: {encoded.reason}; run coma verify")
            shown = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded.tobytes()))).convert("RGB")
            pixels.append(torch.from_numpy(np.array(shown)))
    finally:
        reader.close()
    return Images(tuple(pixels), torch.from_numpy(manifest.label[samples.start : samples.stop].astype(np.int64)))

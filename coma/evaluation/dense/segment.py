"""Score a backbone by segmentation of images from its frozen maps of patches.

Protocols: `capi` (arXiv 2502.08769) classifies whole images, resized to one window, by logistic regression and by
nearest neighbours of patches. `dinov2` (arXiv 2304.07193) fits a linear layer to pixels and slides windows over the
images. docs/evaluate.md lists the differences.

Legend: N images, L classes, S pixels of a window's side, P patches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from coma.errors import DataError
from coma.evaluation.dense.assemble import Box, assemble
from coma.evaluation.dense.heads import DISTANCES, NEIGHBOURS, Head, fit_logistic, fit_neighbours
from coma.evaluation.dense.maps import default_stride, map_channels
from coma.evaluation.dense.overlap import Overlap, pixel_counts
from coma.evaluation.dense.patches import IGNORED, Patches, chosen_patches, majority, patch_pixels
from coma.evaluation.dense.pixel_head import BATCH, fit_pixels
from coma.evaluation.dense.reading import WindowReader
from coma.evaluation.dense.scores import SegmentationScores
from coma.evaluation.dense.windows import Windows, sliding_windows, whole_images
from coma.evaluation.features import held_out_fifth
from coma.evaluation.probe import L2_GRID
from coma.evaluation.score import BATCH_SIZE, HELD_OUT, Progress, check_enough, split_manifests
from coma.pipeline.masks import MaskReader
from coma.shards.files import without_credentials
from coma.shards.manifest import Manifest

logger = logging.getLogger(__name__)

MOST_PATCHES = 100_000
"""Number of patches that a head is fitted to, by default."""
_KEPT_BYTES = 2**31
"""Size of the maps that are kept between passes; more are computed anew in each."""

HeadName = Literal["logistic", "knn", "dinov2"]


@dataclass(frozen=True)
class DenseOptions:
    """How images are shown to a network, and what its patches are classified by."""

    heads: tuple[HeadName, ...] = ("logistic", "knn")
    window_size: int | None = None
    """S, in pixels; None: the size that the network was trained at."""
    shorter_side: int | None = None
    """Side in pixels that images are resized to, to be covered by sliding windows; None: one window an image."""
    stride: int | None = None
    """Pixels from patch to patch; None: `default_stride` of the backbone."""
    most_patches: int = MOST_PATCHES
    neighbours: tuple[int, ...] = NEIGHBOURS
    distances: tuple[str, ...] = DISTANCES
    """Numbers and distances that the neighbours' head chooses from."""
    penalties: tuple[float, ...] = L2_GRID
    """L2 penalties that logistic regression chooses from."""


def segment(
    backbone: nn.Module,
    train: Manifest,
    val: Manifest | None,
    options: DenseOptions,
    *,
    stream_options: dict[str, Any],
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    progress: Progress | None = None,
) -> SegmentationScores:
    """Fit heads to patches of train and score them on the images of val, or of a fifth of train held out.

    The backbone's mode is put back afterwards; nothing of the images in the test is used in fitting.

    Args:
        backbone: a DyViT or a model of timm.
        train, val: splits with masks, as `masked_manifests` opens them.
        options: what to fit, and how.
        stream_options: of `Stream`: image_size, unit_size, views, and those of decoding.
        batch_size: windows at a time.
        device: "cpu", "cuda".
        progress: called with the windows done, and with those in all; passes of `dinov2` do not count.

    Raises:
        DataError: no pixel of train or of the test has a class, or an image or a mask is damaged.
        DivergedError: features are not finite.
        UsageError: the size of windows, the stride and the shorter side do not fit each other.
    """
    size = options.window_size or int(stream_options["image_size"])
    stride, classes = options.stride or default_stride(backbone), len(train.mask_classes)
    learned, tested = _split_windows(train, val, size, options.shorter_side)
    of_patches = bool({"logistic", "knn"} & set(options.heads))
    windows_done, windows_in_all = 0, len(tested) + (min(len(learned), options.most_patches) if of_patches else 0)

    def advance(windows: int) -> None:
        nonlocal windows_done
        windows_done += windows
        if progress is not None:
            progress(windows_done, windows_in_all)

    was_training = backbone.training
    backbone.eval()
    try:
        with MaskReader(train) as train_masks, MaskReader(train if val is None else val) as test_masks:
            common = (size, stride, device, stream_options)
            learn = WindowReader(backbone, train, learned, train_masks, *common)
            test = WindowReader(backbone, val or train, tested, test_masks, *common)
            patches = None
            if of_patches:
                patches = labelled_patches(learn, classes, options.most_patches, batch_size, advance).to(device)
            heads = {name: _fit(name, patches, learn, classes, options, batch_size) for name in options.heads}
            overlaps = _test(heads, test, classes, options.shorter_side is not None, batch_size, advance)
    finally:
        backbone.train(was_training)
    return SegmentationScores(
        overlaps=overlaps,
        class_names=train.mask_classes,
        train_images=len(np.unique(learned.image)),
        test_images=len(np.unique(tested.image)),
        tested_on=HELD_OUT if val is None else "val",
        patches=None if patches is None else len(patches),
        channels=map_channels(backbone),
        window_size=size,
        shorter_side=options.shorter_side,
        stride=stride,
    )


def masked_manifests(data: Path | str) -> tuple[Manifest, Manifest | None]:
    """Open train and, if there is one, val of a data set with masks (or of that which a split's folder lies in).

    Raises:
        DataError: no such data, no masks in them, other classes in val, or too few images to hold any out.
    """
    train, val = split_manifests(data)
    for manifest in (train, val):
        if manifest is not None and not manifest.has_masks:
            raise DataError(
                f"{without_credentials(str(manifest.folder))} has no masks, so nothing can be segmented: shard images "
                "with masks beside them, such as images/ and masks/"
            )
    if val is None:
        check_enough(train)
    elif val.mask_classes != train.mask_classes:
        raise DataError(
            f"{without_credentials(str(val.folder))} has masks of {len(val.mask_classes)} classes and train of "
            f"{len(train.mask_classes)}, by other names: shard both splits together"
        )
    return train, val


def labelled_patches(
    reader: WindowReader,
    classes: int,
    most: int,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] = lambda _: None,
) -> Patches:
    """Read at most `most` patches of a split, on the CPU: the same number of each window, always the same ones.

    Patches most of whose pixels have no class are left out. Of more windows than `most`, as many are taken, evenly
    spread. Raises DataError if no patch is left.
    """
    numbers = np.arange(len(reader))
    if len(numbers) > most:
        numbers = np.arange(most) * len(numbers) // most
    a_window = most // max(1, len(numbers))
    parts: list[Patches] = []
    for batch in reader.batches(batch_size, numbers):
        pixels = patch_pixels(batch.truth, batch.maps.shape[2])  # [B, h, w, pixels]
        maps = batch.maps.permute(0, 2, 3, 1)  # [B, h, w, C]
        for x, of_window, number in zip(maps.flatten(1, 2), pixels.flatten(1, 2), batch.windows, strict=True):
            best = majority(of_window, classes)
            labelled = (best != IGNORED).nonzero()[:, 0]
            chosen = labelled[chosen_patches(number, len(labelled), a_window).to(labelled.device)]
            images = torch.full((len(chosen),), int(reader.windows.image[number]))
            parts.append(Patches(x[chosen].cpu(), best[chosen].cpu(), of_window[chosen].cpu(), images))
        advance(len(batch.windows))
    if not sum(map(len, parts)):
        raise DataError(f"{reader.manifest.folder}: no patch of the images to learn from has a class")
    return Patches.joined(parts)


def _split_windows(
    train: Manifest, val: Manifest | None, size: int, shorter_side: int | None
) -> tuple[Windows, Windows]:
    """Return the windows to learn from and those of the test."""

    def windows_of(manifest: Manifest) -> Windows:
        if shorter_side is None:
            return whole_images(manifest.width, manifest.height)
        return sliding_windows(manifest.width, manifest.height, window_size=size, shorter_side=shorter_side)

    windows = windows_of(train)
    if val is not None:
        return windows, windows_of(val)
    held_out = held_out_fifth(len(train)).numpy()[windows.image]
    return windows[np.flatnonzero(~held_out)], windows[np.flatnonzero(held_out)]


def _fit(
    name: HeadName, patches: Patches | None, reader: WindowReader, classes: int, options: DenseOptions, batch_size: int
) -> Head:
    if name == "dinov2":
        return fit_pixels(
            _passes(reader, batch_size), len(reader), map_channels(reader.backbone), classes, reader.device
        )
    assert patches is not None
    if name == "logistic":
        return fit_logistic(patches, classes, options.penalties)
    return fit_neighbours(patches, classes, options.neighbours, options.distances)


def _passes(reader: WindowReader, batch_size: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """Batches of maps and pixels in another order in each pass; the maps are kept if they are small enough."""
    side = reader.window_size // reader.stride
    kept_bytes = len(reader) * (4 * map_channels(reader.backbone) * side**2 + reader.window_size**2)
    kept: list[tuple[Tensor, Tensor]] = []

    def orders(number: int) -> Tensor:
        return torch.randperm(len(reader), generator=torch.Generator().manual_seed(number))

    def read_anew(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in reader.batches(BATCH, orders(number).numpy()):
            yield batch.maps, batch.truth

    def from_memory(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not kept:
            read = [(batch.maps, batch.truth) for batch in reader.batches(batch_size)]
            kept.append((torch.cat([maps for maps, _ in read]), torch.cat([truth for _, truth in read])))
        maps, truth = kept[0]
        for rows in torch.split(orders(number), BATCH):
            yield maps[rows.to(maps.device)], truth[rows.to(truth.device)]

    return from_memory if kept_bytes <= _KEPT_BYTES else read_anew


def _test(
    heads: dict[HeadName, Head],
    reader: WindowReader,
    classes: int,
    sliding: bool,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Overlap]:
    """Segment every image of the test by each head and count its pixels."""
    counts: dict[HeadName, list[Tensor]] = {name: [] for name in heads}
    boxes: list[Box] = []
    scores: dict[HeadName, list[Tensor]] = {name: [] for name in heads}
    images = reader.windows.image
    for batch in reader.batches(batch_size):
        of_batch = {name: head.scores(batch.maps) for name, head in heads.items()}
        for position, number in enumerate(batch.windows):
            for name in heads:
                scores[name].append(of_batch[name][position])
            crops = reader.windows.crops
            boxes.append((*crops.start[number].tolist(), *crops.shape[number].tolist()))
            if number + 1 < len(images) and images[number + 1] == images[number]:
                continue
            truth = torch.from_numpy(batch.masks[position]) if sliding else batch.truth[position]
            if not sliding:
                boxes = [(0, 0, *truth.shape)]
            for name, head in heads.items():
                size = (int(truth.shape[0]), int(truth.shape[1]))
                predicted = assemble(size, boxes, scores[name], head.resampling)
                counts[name].append(pixel_counts(predicted, truth.to(predicted.device), classes))
                scores[name] = []
            boxes = []
        advance(len(batch.windows))
    overlaps: dict[str, Overlap] = {name: Overlap(torch.stack(of_head)) for name, of_head in counts.items()}
    if not any(int(overlap.counts[:, 2].sum()) for overlap in overlaps.values()):
        raise DataError(f"{reader.manifest.folder}: no pixel of the images to test on has a class")
    return overlaps

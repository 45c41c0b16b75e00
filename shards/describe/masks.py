"""Segmentation masks of a data set as colours over their images, and the shares of their classes.

Legend: H, W sides of a mask in pixels.
"""

import colorsys
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from coma.errors import DataError
from coma.shards.files import store_errors_as_oserror
from coma.shards.images.formats import BadImageError
from coma.shards.images.masks import ClassIds, decode_mask
from coma.shards.images.options import MOST_PIXELS
from coma.shards.manifest import Manifest
from coma.shards.manifest.mask_coding import IGNORED

_OPACITY = 0.55
_HUE_STEP = 0.6180339887  # the golden ratio: neighbours differ, however many there are
_LIGHTNESS = (0.55, 0.4, 0.68)


@dataclass(frozen=True)
class MaskShares:
    """Shares of the pixels of a split's masks, with the same weight for every pixel of a random sample of masks."""

    classes: dict[str, float]
    """Share of each class among the pixels that have one, largest first."""
    ignored: float
    """Share of pixels without a class."""
    images: int
    """Number of masks measured; fewer than asked for if some do not decode."""


def mask_shares(manifest: Manifest, measured: int, seed: int) -> MaskShares | None:
    """Measure the masks of up to `measured` random samples; None if there are none, or none that decodes.

    Raises DataError if a shard cannot be read.
    """
    names = manifest.mask_classes
    if not names:
        return None
    count = min(measured, len(manifest))
    rows = np.sort(np.random.default_rng(seed).choice(len(manifest), count, replace=False))

    def pixels(row: int) -> npt.NDArray[np.int64] | None:
        ids = read_mask(manifest, row)
        return None if ids is None else np.bincount(ids.reshape(-1), minlength=256).astype(np.int64)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counts = [each for each in pool.map(pixels, rows.tolist()) if each is not None]
    if not counts:
        return None
    total = np.sum(counts, axis=0)
    of_classes = total[: len(names)]
    share = of_classes / max(1, int(of_classes.sum()))
    order = np.argsort(-share, kind="stable")
    return MaskShares(
        classes={_unique(names, number): round(float(share[number]), 4) for number in order.tolist()},
        ignored=round(float(total[IGNORED] / total.sum()), 4),
        images=len(counts),
    )


def _unique(names: tuple[str, ...], number: int) -> str:
    """Return the name of a class, with its id if another has the same."""
    return names[number] if names.count(names[number]) == 1 else f"{names[number]} ({number})"


def read_mask(manifest: Manifest, row: int) -> ClassIds | None:
    """Read a sample's mask as class ids [H, W]; None if there is none, or it does not decode.

    Raises DataError if its shard cannot be read.
    """
    if manifest.mask_coding is None or manifest.mask_offset is None or manifest.mask_size is None:
        return None
    path = manifest.folder / manifest.shards[manifest.shard_id[row]]
    try:
        with store_errors_as_oserror(path), path.open("rb") as file:
            file.seek(int(manifest.mask_offset[row]))
            data = file.read(int(manifest.mask_size[row]))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return decode_mask(data, manifest.mask_coding, MOST_PIXELS)
    except BadImageError:
        return None


def class_colours(classes: int) -> npt.NDArray[np.uint8]:
    """Return a colour for each class, [classes, 3], of which the first ones differ most."""
    colours = [
        colorsys.hls_to_rgb(0.02 + number * _HUE_STEP % 1, _LIGHTNESS[number % len(_LIGHTNESS)], 0.75)
        for number in range(classes)
    ]
    return np.round(255 * np.array(colours).reshape(-1, 3)).astype(np.uint8)


def overlaid(picture: Image.Image, ids: ClassIds) -> Image.Image:
    """Return a picture with the colours of the classes [H, W] over it; pixels without a class stay as they are."""
    small = np.asarray(Image.fromarray(ids).resize(picture.size, Image.Resampling.NEAREST))
    colours = np.concatenate([class_colours(IGNORED), np.zeros((1, 3), np.uint8)])[small]
    opacity = np.where(small == IGNORED, 0, _OPACITY)[..., None]
    blended = np.asarray(picture) * (1 - opacity) + colours * opacity
    return Image.fromarray(np.round(blended).astype(np.uint8))

"""Crop windows, flips and quarter turns of samples: pure functions of keys and image sizes.

Windows are computed from the manifest's width and height, before anything is decoded, so that the decoder decodes
only what is shown.

Legend: n samples.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from coma.pipeline.counter import Purpose, hash_numpy, uniform

Int64Array = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.integer]

RATIO = (3 / 4, 4 / 3)
CROP_SCALE = (0.2, 1.0)
"""Least and greatest area of a training crop over that of the image, as in MAE's pre-training (arXiv 2111.06377)."""
Flips = Literal["horizontal", "none", "both"]
"""Mirrorings of a training crop, each of a half of them: left and right, none, or also top and bottom."""
_TRIES = 10


@dataclass(frozen=True, eq=False)
class Crops:
    """Windows in pixels of the displayed images (after EXIF orientation) of n samples."""

    start: npt.NDArray[np.int32]  # [n, 2] top, left
    shape: npt.NDArray[np.int32]  # [n, 2] height, width
    flip: npt.NDArray[np.int32]  # [n] 1: mirror left and right
    quarters: npt.NDArray[np.int32] | None = None  # [n] quarter turns counter-clockwise, after that; None: no turns

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.flip)

    def __getitem__(self, index: slice | Int64Array) -> "Crops":
        """Return some of the crops."""
        quarters = None if self.quarters is None else self.quarters[index]
        return Crops(self.start[index], self.shape[index], self.flip[index], quarters)


def random_resized_crops(
    samples: IntArray,
    epochs: IntArray,
    width: IntArray,
    height: IntArray,
    *,
    seed: int,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = RATIO,
    flips: Flips = "horizontal",
    quarter_turns: bool = False,
) -> Crops:
    """RandomResizedCrop, flips and quarter turns, keyed by (seed, epoch, sample).

    The semantics are torchvision's (`transforms.RandomResizedCrop.get_params`): an area uniform in `scale` of
    the image's, an aspect ratio log-uniform in `ratio`, ten tries for a window that fits, else the largest
    centred window whose ratio is allowed; any position is as likely as another. Each flip has probability 1/2, each
    number of quarter turns, from none to three, 1/4.

    Args:
        samples, epochs: [n] keys.
        width, height: [n] sizes of the displayed images in pixels.
        seed: random seed of the run.
        scale: least and greatest part of the area.
        ratio: least and greatest width / height.
        flips: mirrorings that are drawn.
        quarter_turns: whether images are turned as well, for those that have no up.

    Returns:
        [n] crops; the window of one does not depend on `flips` and `quarter_turns`.
    """
    keys = hash_numpy(Purpose.CROP, seed, epochs, samples)
    # One number a column: area and ratio of each try, then top, left, flip, and for more than that two more.
    more = flips == "both" or quarter_turns
    draws = uniform(_columns(keys, 2 * _TRIES + 3 + 2 * more))  # [n, 23 or 25]
    w, h = width.astype(np.int64), height.astype(np.int64)

    area = (w * h)[:, None] * (scale[0] + draws[:, :_TRIES] * (scale[1] - scale[0]))  # [n, tries]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(log_low + draws[:, _TRIES : 2 * _TRIES] * (log_high - log_low))
    tried_w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    tried_h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (tried_w > 0) & (tried_w <= w[:, None]) & (tried_h > 0) & (tried_h <= h[:, None])
    row, first = np.arange(len(w)), fits.argmax(axis=1)
    any_fits = fits.any(axis=1)

    whole_w, whole_h = _largest_allowed(w, h, ratio)
    crop_w = np.where(any_fits, tried_w[row, first], whole_w)
    crop_h = np.where(any_fits, tried_h[row, first], whole_h)
    top_draw, left_draw, flip_draw = draws[:, 2 * _TRIES : 2 * _TRIES + 3].T
    top = np.where(any_fits, np.floor(top_draw * (h - crop_h + 1)).astype(np.int64), (h - crop_h) // 2)
    left = np.where(any_fits, np.floor(left_draw * (w - crop_w + 1)).astype(np.int64), (w - crop_w) // 2)
    mirrored = flip_draw < 0.5 if flips != "none" else np.zeros(len(w), bool)
    crops = _crops(top, left, crop_h, crop_w, mirrored)
    if not more:
        return crops
    quarters = np.floor(4 * draws[:, -1]).astype(np.int32) if quarter_turns else np.zeros(len(w), np.int32)
    upside_down = draws[:, -2] < 0.5 if flips == "both" else np.zeros(len(w), bool)
    # Top and bottom mirrored is left and right mirrored and half a turn.
    flip, quarters = (mirrored ^ upside_down).astype(np.int32), (quarters + 2 * upside_down.astype(np.int32)) % 4
    return replace(crops, flip=flip, quarters=quarters)


def center_crops(width: IntArray, height: IntArray, *, image_size: int, fraction: float, squash: bool = False) -> Crops:
    """Evaluation windows: those of resizing the shorter side to image_size / fraction and cutting the centre square.

    Each is expressed as a window of the original, image_size / resized_shorter of its shorter side, so that training
    and evaluation share one graph. Rounding to whole pixels moves it by half a pixel of the original at most.

    Args:
        width, height: [n] sizes of the displayed images in pixels.
        image_size: side of the result in pixels.
        fraction: side of the square over the resized shorter side.
        squash: both sides are resized to the same length, so that a window has the shape of its image.

    Returns:
        [n] crops, none mirrored.
    """
    w, h = width.astype(np.int64), height.astype(np.int64)
    shown = image_size / max(image_size, int(image_size / fraction))
    across, down = (w, h) if squash else (np.minimum(w, h),) * 2
    across, down = (np.maximum(1, np.rint(side * shown).astype(np.int64)) for side in (across, down))
    return _crops((h - down) // 2, (w - across) // 2, down, across, np.zeros(len(w), bool))


def _columns(keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    return hash_numpy(keys[:, None], np.arange(count)[None, :])


def _largest_allowed(w: Int64Array, h: Int64Array, ratio: tuple[float, float]) -> tuple[Int64Array, Int64Array]:
    """Sizes of the largest windows of an allowed ratio, for images so wide or so high that all tries failed."""
    actual = w / h
    crop_w = np.where(actual > ratio[1], np.rint(h * ratio[1]).astype(np.int64), w)
    crop_h = np.where(actual < ratio[0], np.rint(w / ratio[0]).astype(np.int64), h)
    return np.clip(crop_w, 1, w), np.clip(crop_h, 1, h)


def _crops(
    top: Int64Array, left: Int64Array, height: Int64Array, width: Int64Array, flip: npt.NDArray[np.bool_]
) -> Crops:
    start, shape = np.stack([top, left], axis=1), np.stack([height, width], axis=1)
    return Crops(start.astype(np.int32), shape.astype(np.int32), flip.astype(np.int32))

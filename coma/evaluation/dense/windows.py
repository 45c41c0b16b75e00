"""Windows in which a network sees images of any size.

Legend: N images, n windows, S pixels of a window's side as the network sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coma.errors import UsageError
from coma.pipeline.crops import Crops

IntArray = npt.NDArray[np.integer]
Int64Array = npt.NDArray[np.int64]

OVERLAP = 1 / 3
"""Part of a sliding window that the next one covers too: DINOv2's stride is 341 of 512 pixels."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of N images, those of one image side by side."""

    image: Int64Array
    """[n] number of the image, ascending."""
    crops: Crops
    """[n] windows in pixels of the image; the stream resizes each to S x S."""

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.image)

    def __getitem__(self, chosen: slice | Int64Array) -> Windows:
        """Return some of the windows."""
        return Windows(self.image[chosen], self.crops[chosen])


def whole_images(width: IntArray, height: IntArray) -> Windows:
    """One window an image, which holds all of it: its aspect ratio is lost, as in CAPI's evaluation.

    width, height: [N] pixels.
    """
    shape = np.stack([height, width], axis=1).astype(np.int32)
    return Windows(np.arange(len(shape)), _crops(np.zeros_like(shape), shape))


def sliding_windows(width: IntArray, height: IntArray, *, window_size: int, shorter_side: int) -> Windows:
    """Square windows that cover an image, as it is when its shorter side is resized to `shorter_side` pixels.

    Windows are two thirds of their side apart, and the last of a row or column ends with the image, as in mmseg's
    "slide" mode, by which DINOv2 is evaluated.

    Args:
        width, height: [N] pixels of the images.
        window_size: S, side of a window in pixels of the resized image.
        shorter_side: side that images are resized to, in pixels.

    Raises:
        UsageError: an image would be smaller than a window.
    """
    if shorter_side < window_size:
        raise UsageError(
            f"--shorter-side {shorter_side} is less than the {window_size} pixels of a window: give {window_size} or "
            "more, or a smaller --window-size"
        )
    image: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []  # top, left, height, width
    for number, (w, h) in enumerate(zip(width.tolist(), height.tolist(), strict=True)):
        scale = shorter_side / min(w, h)
        side = max(1, min(round(window_size / scale), w, h))
        tops, lefts = (_starts(length, side, window_size, scale) for length in (h, w))
        boxes += [(top, left, side, side) for top in tops for left in lefts]
        image += [number] * (len(tops) * len(lefts))
    table = np.array(boxes, np.int32).reshape(-1, 4)
    return Windows(np.array(image, np.int64), _crops(table[:, :2], table[:, 2:]))


def _starts(length: int, side: int, window_size: int, scale: float) -> list[int]:
    """First pixels of the windows along a side of `length` pixels."""
    step = max(1, int(window_size * (1 - OVERLAP)) / scale)
    count = 1 + max(0, int(np.ceil((length - side) / step - 1e-9)))
    return sorted({min(round(step * each), length - side) for each in range(count)})


def _crops(start: IntArray, shape: IntArray) -> Crops:
    return Crops(start.astype(np.int32), shape.astype(np.int32), np.zeros(len(start), np.int32))

"""Assembly of an image's segmentation from the class scores of its windows, in bounded memory.

Legend: L classes, a, b scores down and across a window, H, W pixels of the image that is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Resampling = Literal["nearest", "bilinear"]

_MOST_SCORES = 2**24
"""Number of class scores that are held at a time: the rows of a large image are assembled in bands."""


def assemble(size: tuple[int, int], boxes: Sequence[Box], scores: Sequence[Tensor], resampling: Resampling) -> Tensor:
    """Class of every pixel of an image: windows are resized to their boxes and added where they overlap.

    Args:
        size: H, W.
        boxes: the pixels of the image that each window covers; every pixel is in one or more.
        scores: [L, a, b] of each window.
        resampling: how a window's scores become its pixels'.

    Returns:
        [H, W] int64, on the device of the scores.
    """
    height, width = size
    classes, device = scores[0].shape[0], scores[0].device
    rows_at_once = max(1, _MOST_SCORES // (classes * width))
    weights = [
        [resize_weights(n, length, resampling, device) for n, length in zip(each.shape[1:], box[2:], strict=True)]
        for box, each in zip(boxes, scores, strict=True)
    ]
    predicted = torch.empty(height, width, dtype=torch.int64, device=device)
    for first in range(0, height, rows_at_once):
        end = min(first + rows_at_once, height)
        band = torch.zeros(classes, end - first, width, device=device)
        for (top, left, box_height, box_width), each, (down, across) in zip(boxes, scores, weights, strict=True):
            begin, stop = max(top, first), min(top + box_height, end)
            if begin < stop:
                part = down[begin - top : stop - top] @ each @ across.T  # [L, rows, box width]
                band[:, begin - first : stop - first, left : left + box_width] += part
        predicted[first:end] = band.argmax(dim=0)
    return predicted


def resize_weights(count: int, length: int, resampling: Resampling, device: torch.device) -> Tensor:
    """Weights [length, count] of `count` scores in each of the `length` pixels that they are resized to.

    The same as `torch.nn.functional.interpolate(mode=resampling, align_corners=False)`.
    """
    at = (torch.arange(length, device=device, dtype=torch.float64) + 0.5) * count / length
    weights = torch.zeros(length, count, device=device)
    if resampling == "nearest":
        return weights.scatter_(1, at.long()[:, None], 1.0)
    at = (at - 0.5).clamp(min=0)
    low = at.long()
    share = (at - low).float()
    weights.scatter_add_(1, low[:, None], (1 - share)[:, None])
    return weights.scatter_add_(1, (low + 1).clamp(max=count - 1)[:, None], share[:, None])

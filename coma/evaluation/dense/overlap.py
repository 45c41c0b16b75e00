"""Intersection over union of predicted and true segmentations.

Legend: N images, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DRAWS = 1000
"""Number of resamples of the test images for an interval."""


def pixel_counts(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count an image's pixels: [3, L] int64, those of a class predicted rightly, predicted, and true.

    predicted: [H, W] classes. truth: [H, W]; pixels of any other number than 0 to L - 1 count nowhere.
    """
    truth = truth.long()
    valid = (truth >= 0) & (truth < classes)
    truth, predicted = truth[valid], predicted[valid]
    of = (truth[predicted == truth], predicted, truth)
    return torch.stack([torch.bincount(each, minlength=classes) for each in of]).cpu()


@dataclass(frozen=True, eq=False)
class Overlap:
    """Pixels of N test images by class; percentages."""

    counts: Tensor  # [N, 3, L] int64 of `pixel_counts`

    @property
    def class_iou(self) -> list[float | None]:
        """IoU of each of the L classes; None for one that is neither in the images nor predicted."""
        return [None if iou.isnan() else float(iou) for iou in _iou(self.counts.sum(dim=0))]

    @property
    def class_share(self) -> list[float]:
        """Share of each class in the pixels that count."""
        true = self.counts[:, 2].sum(dim=0).double()
        return (100 * true / true.sum()).tolist()

    @property
    def miou(self) -> float:
        """Mean of the classes' IoU, without those that are neither in the images nor predicted."""
        return float(_iou(self.counts.sum(dim=0)).nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are predicted rightly."""
        right, _, true = self.counts.sum(dim=(0, 2)).tolist()
        return float(100 * right / true)

    def miou_interval(self) -> tuple[float, float]:
        """95% bootstrap interval of the mIoU over the test images, always the same (B. Efron, Ann. Stat. 7, 1979)."""
        n = len(self.counts)
        chance = torch.Generator().manual_seed(0)
        counts = self.counts.reshape(n, -1).double()
        values = []
        for _ in range(_DRAWS):
            times = torch.bincount(torch.randint(n, (n,), generator=chance), minlength=n).double()
            values.append(_iou((times @ counts).view(3, -1)).nanmean())
        low, high = torch.stack(values).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high


def _iou(counts: Tensor) -> Tensor:
    """IoU in percent [L] of counts [3, L]; NaN for a class without pixels."""
    right, predicted, true = counts.double()
    iou: Tensor = 100 * right / (predicted + true - right)
    return iou

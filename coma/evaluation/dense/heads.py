"""Heads that classify frozen patches: logistic regression, nearest neighbours, and DINOv2's linear layer.

Legend: B windows, C channels, h, w patches down and across, N patches, P pixels of a patch, L classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from coma.evaluation.dense.assemble import Resampling
from coma.evaluation.dense.overlap import Overlap, pixel_counts
from coma.evaluation.dense.patches import Patches
from coma.evaluation.features import held_out_fifth
from coma.evaluation.probe import L2_GRID, LinearProbe, fit_probe

logger = logging.getLogger(__name__)

NEIGHBOURS = (1, 3, 10, 30)
"""CAPI's numbers of neighbours to choose from."""
DISTANCES = ("cosine", "euclidean")
_QUERIES = 256  # patches compared with the bank at a time


class Head(Protocol):
    """A fitted head."""

    resampling: ClassVar[Resampling]
    """How its scores become those of pixels."""

    def scores(self, maps: Tensor) -> Tensor:
        """Score the classes of maps [B, C, h, w]: [B, L, a, b], of patches or of pixels."""
        ...


@dataclass(frozen=True, eq=False)
class LogisticHead:
    """Multinomial logistic regression on standardised patches: the probabilities of a patch's most frequent class."""

    probe: LinearProbe
    resampling: ClassVar[Resampling] = "nearest"

    def scores(self, maps: Tensor) -> Tensor:
        """Score maps [B, C, h, w]: [B, L, h, w]."""
        b, c, h, w = maps.shape
        logits = self.probe.logits(maps.permute(0, 2, 3, 1).reshape(-1, c))
        return logits.softmax(dim=1).view(b, h, w, -1).permute(0, 3, 1, 2)


def fit_logistic(patches: Patches, classes: int, grid: Sequence[float] = L2_GRID) -> LogisticHead:
    """Fit a logistic regression with the penalty of `grid` that has the best mIoU on a fifth of the images.

    It is fitted on the other images for that; of equally good penalties the strongest is taken.
    """
    fitted, tested = _split_by_image(patches)
    l2 = grid[len(grid) // 2]
    if len(fitted) and len(tested) and len(grid) > 1:

        def miou(l2: float) -> float:
            probe = fit_probe(fitted.x, fitted.classes, l2=l2, classes=classes)
            return _patch_miou(probe.logits(tested.x).argmax(dim=1)[:, None], tested, classes)

        scores = {l2: miou(l2) for l2 in grid}
        l2 = max(grid, key=lambda l2: (scores[l2], l2))
        logger.info("logistic: penalty %g of %s, chosen on a fifth of the images of train", l2, list(grid))
    return LogisticHead(fit_probe(patches.x, patches.classes, l2=l2, classes=classes))


@dataclass(frozen=True, eq=False)
class NeighbourHead:
    """Vote of the nearest training patches on each pixel of a patch, on standardised features."""

    mean: Tensor  # [C]
    std: Tensor  # [C]
    bank: Tensor  # [N, C] standardised, of length 1 if the distance is cosine
    pixels: Tensor  # [N, P] uint8
    classes: int
    neighbours: int
    distance: str
    resampling: ClassVar[Resampling] = "nearest"

    def scores(self, maps: Tensor) -> Tensor:
        """Score maps [B, C, h, w] by numbers of votes: [B, L, h·p, w·p] with p² = P."""
        b, c, h, w = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(-1, c)
        votes = torch.cat([self._votes(some) for some in torch.split(rows, _QUERIES)])  # [b·h·w, P, L]
        p = round(votes.shape[1] ** 0.5)
        return votes.view(b, h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h * p, w * p)

    def _votes(self, rows: Tensor) -> Tensor:
        nearest = self.nearest(rows, self.neighbours)
        return _votes(self.pixels[nearest], self.classes)

    def nearest(self, rows: Tensor, count: int) -> Tensor:
        """Return the rows of the bank nearest to features [m, C]: [m, count], the nearest first."""
        x = _at_distance((rows - self.mean) / self.std, self.distance)
        similarity = x @ self.bank.T
        if self.distance == "euclidean":
            similarity = 2 * similarity - self.bank.square().sum(dim=1)
        return similarity.topk(min(count, len(self.bank)), dim=1).indices


def fit_neighbours(
    patches: Patches,
    classes: int,
    neighbours: Sequence[int] = NEIGHBOURS,
    distances: Sequence[str] = DISTANCES,
) -> NeighbourHead:
    """Make a head with the number of neighbours and the distance that have the best mIoU on a fifth of the images.

    The neighbours are of the other images for that; of equally good ones the first is taken.
    """
    fitted, tested = _split_by_image(patches)
    best = (neighbours[0], distances[0])
    if len(fitted) and len(tested) and len(neighbours) * len(distances) > 1:
        scores: dict[tuple[int, str], float] = {}
        for distance in distances:
            head = _neighbour_head(fitted, classes, max(neighbours), distance)
            nearest = torch.cat([head.nearest(some, max(neighbours)) for some in torch.split(tested.x, _QUERIES)])
            for k in neighbours:
                votes = (_votes(fitted.pixels[some[:, :k]], classes) for some in torch.split(nearest, _QUERIES))
                predicted = torch.cat([each.argmax(dim=2) for each in votes])
                scores[k, distance] = _patch_miou(predicted, tested, classes)
        best = max(scores, key=lambda choice: scores[choice])
        logger.info("neighbours: %d by %s distance, chosen on a fifth of the images of train", *best)
    return _neighbour_head(patches, classes, *best)


def _neighbour_head(patches: Patches, classes: int, neighbours: int, distance: str) -> NeighbourHead:
    mean, std = patches.x.mean(dim=0), patches.x.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))  # a dead channel stays zero
    bank = _at_distance((patches.x - mean) / std, distance)
    return NeighbourHead(mean, std, bank, patches.pixels, classes, neighbours, distance)


def _at_distance(x: Tensor, distance: str) -> Tensor:
    return normalize(x, dim=1) if distance == "cosine" else x


def _votes(pixels: Tensor, classes: int) -> Tensor:
    """Count the classes of k patches' pixels [m, k, P]: [m, P, L] float32; ignored pixels have no vote."""
    m, k, p = pixels.shape
    votes = torch.zeros(m, p, classes + 1, device=pixels.device)
    for each in range(k):
        votes.scatter_add_(2, pixels[:, each, :, None].long().clamp(max=classes), votes.new_ones(m, p, 1))
    return votes[:, :, :classes]


def _split_by_image(patches: Patches) -> tuple[Patches, Patches]:
    """Return the patches of four fifths of the images, and those of the others."""
    held_out = held_out_fifth(len(patches.images), patches.images).to(patches.images.device)
    return patches.select(~held_out), patches.select(held_out)


def _patch_miou(predicted: Tensor, patches: Patches, classes: int) -> float:
    """mIoU over the pixels of patches, of predictions [N, P], or [N, 1] for all pixels of a patch."""
    counts = pixel_counts(predicted.expand_as(patches.pixels), patches.pixels, classes)
    return Overlap(counts[None]).miou

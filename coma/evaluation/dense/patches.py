"""Labelled patches: rows of frozen maps with the classes of their pixels, and which of them a head learns from.

Legend: N patches, C channels, P pixels of a patch, L classes, S pixels of a window's side; h, w patches of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from coma.pipeline.counter import Purpose, hash_numpy

IGNORED = 255
"""Class of the pixels that count nowhere."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of some images, each with a class of its own."""

    x: Tensor  # [N, C] float32
    classes: Tensor  # [N] int64, the most frequent class of a patch's pixels
    pixels: Tensor  # [N, P] uint8, the class of each, `IGNORED` for none
    images: Tensor  # [N] int64, number of the image that a patch is of

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.x)

    def select(self, chosen: Tensor) -> Patches:
        """Keep the rows where `chosen` [N] (bool) is true, or the rows that it lists (int64)."""
        return Patches(self.x[chosen], self.classes[chosen], self.pixels[chosen], self.images[chosen])

    def to(self, device: str) -> Patches:
        """Move the patches to a device."""
        return Patches(self.x.to(device), self.classes.to(device), self.pixels.to(device), self.images.to(device))

    @classmethod
    def joined(cls, parts: Sequence[Patches]) -> Self:
        """Put patches one after another."""
        return cls(
            torch.cat([part.x for part in parts]),
            torch.cat([part.classes for part in parts]),
            torch.cat([part.pixels for part in parts]),
            torch.cat([part.images for part in parts]),
        )


def patch_pixels(truth: Tensor, patches: int) -> Tensor:
    """Cut the masks [B, S, S] of windows into `patches` patches a side: [B, h, w, P] with P = (S / h)²."""
    b, side, _ = truth.shape
    p = side // patches
    cut = truth.reshape(b, patches, p, patches, p).transpose(2, 3)  # [B, h, w, p, p]
    return cut.reshape(b, patches, patches, p * p)


def majority(pixels: Tensor, classes: int) -> Tensor:
    """Return the most frequent class of each row of pixels [N, P]: [N] int64, `IGNORED` where none has as many.

    Of equally frequent ones the first is taken.
    """
    rows = torch.arange(len(pixels), device=pixels.device)[:, None] * (classes + 1)
    numbered = pixels.long().clamp(max=classes)  # the ignored ones last
    counts = torch.bincount((rows + numbered).flatten(), minlength=len(pixels) * (classes + 1))
    best = counts.view(len(pixels), classes + 1).argmax(dim=1)
    return torch.where(best == classes, IGNORED, best)


def chosen_patches(sample: int, labelled: int, most: int) -> Tensor:
    """Choose at most `most` of an image's `labelled` patches, always the same ones: [k] int64, ascending.

    They are those whose hash with the image's number is least.
    """
    if labelled <= most:
        return torch.arange(labelled)
    ranked = np.argsort(hash_numpy(Purpose.PATCHES, sample, np.arange(labelled)), kind="stable")
    return torch.from_numpy(np.sort(ranked[:most]))

"""What fine-tuning does to a batch before a step: RandAugment, erased rectangles, mixed pairs, soft labels.

All of it is torchvision's and timm's, and draws from the global generators, so it is a function of their seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode, RandAugment  # type: ignore[import-untyped]

from coma.pipeline import MEAN, STD
from coma.training.config.finetune_options import FinetuneConfig

_OPERATIONS = 2


class BatchRandAugment(RandAugment):  # type: ignore[misc]
    """torchvision's RandAugment, an operation at a time for all images [B, 3, H, W] of a batch that drew it."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, each changed by operations of its own."""
        names = list(self._AUGMENTATION_SPACE)
        for _ in range(self.num_ops):
            operations, signs = torch.randint(len(names), (len(images),)), torch.randint(2, (len(images),))
            images = self.changed(images, [names[operation] for operation in operations], signs.tolist())
        return images

    def changed(self, images: Tensor, names: Sequence[str], signs: Sequence[int]) -> Tensor:
        """Apply an operation to each image, whose magnitude is negative for sign 1 if it can be."""
        together: dict[tuple[str, float], list[int]] = defaultdict(list)
        for place, (name, sign) in enumerate(zip(names, signs, strict=True)):
            scale, signed = self._AUGMENTATION_SPACE[name]
            magnitudes = scale(self.num_magnitude_bins, *images.shape[-2:])
            magnitude = 0.0 if magnitudes is None else float(magnitudes[self.magnitude])
            together[name, -magnitude if signed and sign else magnitude].append(place)
        found = torch.empty_like(images)
        for (name, magnitude), places in together.items():
            found[places] = self._apply_image_or_video_transform(
                images[places], name, magnitude, interpolation=self.interpolation, fill=self._fill
            )
        return found


class Augment:
    """Turns a batch of crops and their labels into what a classifier is trained on.

    Args:
        config: how much of what.
        classes: N.
        device: where the batches are.
    """

    def __init__(self, config: FinetuneConfig, classes: int, device: torch.device) -> None:
        """Set up what is asked for."""
        self._classes, self._smoothing = classes, config.label_smoothing
        self._mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(STD, device=device).view(1, 3, 1, 1)
        grey = [round(255 * value) for value in MEAN]  # outside the image, when it is turned or shifted
        self._change = (
            BatchRandAugment(
                _OPERATIONS, config.rand_augment, interpolation=InterpolationMode.BILINEAR, fill=grey
            )
            if config.rand_augment
            else None
        )
        self._erase = (
            RandomErasing(config.erasing, mode="pixel", device=str(device)) if config.erasing else None
        )
        self._mix = (
            Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
            if config.mixes
            else None
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and the shares of classes in them.

        Args:
            images: [B, 3, H, W], normalised. They stay as they are.
            labels: [B] int64.

        Returns:
            images: [B, 3, H, W], normalised.
            targets: [B, N] float32.
        """
        images = self._changed(images)
        if self._erase is not None:
            images = self._erase(images)
        targets = F.one_hot(labels, self._classes) * (1 - self._smoothing) + self._smoothing / self._classes
        if self._mix is not None:
            even = len(images) // 2 * 2  # timm mixes pairs; one that is left over stays by itself
            images[:even], targets[:even] = self._mix(images[:even], labels[:even])
        return images, targets

    def _changed(self, images: Tensor) -> Tensor:
        """A copy of the images, each changed by RandAugment, which works on 8 bits."""
        if self._change is None:
            return images.clone()
        pixels = ((images * self._deviation + self._mean) * 255).round_().clamp_(0, 255).to(torch.uint8)
        changed: Tensor = self._change(pixels)
        return (changed.float() / 255 - self._mean) / self._deviation

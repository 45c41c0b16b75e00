"""Augmentation of a batch in fine-tuning: RandAugment, random erasing, mixup, CutMix and label smoothing.

torchvision's and timm's implementations draw from the global random generators, so they are a function of the seeds.
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

from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.training.config.finetune_options import FinetuneConfig

_OPERATIONS = 2


class BatchRandAugment(RandAugment):  # type: ignore[misc]
    """torchvision's RandAugment for a batch [B, 3, H, W]; images that draw the same operation are changed together."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, each changed by its own random operations."""
        names = list(self._AUGMENTATION_SPACE)
        for _ in range(self.num_ops):
            operations, signs = torch.randint(len(names), (len(images),)), torch.randint(2, (len(images),))
            images = self.changed(images, [names[operation] for operation in operations], signs.tolist())
        return images

    def changed(self, images: Tensor, names: Sequence[str], signs: Sequence[int]) -> Tensor:
        """Apply one operation to each image; its magnitude is negative for sign 1, where the operation allows it."""
        together: dict[tuple[str, float], list[int]] = defaultdict(list)
        for place, (name, sign) in enumerate(zip(names, signs, strict=True)):
            scale, signed = self._AUGMENTATION_SPACE[name]
            magnitudes = scale(self.num_magnitude_bins, *images.shape[-2:])
            magnitude = 0.0 if magnitudes is None else float(magnitudes[self.magnitude])
            together[name, -magnitude if signed and sign else magnitude].append(place)
        changed = torch.empty_like(images)
        for (name, magnitude), places in together.items():
            changed[places] = self._apply_image_or_video_transform(
                images[places], name, magnitude, interpolation=self.interpolation, fill=self._fill
            )
        return changed


def takes_colours(preprocessing: Preprocessing) -> bool:
    """Whether images are 8-bit RGB, on which alone RandAugment's operations are defined."""
    return preprocessing.pixels == DEFAULT.pixels


class Augment:
    """Augments a batch of crops and turns its labels into soft targets over N classes.

    RandAugment is left out for images that are not 8-bit RGB; erasing, mixup and CutMix are the same for all.
    """

    def __init__(
        self, config: FinetuneConfig, classes: int, device: torch.device, preprocessing: Preprocessing = DEFAULT
    ) -> None:
        self._classes, self._smoothing = classes, config.label_smoothing
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
        self._deviation = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)
        grey = [round(255 * value) for value in preprocessing.mean]  # outside the image, when it is turned or shifted
        self._change = (
            BatchRandAugment(_OPERATIONS, config.rand_augment, interpolation=InterpolationMode.BILINEAR, fill=grey)
            if config.rand_augment and takes_colours(preprocessing)
            else None
        )
        self._erase = RandomErasing(config.erasing, mode="pixel", device=str(device)) if config.erasing else None
        self._mix = (
            Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
            if config.mixes
            else None
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented images and soft targets.

        Args:
            images: [B, C, H, W], normalised; left unchanged.
            labels: [B] int64.

        Returns:
            images: [B, C, H, W], normalised.
            targets: [B, N] float32, the share of each class.
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
        """Return a copy of the images, each changed by RandAugment, which works on 8 bits."""
        if self._change is None:
            return images.clone()
        pixels = ((images * self._deviation + self._mean) * 255).round_().clamp_(0, 255).to(torch.uint8)
        changed: Tensor = self._change(pixels)
        return (changed.float() / 255 - self._mean) / self._deviation

"""What a user asks of `coma finetune`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from coma.training.config.options import RunConfig, require, require_at_least

_OF_MOST = "it must be from 0 to"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """A fine-tuning run as asked for; the defaults are MAE's for ViT-B (arXiv 2111.06377, table 9).

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    command: ClassVar[str] = "finetune"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    source: Path
    """Run, checkpoint or export whose backbone is taken."""
    image_size: int | None = None
    """Side of the square crop in pixels; None: as the source's."""
    base_lr: float = 5e-4
    evaluate_every: int | None = 1  # always, if there is a split val
    """Epochs between evaluations on split val."""
    layer_decay: float = 0.65
    """Each layer learns at this share of the rate of the one above it (BEiT, 2106.08254)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block, rising linearly from 0."""
    crop_scale: float = 0.08
    """Least part of an image's area that a crop shows."""
    rand_augment: int = 9
    """Magnitude of RandAugment, two operations an image, 0 to 30; 0: none."""
    erasing: float = 0.25
    """Share of images of which a rectangle is erased."""
    mixup: float = 0.8
    """Alpha of mixup; 0: none."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0: none. A step with both takes either at random."""
    label_smoothing: float = 0.1
    average_decay: float = 0.0
    """Of an exponential moving average of the weights, which is evaluated and exported; 0: none."""

    def __post_init__(self) -> None:
        """Refuse what no data and no machine could make right."""
        super().__post_init__()
        for flag, value, most in (
            ("--drop-path", self.drop_path, 0.99),
            ("--erasing", self.erasing, 1),
            ("--mixup", self.mixup, 100),
            ("--cutmix", self.cutmix, 100),
            ("--label-smoothing", self.label_smoothing, 0.99),
            ("--average-decay", self.average_decay, 0.999999),
        ):
            require(math.isfinite(value) and 0 <= value <= most, f"{flag} is {value}; {_OF_MOST} {most}")
        for flag, value in (("--layer-decay", self.layer_decay), ("--crop-scale", self.crop_scale)):
            require(0 < value <= 1, f"{flag} is {value}; it must be above 0 and at most 1")
        require(0 <= self.rand_augment <= 30, f"--rand-augment is {self.rand_augment}; {_OF_MOST} 30")
        require_at_least("--image-size", self.image_size, 1)

    @property
    def name(self) -> str:
        """The source's, and what was done to it."""
        path = self.source.resolve()
        if path.parent.name == "checkpoints":
            path = path.parent.parent
        return f"{path.name}-finetune"

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def identity(self) -> dict[str, Any]:
        """Return, by flag, what makes two commands the same run."""
        return {
            **super().identity(),
            "--layer-decay": self.layer_decay,
            "--drop-path": self.drop_path,
            "--crop-scale": self.crop_scale,
            "--rand-augment": self.rand_augment,
            "--erasing": self.erasing,
            "--mixup": self.mixup,
            "--cutmix": self.cutmix,
            "--label-smoothing": self.label_smoothing,
            "--average-decay": self.average_decay,
        }

"""How a network wants its images: what part of them, resized how, normalised with which mean and deviation.

A network of somebody else brings its own (timm's `pretrained_cfg`); all that is trained here has the default.
"""

from dataclasses import dataclass
from typing import Literal

from coma.pipeline.crops import EVAL_FRACTION

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue, for values from 0 to 1."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue, for values from 0 to 1."""

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation's way from an image to the pixels that a network sees.

    The shorter side is resized to image_size / `crop_fraction` pixels and the centre square is cut out.
    """

    mean: Colours = MEAN
    """Mean of red, green and blue, for values from 0 to 1."""
    std: Colours = STD
    """Standard deviation of red, green and blue, for values from 0 to 1."""
    crop_fraction: float = EVAL_FRACTION
    """Side of the centre square over the resized shorter side; timm calls it crop_pct."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of resizing, always antialiased."""
    squash: bool = False
    """Resize both sides to the same length, whatever the image's shape, in place of the shorter one."""


DEFAULT = Preprocessing()
"""That of everything that is trained here."""

"""Normalised images as pictures that a person sees: RGB as it is, other channels in false colour.

Legend: B images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coma.errors import UsageError
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.shards.images.false_colour import legend, parse_channels, shown_channels, to_rgb
from coma.shards.manifest.pixel_coding import PixelCoding

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Display:
    """How images are shown that were normalised for a network."""

    preprocessing: Preprocessing = DEFAULT
    pixels: PixelCoding | None = None
    """What the data's manifest says of the values; None: 8-bit RGB."""
    channels: tuple[int, ...] | None = None
    """Channels shown as red, green and blue, counted from 1; None: the first three, or the first in grey."""

    def shown(self, images: Tensor) -> Pixels:
        """Undo the normalisation: [B, C, H, W] float → [B, H, W, 3] uint8, clipped to what a screen can show."""
        like = self.preprocessing
        mean, std = (torch.tensor(each, device=images.device).view(-1, 1, 1) for each in (like.mean, like.std))
        values = images.float() * std + mean
        if self.pixels is None:
            levels = (values * 255).round().clamp(0, 255)
            return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return to_rgb((values * like.unit).permute(0, 2, 3, 1).cpu().numpy(), self.pixels, self.channels)

    @property
    def legend(self) -> str:
        """Which channels are shown, in words; empty for RGB."""
        return "" if self.pixels is None else legend(self.pixels, self.channels)

    @property
    def original(self) -> str:
        """Title of the images themselves: `original`, with the numbers of the channels of others than RGB."""
        if self.pixels is None:
            return "original"
        red, green, blue = shown_channels(self.pixels, self.channels)
        return f"original ({red})" if red == green == blue else f"original ({red}, {green}, {blue})"


RGB = Display()
"""That of 8-bit RGB images, normalised as ImageNet's."""


def display_of(preprocessing: Preprocessing | None, pixels: PixelCoding | None, channels: str | None) -> Display:
    """Return how a network's images of a data set are shown.

    Args:
        preprocessing: the network's; None: ImageNet's for RGB.
        pixels: what the data's manifest says of the values; None: 8-bit RGB.
        channels: --show-channels.

    Raises:
        UsageError: there are no such channels.
    """
    if channels is None:
        return Display(preprocessing or DEFAULT, pixels)
    if pixels is None:
        raise UsageError(f"--show-channels {channels}: these images are RGB, and shown as they are: leave it out")
    numbers = parse_channels(channels)
    shown_channels(pixels, numbers)  # or the reason why not
    return Display(preprocessing or DEFAULT, pixels, numbers)

"""False colour: three channels of a sample, or one, as a picture that a person sees.

Legend: H, W sides of a picture in pixels, C channels.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coma.errors import UsageError
from coma.shards.manifest.pixel_coding import PixelCoding

DARKEST_PERCENT, BRIGHTEST_PERCENT = 2.0, 98.0
"""Quantiles of a channel, over all samples, that are shown black and in full."""


def parse_channels(text: str, flag: str = "--show-channels") -> tuple[int, ...]:
    """Read "4,3,2", or one number for grey; channels are counted from 1. Raises UsageError."""
    if re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*){0,2}", text) is None or text.count(",") == 1:
        raise UsageError(f"{flag} {text} is not one channel or three; write the red, green and blue one as 4,3,2")
    return tuple(map(int, text.split(",")))


def channels_of(pixels: PixelCoding | None, text: str) -> tuple[int, ...]:
    """Read the channels of samples that are shown. Raises UsageError if there are none such, or for 8-bit RGB."""
    channels = parse_channels(text)
    if pixels is None:
        raise UsageError(f"--show-channels {text}: the images are 8-bit RGB, and shown as they are")
    return shown_channels(pixels, channels)


def shown_channels(pixels: PixelCoding, channels: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the channels, from 1 on, that are shown as red, green and blue: those asked for, else 1, 2, 3.

    Of fewer than three channels the first is shown in grey. Raises UsageError for a channel that is not there.
    """
    if not channels:
        return (1, 2, 3) if pixels.channels >= 3 else (1, 1, 1)
    for channel in channels:
        if not 1 <= channel <= pixels.channels:
            raise UsageError(
                f"--show-channels {','.join(map(str, channels))}: there is no channel {channel}; the samples have "
                f"{pixels.channels}, counted from 1"
            )
    return tuple(channels) if len(channels) == 3 else (channels[0],) * 3


def to_rgb(
    array: npt.NDArray[Any], pixels: PixelCoding, channels: Sequence[int] | None = None
) -> npt.NDArray[np.uint8]:
    """Return a sample [H, W, C] in false colour [H, W, 3].

    Each channel is stretched alike in all samples: from its 2nd to its 98th percentile over the whole split.
    Raises UsageError as `shown_channels` does.
    """
    shown = [channel - 1 for channel in shown_channels(pixels, channels)]
    least = np.array([pixels.quantile(channel, DARKEST_PERCENT) for channel in shown])
    greatest = np.array([pixels.quantile(channel, BRIGHTEST_PERCENT) for channel in shown])
    width = np.where(greatest > least, greatest - least, 1)
    share = (array[..., shown].astype(np.float64) - least) / width
    levels: npt.NDArray[np.uint8] = np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return levels


def legend(pixels: PixelCoding, channels: Sequence[int] | None = None) -> str:
    """Say which channels are shown: "channels 4, 3, 2 as red, green, blue"."""
    red, green, blue = shown_channels(pixels, channels)
    if red == green == blue:
        return f"channel {red} in grey"
    return f"channels {red}, {green}, {blue} as red, green, blue"

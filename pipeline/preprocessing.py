"""How a network wants its images: what part of them, resized how, and clipped and normalised by which numbers.

A network of somebody else brings its own (timm's `pretrained_cfg`). What is trained here on 8-bit RGB images has
ImageNet's mean and deviation; on images of other channels or types, those of the data (`of_data`).

Values of 8-bit images count from 0 to 1, as ImageNet's are given; those of all other types are in the images' own
units. torchvision's and timm's ToTensor see them so as well.

Legend: C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from coma.errors import UsageError
from coma.shards.images.options import pixels_in_words

if TYPE_CHECKING:
    from coma.shards.manifest.pixel_coding import PixelCoding

EVAL_FRACTION = 224 / 256
"""Side of the evaluated centre square over the resized shorter side, as ImageNet is evaluated since AlexNet."""
MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue, for values from 0 to 1."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue, for values from 0 to 1."""

_LEAST_DEVIATION = 2.0**-126
"""Smallest float32 of full precision, by which any other can be divided."""

Values = tuple[float, ...]
"""A number for each of C channels."""


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation's way from an image to the pixels that a network sees.

    The shorter side is resized to image_size / `crop_fraction` pixels and the centre square is cut out.
    """

    mean: Values = MEAN
    """[C] mean, of 8-bit images for values from 0 to 1."""
    std: Values = STD
    """[C] standard deviation, of 8-bit images for values from 0 to 1."""
    crop_fraction: float = EVAL_FRACTION
    """Side of the centre square over the resized shorter side; timm calls it crop_pct."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of resizing, always antialiased."""
    squash: bool = False
    """Resize both sides to the same length, whatever the image's shape, in place of the shorter one."""
    dtype: str = "uint8"
    """Type of the images' values: uint8, uint16, int16 or float32."""
    low: Values | None = None
    """[C] smaller values are raised to these before an image is resized, with `high`; None: none are."""
    high: Values | None = None
    """[C] greater values are lowered to these before an image is resized; None: none are."""

    def __post_init__(self) -> None:
        """Raise UsageError unless there is a number for each channel."""
        if {len(each) for each in (self.mean, self.std, self.low, self.high) if each is not None} != {self.channels}:
            raise UsageError(
                f"preprocessing with {len(self.mean)} means and {len(self.std)} deviations: give one for each channel"
            )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    @property
    def unit(self) -> float:
        """What a value of the images is divided by before `mean` and `std` apply to it."""
        return 255.0 if self.dtype == "uint8" else 1.0

    @property
    def pixels(self) -> str:
        """Channels and type in words: `13 channels of uint16`."""
        return pixels_in_words(self.channels, self.dtype)

    @property
    def kind(self) -> str:
        """Channels and type in words, and whether values are clipped."""
        return self.pixels if self.low is None else f"{self.pixels}, clipped"

    @property
    def takes_rgb(self) -> bool:
        """Whether it is for 8-bit RGB images, whose values are never clipped."""
        return self.pixels == DEFAULT.pixels and self.low is None

    def describe(self) -> str:
        """Return channels, type, mean and deviation in words, for the console."""
        mean, std = (_numbers(each) for each in (self.mean, self.std))
        clipped = (
            ""
            if self.low is None or self.high is None
            else (f", clipped at {_numbers(self.low)} and {_numbers(self.high)}")
        )
        return f"{self.pixels}{clipped}, of mean {mean} and deviation {std}"

    def to_json(self) -> dict[str, Any]:
        """Return what a run and an export keep of it; evaluation's crops are always the same there."""
        clipped = {name: list(values) for name in ("low", "high") if (values := getattr(self, name)) is not None}
        return {
            "channels": self.channels,
            "dtype": self.dtype,
            "mean": list(self.mean),
            "std": list(self.std),
            **clipped,
        }

    @classmethod
    def from_json(cls, about: dict[str, Any] | None) -> Preprocessing:
        """Make it from what `to_json` returned; None: that of 8-bit RGB. Raises KeyError, TypeError, ValueError."""
        if about is None:
            return DEFAULT
        low, high = (None if about.get(name) is None else _values(about[name]) for name in ("low", "high"))
        return cls(_values(about["mean"]), _values(about["std"]), dtype=str(about["dtype"]), low=low, high=high)


DEFAULT = Preprocessing()
"""That of everything that is trained here on 8-bit RGB images, unless something else is asked for."""


def _numbers(values: Values) -> str:
    return " ".join(f"{each:.4g}" for each in values)


def of_data(
    pixels: PixelCoding | None,
    *,
    mean: str | None = None,
    std: str | None = None,
    clip_percentile: float | None = None,
    base: Preprocessing | None = None,
) -> Preprocessing:
    """Return the preprocessing of a data set, unless something else is asked for.

    Args:
        pixels: what the manifest says of the values; None: 8-bit RGB images.
        mean, std: a number for each channel, with commas; None: those of the data, or ImageNet's for RGB.
        clip_percentile: P, where values are clipped at the P-th and (100 - P)-th percentile of each channel.
        base: what to take in place of the data's, such as that of the network to start from.

    Raises:
        UsageError: the numbers do not fit the data.
    """
    channels = 3 if pixels is None else pixels.channels
    made = base or DEFAULT
    low = high = None
    if pixels is None and clip_percentile is not None:
        raise UsageError(
            "--clip-percentile needs the percentiles of the data, which sets of 8-bit RGB images do not have: leave it "
            "out, or shard with --channels 3"
        )
    if pixels is not None and (base is None or clip_percentile is not None):
        unit = 255.0 if pixels.dtype == "uint8" else 1.0
        means, deviations = pixels.mean, pixels.std
        if clip_percentile is not None:
            low = tuple(pixels.quantile(c, clip_percentile) for c in range(channels))
            high = tuple(pixels.quantile(c, 100 - clip_percentile) for c in range(channels))
            clipped = [_clipped(*each) for each in zip(pixels.quantiles, low, high, strict=True)]
            means, deviations = tuple(each[0] for each in clipped), tuple(each[1] for each in clipped)
        made = Preprocessing(
            tuple(each / unit for each in means),
            tuple(_deviation(each / unit, middle / unit) for each, middle in zip(deviations, means, strict=True)),
            dtype=pixels.dtype,
            low=None if low is None else tuple(each / unit for each in low),
            high=None if high is None else tuple(each / unit for each in high),
        )
    given = {"mean": _given(mean, "--mean", made), "std": _given(std, "--std", made)}
    if any(each <= 0 for each in given["std"]):
        raise UsageError(f"--std {std}: deviations are above 0")
    chosen = Preprocessing(**{**vars(made), **given})
    return DEFAULT if chosen == DEFAULT else chosen


def check_fits(wanted: Preprocessing, pixels: PixelCoding | None, name: str, folder: str) -> None:
    """Raise UsageError unless a network that wants its images like that can be given those of a data set.

    Args:
        wanted: the network's.
        pixels: what the manifest says of the values; None: 8-bit RGB images.
        name: the network, for the message.
        folder: the data set, for the message.
    """
    there = (3, "uint8") if pixels is None else (pixels.channels, pixels.dtype)
    if (wanted.channels, wanted.dtype) != there or (pixels is None and not wanted.takes_rgb):
        sharded = "" if pixels is not None else f", sharded with --channels {wanted.channels}"
        raise UsageError(
            f"{name} takes images of {wanted.kind}, and those of {folder} have {pixels_in_words(*there)}: give "
            f"images of the kind that it was trained on{sharded}"
        )


def _clipped(quantiles: Values, low: float, high: float) -> tuple[float, float]:
    """Return mean and deviation of values that are clipped, of which the quantiles are at equal distances.

    The quantile function is taken as straight between two of them, so that both integrals are exact.
    """
    ends = [min(max(each, low), high) for each in quantiles]
    pairs = list(pairwise(ends))
    mean = math.fsum((a + b) / 2 for a, b in pairs) / len(pairs)
    square = math.fsum(((a - mean) ** 2 + (a - mean) * (b - mean) + (b - mean) ** 2) / 3 for a, b in pairs)
    return mean, math.sqrt(square / len(pairs))


def _deviation(std: float, mean: float) -> float:
    """Return what a channel is divided by: of one value everywhere, a number beside which its rounding is nothing."""
    return std if std >= _LEAST_DEVIATION else max(1.0, abs(mean) / 2**16)


def _given(text: str | None, flag: str, made: Preprocessing) -> Values:
    """Return the numbers of a flag, or what stands without it."""
    if text is None:
        return made.mean if flag == "--mean" else made.std
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise UsageError(f"{flag} {text!r}: give a number for each channel, with commas: 0.5,0.5,0.5")
    if len(values) != made.channels:
        raise UsageError(f"{flag} has {len(values)} of the {made.channels} numbers that {made.pixels} take: {text}")
    if made.dtype == "uint8" and max(values) > 1:
        raise UsageError(f"{flag} {text}: values of 8-bit images count from 0 to 1, so give them divided by 255")
    return values


def _values(values: Any) -> Values:
    return tuple(map(float, values))

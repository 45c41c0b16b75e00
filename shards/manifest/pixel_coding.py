"""Pixels of a data set that is not of 8-bit RGB images: channels, type and statistics of their values.

Legend: C channels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

PIXELS_KEY = b"coma.pixels"
"""Key of the coding in a manifest's metadata; a manifest of 8-bit RGB images has none."""
DTYPES = ("uint8", "uint16", "int16", "float32")
"""Types of the values that samples may have."""
QUANTILES = 1001
"""Quantiles from 0.0% to 100.0% in steps of 0.1%."""


def in_words(channels: int, dtype: str) -> str:
    """Return channels and type as text: "13 channels of uint16"."""
    return f"{channels} {'channel' if channels == 1 else 'channels'} of {dtype}"


@dataclass(frozen=True)
class PixelCoding:
    """Channels and type of all samples of a split, and the statistics of all its values, in raw units.

    Mean, deviation, least and greatest value are exact; of float32 the quantiles between are within 0.8%.
    """

    channels: int
    dtype: str
    """One of `DTYPES`."""
    mean: tuple[float, ...]
    """[C] mean of all values."""
    std: tuple[float, ...]
    """[C] standard deviation; 0 for a channel that has one value everywhere."""
    least: tuple[float, ...]
    """[C] smallest value."""
    greatest: tuple[float, ...]
    """[C] largest value."""
    quantiles: tuple[tuple[float, ...], ...]
    """[C][1001] value at 0.0%, 0.1%, ..., 100.0%."""

    @property
    def identity(self) -> str:
        """What makes samples fit a model: belongs to the fingerprint of the data."""
        return in_words(self.channels, self.dtype)

    def quantile(self, channel: int, percent: float) -> float:
        """Return the value of a channel below which `percent` of its values lie, between steps of 0.1% by a line."""
        values, at = self.quantiles[channel], percent / 100 * (QUANTILES - 1)
        below = min(int(at), QUANTILES - 2)
        return values[below] + (at - below) * (values[below + 1] - values[below])

    def summary(self) -> dict[str, Any]:
        """Return the coding as plain JSON types, without the quantiles."""
        about = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        del about["quantiles"]
        return about

    def to_json(self) -> dict[str, Any]:
        """Return the coding as plain JSON types."""
        return self.summary() | {"quantiles": [list(values) for values in self.quantiles]}

    def to_metadata(self) -> bytes:
        """Return the coding as it stands in a manifest's metadata."""
        return json.dumps(self.to_json()).encode()


def pixels_from_json(about: dict[str, Any]) -> PixelCoding:
    """Return the coding that `PixelCoding.to_json` describes. Raises KeyError, TypeError, ValueError for others."""

    def per_channel(name: str) -> tuple[float, ...]:
        return tuple(map(float, about[name]))

    coding = PixelCoding(
        channels=int(about["channels"]),
        dtype=str(about["dtype"]),
        mean=per_channel("mean"),
        std=per_channel("std"),
        least=per_channel("least"),
        greatest=per_channel("greatest"),
        quantiles=tuple(tuple(map(float, values)) for values in about["quantiles"]),
    )
    lengths = {len(values) for values in (coding.mean, coding.std, coding.least, coding.greatest, coding.quantiles)}
    if lengths != {coding.channels} or {len(values) for values in coding.quantiles} != {QUANTILES}:
        raise ValueError("a statistic does not have a value for each channel")
    if coding.dtype not in DTYPES:
        raise ValueError(f"values of type {coding.dtype}")
    return coding


def mixed_pixels(codings: Sequence[PixelCoding], weights: Sequence[int]) -> PixelCoding:
    """Return the statistics of the values of several data sets, each with its share.

    Args:
        codings: M codings of the same channels and type.
        weights: [M] shares.
    """
    shares = np.asarray(weights, np.float64)[:, None] / sum(weights)  # [M, 1]
    mean, std = (np.array([getattr(coding, name) for coding in codings]) for name in ("mean", "std"))  # [M, C]
    middle = (shares * mean).sum(axis=0)
    variance = (shares * (std**2 + (mean - middle) ** 2)).sum(axis=0)
    return PixelCoding(
        channels=codings[0].channels,
        dtype=codings[0].dtype,
        mean=tuple(middle.tolist()),
        std=tuple(np.sqrt(variance).tolist()),
        least=tuple(min(values) for values in zip(*(coding.least for coding in codings), strict=True)),
        greatest=tuple(max(values) for values in zip(*(coding.greatest for coding in codings), strict=True)),
        quantiles=tuple(
            _mixed_quantiles([np.array(coding.quantiles[channel]) for coding in codings], shares[:, 0])
            for channel in range(codings[0].channels)
        ),
    )


def _mixed_quantiles(of_each: Sequence[np.ndarray[Any, Any]], shares: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """Return a channel's quantiles over several data sets, whose values lie on lines between their own quantiles."""
    levels = np.linspace(0, 1, QUANTILES)
    values = np.unique(np.concatenate(of_each))
    # The shares of all values below each of `values`, and up to it: a value of many pixels is a step.
    shares_of = np.zeros((len(values), 2))
    for share, each in zip(shares, of_each, strict=True):
        first, last = np.diff(each, prepend=-np.inf) > 0, np.diff(each, append=np.inf) > 0
        shares_of[:, 0] += share * np.interp(values, each[first], levels[first], left=0, right=1)
        shares_of[:, 1] += share * np.interp(values, each[last], levels[last], left=0, right=1)
    return tuple(np.interp(levels, shares_of.ravel(), values.repeat(2)).tolist())

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


@dataclass(frozen=True)
class PixelCoding:
    """Channels and type of all samples of a split, and the statistics of all its values, in raw units.

    Mean, deviation, least and greatest value are exact; of float32 the quantiles between are within 0.8%.
    """

    channels: int
    dtype: str
    """One of `DTYPES`."""
    mean: tuple[float, ...]
    """[C]"""
    std: tuple[float, ...]
    """[C] standard deviation; 0 for a channel that has one value everywhere."""
    least: tuple[float, ...]
    """[C]"""
    greatest: tuple[float, ...]
    """[C]"""
    quantiles: tuple[tuple[float, ...], ...]
    """[C][1001] value at 0.0%, 0.1%, ..., 100.0%."""

    @property
    def identity(self) -> str:
        """What makes samples fit a model: belongs to the fingerprint of the data."""
        return f"{self.channels} channels of {self.dtype}"

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


def mixed_pixels(codings: Sequence[PixelCoding], weights: Sequence[int]) -> PixelCoding:
    """Return the coding of a mixture of data sets of the same channels and type.

    Mean and deviation are exact for images drawn by the weights; the quantiles are within 0.1% of the values.
    """
    share = np.array(weights)[:, None] / sum(weights)  # [M, 1]
    mean, std = (np.array([getattr(each, name) for each in codings]) for name in ("mean", "std"))  # [M, C]
    whole = (share * mean).sum(axis=0)  # [C]
    variance = (share * (std**2 + (mean - whole) ** 2)).sum(axis=0)
    least = tuple(map(min, zip(*(each.least for each in codings), strict=True)))
    greatest = tuple(map(max, zip(*(each.greatest for each in codings), strict=True)))
    quantiles, levels = [], np.linspace(0, 1, QUANTILES)
    for channel in range(codings[0].channels):
        values = np.concatenate([each.quantiles[channel] for each in codings])  # [M * 1001]
        order, mass = np.argsort(values, kind="stable"), np.repeat(share[:, 0] / QUANTILES, QUANTILES)
        below = np.cumsum(mass[order]) - mass[order] / 2
        inner = np.interp(levels, below, values[order])[1:-1].tolist()
        quantiles.append((least[channel], *inner, greatest[channel]))
    return PixelCoding(
        channels=codings[0].channels,
        dtype=codings[0].dtype,
        mean=tuple(whole.tolist()),
        std=tuple(np.sqrt(variance).tolist()),
        least=least,
        greatest=greatest,
        quantiles=tuple(quantiles),
    )


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

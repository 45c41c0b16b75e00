"""Pixels of a data set that is not of 8-bit RGB images: channels, type and statistics of their values.

Legend: C channels.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from coma.shards.images.options import pixels_in_words

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
        return pixels_in_words(self.channels, self.dtype)

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

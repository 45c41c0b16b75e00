"""Exact statistics of the values of many samples, whatever their order and however they are shared among processes.

Values are counted in bins: every value of 8 or 16 bits is a bin; a float32 belongs to the bin of its upper 16 bits,
and the sums of its lower 16 bits and of their squares are kept with the count. All are integers, so that sums are
exact, and mean and deviation are rounded once, at the end.
Legend: C channels, h, w sides of a sample.
"""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coma.shards.manifest.pixel_coding import QUANTILES, PixelCoding

_BINS = 65_536
_LOW = 0xFFFF
_MOST_PIXELS = 2**21  # at a time: so many squares of 32 bits have an exact sum in float64
_KEY = b"coma.pixel_counts"
_SCHEMA = pa.schema(
    [
        pa.field("channel", pa.uint8()),
        pa.field("bin", pa.uint16()),
        pa.field("count", pa.int64()),
        pa.field("low_sum", pa.int64()),  # of float32: the lower 16 bits of all values in the bin
        pa.field("square_low", pa.uint64()),  # the sum of their squares is square_low + square_high * 2^32
        pa.field("square_high", pa.uint64()),
    ]
)

_Counts = npt.NDArray[np.int64]


class PixelCounts:
    """Counts of the values of samples of one number of channels and one type."""

    def __init__(self, channels: int, dtype: str) -> None:
        self.channels = channels
        self.dtype = np.dtype(dtype)
        self.counts: _Counts = np.zeros((channels, _BINS), np.int64)
        self.least = np.full(channels, np.inf)
        self.greatest = np.full(channels, -np.inf)
        shape = (channels, _BINS) if self.is_float else (0, 0)
        self.low_sum: _Counts = np.zeros(shape, np.int64)
        self.square_low = np.zeros(shape, np.uint64)
        self.square_high = np.zeros(shape, np.uint64)

    @property
    def is_float(self) -> bool:
        """Whether bins hold more than one value."""
        return self.dtype.kind == "f"

    def add(self, pixels: npt.NDArray[Any]) -> None:
        """Count the values of a sample [h, w, C], all of them finite."""
        if pixels.flags.c_contiguous:
            flat = pixels.reshape(-1, self.channels)  # [h·w, C]
            for start in range(0, len(flat), _MOST_PIXELS):
                for channel, plane in enumerate(np.ascontiguousarray(flat[start : start + _MOST_PIXELS].T)):
                    self._add_plane(channel, plane)
            return
        for channel in range(self.channels):  # planes, of which one at a time is copied
            plane = np.ascontiguousarray(pixels[..., channel]).reshape(-1)
            for start in range(0, len(plane), _MOST_PIXELS):
                self._add_plane(channel, plane[start : start + _MOST_PIXELS])

    def _add_plane(self, channel: int, plane: npt.NDArray[Any]) -> None:
        self.least[channel] = min(self.least[channel], plane.min())
        self.greatest[channel] = max(self.greatest[channel], plane.max())
        if not self.is_float:
            bins = plane.view(np.uint16) if self.dtype.itemsize == 2 else plane
            counts = np.bincount(bins)
            self.counts[channel, : len(counts)] += counts
            return
        bits = plane.view(np.uint32)
        bins, low = (bits >> 16).astype(np.intp), (bits & _LOW).astype(np.float64)
        counts = np.bincount(bins)
        of = slice(0, len(counts))
        self.counts[channel, of] += counts
        self.low_sum[channel, of] += np.bincount(bins, low).astype(np.int64)
        squares = np.bincount(bins, low * low).astype(np.uint64)
        self.square_low[channel, of] += squares & np.uint64(0xFFFFFFFF)
        self.square_high[channel, of] += squares >> np.uint64(32)

    def to_table(self) -> pa.Table:
        """Return the counts as a table of the bins that are not empty."""
        channel, number = np.nonzero(self.counts)
        empty = np.zeros(len(channel), np.int64)

        def taken(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return values[channel, number] if self.is_float else empty

        columns = [channel, number, self.counts[channel, number]]
        columns += [taken(values) for values in (self.low_sum, self.square_low, self.square_high)]
        about = {
            "channels": self.channels,
            "dtype": self.dtype.name,
            "least": self.least.tolist(),
            "greatest": self.greatest.tolist(),
        }
        arrays = [pa.array(values).cast(field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata({_KEY: json.dumps(about)}))

    @staticmethod
    def type_of(metadata: dict[bytes, bytes]) -> str:
        """Return the type of the values from the metadata of a table."""
        return str(json.loads(metadata[_KEY])["dtype"])

    def add_table(self, table: pa.Table) -> None:
        """Add the counts of a table."""
        about = json.loads(table.schema.metadata[_KEY])
        self.least = np.minimum(self.least, about["least"])
        self.greatest = np.maximum(self.greatest, about["greatest"])
        columns = [table[name].to_numpy() for name in _SCHEMA.names]
        at = (columns[0].astype(np.intp), columns[1].astype(np.intp))
        self.counts[at] += columns[2]
        if self.is_float:
            self.low_sum[at] += columns[3]
            self.square_low[at] += columns[4]
            self.square_high[at] += columns[5]

    def coding(self) -> PixelCoding:
        """Return the statistics of all values that were counted, at least one in each channel."""
        moments = [self._moments(channel) for channel in range(self.channels)]
        return PixelCoding(
            channels=self.channels,
            dtype=self.dtype.name,
            mean=tuple(float(mean) for mean, _ in moments),
            std=tuple(math.sqrt(variance) for _, variance in moments),
            least=tuple(self.least.tolist()),
            greatest=tuple(self.greatest.tolist()),
            quantiles=tuple(tuple(self._quantiles(channel)) for channel in range(self.channels)),
        )

    def _moments(self, channel: int) -> tuple[Fraction, Fraction]:
        """Return mean and variance."""
        bins = np.flatnonzero(self.counts[channel]).tolist()
        counts = self.counts[channel, bins].tolist()
        total, squares, scale = sum(counts), 0, 1
        if not self.is_float:
            values = self._values(np.array(bins)).tolist()
            number = sum(int(value) * count for value, count in zip(values, counts, strict=True))
            squares = sum(int(value) ** 2 * count for value, count in zip(values, counts, strict=True))
        else:
            number, scale = 0, 2**149  # every float32 is a multiple of 2^-149
            low_sums = self.low_sum[channel, bins].tolist()
            low_squares = self.square_low[channel, bins].tolist(), self.square_high[channel, bins].tolist()
            for bin_, count, low, first, second in zip(bins, counts, low_sums, *low_squares, strict=True):
                exponent = (bin_ >> 7) & 0xFF
                high = ((bin_ & 0x7F) | (0x80 if exponent else 0)) << 16
                shift = max(exponent, 1) - 1
                of_bin = (count * high + low) << shift
                number += -of_bin if bin_ >> 15 else of_bin
                squares += (count * high * high + 2 * high * low + first + (second << 32)) << 2 * shift
        mean = Fraction(number, total * scale)
        return mean, Fraction(squares, total * scale * scale) - mean * mean

    def _values(self, bins: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the value of each bin; of float32, the one of its bin that is nearest to zero."""
        if self.is_float:
            return (bins.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return bins.astype(np.uint16).view(np.int16 if self.dtype == np.int16 else np.uint16).astype(np.float64)

    def _quantiles(self, channel: int) -> list[float]:
        """Return the quantiles as numpy.percentile's default method defines them; see `_of_ranks` for float32."""
        bins = np.flatnonzero(self.counts[channel])
        starts = self._values(bins)
        order = np.lexsort((~np.signbit(starts), starts))  # -0.0 before 0.0
        bins, starts, counts = bins[order], starts[order], self.counts[channel, bins[order]]
        before = np.cumsum(counts) - counts
        last = int(counts.sum()) - 1
        ranks = [divmod(step * last, QUANTILES - 1) for step in range(QUANTILES)]
        below = np.array([rank for rank, _ in ranks])
        values, following = (
            self._of_ranks(channel, bins, starts, before, counts, np.minimum(each, last)) for each in (below, below + 1)
        )
        share = np.array([remainder for _, remainder in ranks]) / (QUANTILES - 1)
        quantiles = values + share * (following - values)
        if self.is_float:
            quantiles = np.array([float(f"{value:.6g}") for value in quantiles.tolist()])
        least, greatest = self.least[channel], self.greatest[channel]
        quantiles[0], quantiles[-1] = least, greatest
        return [float(value) for value in np.clip(quantiles, least, greatest)]

    def _of_ranks(
        self,
        channel: int,
        bins: npt.NDArray[np.int64],
        starts: npt.NDArray[np.float64],
        before: _Counts,
        counts: _Counts,
        ranks: _Counts,
    ) -> npt.NDArray[np.float64]:
        """Return the values at ranks of the sorted values.

        A bin of float32 is as wide as 1/128 of its value, in which its values are taken to lie evenly, between least
        and greatest.
        """
        at = np.searchsorted(before, ranks, side="right") - 1
        if not self.is_float:
            return np.asarray(starts[at])
        with np.errstate(over="ignore", invalid="ignore"):
            far = ((bins.astype(np.uint32) << 16) | np.uint32(_LOW)).view(np.float32).astype(np.float64)
        low = np.maximum(np.minimum(starts, far), self.least[channel])
        high = np.minimum(np.maximum(starts, far), self.greatest[channel])
        place = (ranks - before[at] + 0.5) / counts[at]
        return np.asarray(low[at] + place * (high[at] - low[at]))

"""Statistics of the values of several data sets together, each with its share.

Legend: M data sets, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coma.shards.manifest.pixel_coding import QUANTILES, PixelCoding


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
    # The shares of all values below each of `values`, and up to it: a value of many pixels is a step. Of quantiles that
    # are equal, np.interp takes the last; turned round, the first.
    shares_of = np.zeros((len(values), 2))
    for share, each in zip(shares, of_each, strict=True):
        above = np.interp(-values, -each[::-1], 1 - levels[::-1], left=0, right=1)
        shares_of[:, 0] += share * (1 - above)
        shares_of[:, 1] += share * np.interp(values, each, levels, left=0, right=1)
    return tuple(np.interp(levels, shares_of.ravel(), values.repeat(2)).tolist())

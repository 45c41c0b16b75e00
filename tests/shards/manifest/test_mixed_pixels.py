"""Statistics of the values of several data sets together."""

import numpy as np
import pytest

from coma.shards.manifest.mixed_pixels import mixed_pixels
from coma.shards.manifest.pixel_coding import QUANTILES, PixelCoding


def coding(*channels: np.ndarray) -> PixelCoding:
    levels = np.linspace(0, 100, QUANTILES)
    return PixelCoding(
        channels=len(channels),
        dtype="uint16",
        mean=tuple(float(values.mean()) for values in channels),
        std=tuple(float(values.std()) for values in channels),
        least=tuple(float(values.min()) for values in channels),
        greatest=tuple(float(values.max()) for values in channels),
        quantiles=tuple(tuple(np.percentile(values, levels).tolist()) for values in channels),
    )


def test_they_are_those_of_all_values_by_their_shares() -> None:
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(100, 10, 60_000), rng.exponential(300, 20_000)
    flat, other = np.full(60_000, 7.0), np.full(20_000, 9.0)
    mixed = mixed_pixels([coding(dark, flat), coding(bright, other)], [3, 1])
    for channel, values in enumerate((np.concatenate([dark, bright]), np.concatenate([flat, other]))):
        assert mixed.mean[channel] == pytest.approx(values.mean())
        assert mixed.std[channel] == pytest.approx(values.std())
        assert (mixed.least[channel], mixed.greatest[channel]) == (values.min(), values.max())
    for percent in (0, 1, 10, 50, 74, 76, 90, 99, 100):
        wanted = np.percentile(np.concatenate([dark, bright]), percent)
        assert mixed.quantile(0, percent) == pytest.approx(wanted, rel=0.02)
        assert mixed.quantile(1, percent) == pytest.approx(7 if percent < 75 else 9, abs=0.02)


def test_a_value_of_many_pixels_with_nothing_near_it_is_one_step() -> None:
    """No data are 0, all others far above, and another data set has values in between."""
    rng = np.random.default_rng(0)
    gaps = np.where(rng.random(40_000) < 0.5, 0.0, 60_000 + rng.normal(0, 9, 40_000))
    between = rng.uniform(100, 5_000, 40_000)
    mixed, both = mixed_pixels([coding(gaps), coding(between)], [1, 1]), np.concatenate([gaps, between])
    for percent in (2, 20, 30, 50, 70, 74, 76, 98):
        assert mixed.quantile(0, percent) == pytest.approx(np.percentile(both, percent), rel=0.03, abs=1e-6)


def test_one_data_set_alone_keeps_its_own() -> None:
    alone = coding(np.random.default_rng(1).integers(0, 50, 5_000).astype(float))
    mixed = mixed_pixels([alone], [1])
    assert mixed.mean == pytest.approx(alone.mean)
    assert np.abs(np.array(mixed.quantiles) - np.array(alone.quantiles)).max() <= 1

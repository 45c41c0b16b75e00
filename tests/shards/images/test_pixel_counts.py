"""Statistics are exact, whatever the order of the samples and however they are shared."""

from fractions import Fraction

import numpy as np
import pytest
from arrays import DTYPES, drawn_array

from coma.shards.images.pixel_counts import PixelCounts


def samples(dtype):
    yield from (drawn_array(3, dtype, 20 + seed, 33, seed) for seed in range(5))
    odd = np.zeros((4, 4, 3), dtype)
    if dtype == "float32":  # values from the smallest to the largest, of both signs
        odd[..., 0].flat = [1e-45, -1e-45, 1e-38, -0.0, 0.0, 3e38, -3e38, 1.5, 7, -7, 1e-3, 2, 3, 4, 5, 6]
    yield odd


def counted(arrays, dtype):
    counts = PixelCounts(3, dtype)
    for array in arrays:
        counts.add(array)
    return counts


def through_a_table(parts, dtype):
    whole = PixelCounts(3, dtype)
    for part in parts:
        whole.add_table(part.to_table())
    return whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_deviation_are_those_of_exact_arithmetic(dtype):
    coding = counted(samples(dtype), dtype).coding()
    assert (coding.channels, coding.dtype) == (3, dtype)
    for channel in range(3):
        values = [Fraction(float(v)) for array in samples(dtype) for v in array[..., channel].reshape(-1).tolist()]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert coding.mean[channel] == float(mean)
        assert coding.std[channel] == float(variance) ** 0.5
        assert (coding.least[channel], coding.greatest[channel]) == (float(min(values)), float(max(values)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_and_parts_make_no_difference(dtype):
    arrays = list(samples(dtype))
    whole = counted(arrays, dtype).coding()
    parts = [counted(arrays[1::2], dtype), counted([], dtype), counted(arrays[::-1][1::2], dtype)]
    assert through_a_table(parts, dtype).coding() == whole
    assert through_a_table(parts[::-1], dtype).coding() == whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_are_numpys(dtype):
    arrays = list(samples(dtype))[:-1]
    coding = counted(arrays, dtype).coding()
    values = np.concatenate([array.reshape(-1, 3) for array in arrays]).astype(np.float64)
    expected = np.percentile(values, np.linspace(0, 100, 1001), axis=0).T
    error = np.abs(np.array(coding.quantiles) - expected)
    if dtype != "float32":
        assert error.max() < 1e-9
    assert (error <= 0.008 * np.abs(expected) + 1e-9).all()  # half of what a bin of float32 is wide
    assert coding.quantile(1, 37.25) == pytest.approx(np.percentile(values[:, 1], 37.25), rel=0.008, abs=1)
    assert (coding.quantile(0, 0), coding.quantile(0, 100)) == (values[:, 0].min(), values[:, 0].max())


def test_a_channel_of_one_value_has_no_deviation():
    array = np.full((9, 9, 3), 0.1, np.float32)
    coding = counted([array, array], "float32").coding()
    assert coding.std == (0.0, 0.0, 0.0)
    assert set(coding.quantiles[0]) == {float(np.float32(0.1))}


@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_and_windows_are_counted_like_interleaved_pixels(dtype):
    arrays = list(samples(dtype))
    planes = [np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 2, 0)), 0, 2) for array in arrays]
    assert counted(planes, dtype).coding() == counted(arrays, dtype).coding()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_sample_of_many_pixels_is_counted_in_pieces(dtype, monkeypatch):
    whole = counted(samples(dtype), dtype).coding()
    monkeypatch.setattr("coma.shards.images.pixel_counts._MOST_PIXELS", 7)
    assert counted(samples(dtype), dtype).coding() == whole

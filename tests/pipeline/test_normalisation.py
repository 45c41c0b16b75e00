"""Mean and deviation: the data's, those asked for, and what does not fit."""

import math
from dataclasses import replace

import pytest

from coma.errors import UsageError
from coma.pipeline.preprocessing import DEFAULT, Preprocessing, check_fits, of_data
from coma.shards.manifest.pixel_coding import QUANTILES, PixelCoding


def coding(dtype: str = "uint16", channels: int = 2, std: float = 10.0) -> PixelCoding:
    """Values evenly spread from 0 to 1000 in each channel."""
    line = tuple(1000 * place / (QUANTILES - 1) for place in range(QUANTILES))
    return PixelCoding(
        channels,
        dtype,
        mean=(500.0,) * channels,
        std=(std,) * channels,
        least=(0.0,) * channels,
        greatest=(1000.0,) * channels,
        quantiles=(line,) * channels,
    )


def test_rgb_is_as_it_was() -> None:
    assert of_data(None) is DEFAULT
    assert Preprocessing() == DEFAULT
    given = of_data(None, mean="0.5,0.5,0.5")
    assert (given.mean, given.std) == ((0.5,) * 3, DEFAULT.std)
    assert Preprocessing.from_json(given.to_json()) == given
    assert Preprocessing.from_json(None) is DEFAULT


def test_others_have_the_datas_own() -> None:
    like = of_data(coding())
    assert (like.mean, like.std, like.dtype, like.channels) == ((500.0,) * 2, (10.0,) * 2, "uint16", 2)
    for dtype in ("uint8", "uint16"):
        assert of_data(coding(dtype, std=0.0)).std == (1.0,) * 2  # a channel of one value
    nothing = replace(coding("float32", std=0.0), mean=(-3.4e38, 1e-40), std=(0.0, 1e-40))
    assert of_data(nothing).std == (3.4e38 / 2**16, 1.0)  # not a number by which a rounding error becomes a value
    eight = of_data(coding("uint8"))
    assert eight.mean == (500 / 255,) * 2  # as ImageNet's are given
    assert of_data(coding(), mean="1,2", std="3,4").to_json() | {} == {
        "channels": 2,
        "dtype": "uint16",
        "mean": [1.0, 2.0],
        "std": [3.0, 4.0],
    }


def test_clipped_values_have_other_means_and_deviations() -> None:
    like = of_data(coding(), clip_percentile=10)
    assert like.low == pytest.approx((100.0,) * 2)
    assert like.high == pytest.approx((900.0,) * 2)
    assert like.mean == pytest.approx((500.0,) * 2)
    # A tenth at either end, and an even spread of 800 between.
    assert like.std == pytest.approx((math.sqrt(0.2 * 400**2 + 0.8 * 800**2 / 12),) * 2, rel=1e-6)
    assert Preprocessing.from_json(like.to_json()) == like


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": "1,2,3"}, "--mean has 3 of the 2 numbers that 2 channels of uint16 take"),
        ({"std": "1,x"}, "--std '1,x': give a number for each channel"),
        ({"std": "1,0"}, "deviations are above 0"),
        ({"mean": "nan,1"}, "give a number for each channel"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of_data(coding(), **given)


def test_what_rgb_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="count from 0 to 1"):
        of_data(None, mean="124,116,104")
    with pytest.raises(UsageError, match="--clip-percentile needs the percentiles"):
        of_data(None, clip_percentile=1)


def test_a_network_takes_what_it_was_trained_on() -> None:
    check_fits(of_data(coding()), coding(), "it", "there")
    with pytest.raises(UsageError, match="it takes images of 2 channels of uint16, and those of there have 3"):
        check_fits(of_data(coding()), None, "it", "there")
    eight = coding("uint8", 3)
    check_fits(of_data(eight), None, "it", "there")
    with pytest.raises(UsageError, match=r"uint8, clipped, .*trained on, sharded with --channels 3"):
        check_fits(of_data(eight, clip_percentile=1), None, "it", "there")

"""False colour: each channel alike in all samples, from its 2nd to its 98th percentile."""

import numpy as np
import pytest
from arrays import drawn_array

from coma.errors import UsageError
from coma.shards.images.false_colour import channels_of, legend, parse_channels, shown_channels, to_rgb
from coma.shards.images.pixel_counts import PixelCounts


def coding(array):
    counts = PixelCounts(array.shape[2], array.dtype.name)
    counts.add(array)
    return counts.coding()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_channels_are_stretched_between_percentiles(dtype):
    array = drawn_array(5, dtype, 60, 80)
    picture = to_rgb(array, coding(array), (4, 3, 2))
    assert (picture.shape, picture.dtype) == ((60, 80, 3), np.uint8)
    for place, channel in enumerate((3, 2, 1)):
        values = array[..., channel].astype(np.float64)
        low, high = np.percentile(values, [2, 98])
        expected = np.clip((values - low) / (high - low), 0, 1) * 255
        assert np.abs(picture[..., place] - expected).max() <= (0.51 if dtype != "float32" else 5)


def test_another_sample_is_stretched_by_the_same_values():
    dark, light = (drawn_array(3, "uint16", 40, 40) // factor for factor in (8, 1))
    pixels = coding(np.concatenate([dark, light]))
    assert to_rgb(dark, pixels).mean() < 60 < 120 < to_rgb(light, pixels).mean()


def test_few_channels_are_grey_and_a_constant_one_is_black():
    array = np.full((4, 4, 2), 7, np.int16)
    assert shown_channels(coding(array)) == (1, 1, 1)
    assert not to_rgb(array, coding(array)).any()
    assert legend(coding(array)) == "channel 1 in grey"
    assert legend(coding(drawn_array(5, "uint8")), (4, 3, 2)) == "channels 4, 3, 2 as red, green, blue"


@pytest.mark.parametrize("text", ["", "1,2", "a", "1,2,3,4", "-1", "1.5"])
def test_what_is_no_choice_of_channels_is_refused(text):
    with pytest.raises(UsageError, match=r"is not one channel or three; write the red, green and blue one as 4,3,2"):
        parse_channels(text)


def test_channels_that_are_not_there_are_refused():
    pixels = coding(drawn_array(5, "uint8"))
    assert channels_of(pixels, " 5,1, 2") == (5, 1, 2)
    assert channels_of(pixels, "3") == (3, 3, 3)
    for text in ("0,1,2", "6"):
        with pytest.raises(UsageError, match=r"there is no channel \d; the samples have 5, counted from 1"):
            channels_of(pixels, text)
    with pytest.raises(UsageError, match="the images are 8-bit RGB, and shown as they are"):
        channels_of(None, "1,2,3")

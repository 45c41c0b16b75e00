"""Windows over images of any size: they cover them and overlap by a third."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.errors import UsageError
from coma.evaluation.dense.windows import sliding_windows, whole_images

SIZE = st.integers(20, 900)


def _sizes(*pairs):
    return (np.array([pair[i] for pair in pairs], np.int32) for i in (0, 1))


@given(width=SIZE, height=SIZE, window=st.sampled_from([32, 64, 96]), times=st.floats(1, 3))
def test_sliding_windows_cover_every_pixel_and_stay_inside(width, height, window, times):
    shorter = max(window, round(window * times))
    windows = sliding_windows(*_sizes((width, height)), window_size=window, shorter_side=shorter)
    covered = np.zeros((height, width), bool)
    sides = set()
    for (top, left), (h, w) in zip(windows.crops.start.tolist(), windows.crops.shape.tolist(), strict=True):
        assert top >= 0
        assert left >= 0
        assert top + h <= height
        assert left + w <= width
        covered[top : top + h, left : left + w] = True
        sides |= {h, w}
    assert covered.all()
    assert len(sides) == 1  # squares of one size
    scale = shorter / min(width, height)
    assert abs(sides.pop() * scale - window) <= scale  # to the nearest pixel of the image


def test_windows_lie_as_in_mmsegs_slide_mode():
    """512 pixels at a stride of 341 on an image of 512 x 683, DINOv2's on ADE20K: starts at 0 and 171."""
    windows = sliding_windows(*_sizes((683, 512), (1024, 512)), window_size=512, shorter_side=512)
    assert windows.image.tolist() == [0, 0, 1, 1, 1]
    assert windows.crops.start.tolist() == [[0, 0], [0, 171], [0, 0], [0, 341], [0, 512]]
    assert (windows.crops.shape == 512).all()


def test_a_larger_shorter_side_takes_more_windows():
    few, many = (sliding_windows(*_sizes((300, 200)), window_size=64, shorter_side=shorter) for shorter in (64, 128))
    assert len(few) == 2
    assert len(many) == 3 * 5  # 128 x 192 pixels at a stride of 42


def test_an_image_smaller_than_a_window_is_refused_by_the_flags_name():
    with pytest.raises(UsageError, match="--shorter-side 32 is less than the 64 pixels of a window"):
        sliding_windows(*_sizes((300, 200)), window_size=64, shorter_side=32)


def test_whole_images_are_one_window_each():
    windows = whole_images(*_sizes((30, 20), (50, 70)))
    assert windows.image.tolist() == [0, 1]
    assert windows.crops.start.tolist() == [[0, 0], [0, 0]]
    assert windows.crops.shape.tolist() == [[20, 30], [70, 50]]

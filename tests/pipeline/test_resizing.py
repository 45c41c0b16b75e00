"""Resizing by sparse products: what torch's antialiased filters give."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from coma.pipeline.resizing import resized


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "channels", "side"),
    [(40, 57, 13, 64), (300, 90, 4, 64), (64, 500, 1, 64), (64, 64, 2, 64), (30, 64, 3, 64), (1, 2, 13, 32)],
)
def test_it_is_torchs_filter(height: int, width: int, channels: int, side: int, filter: str) -> None:
    window = np.random.default_rng(0).normal(size=(height, width, channels)).astype(np.float32)
    image = torch.from_numpy(window).permute(2, 0, 1)[None]
    expected = interpolate(image, (side, side), mode=filter, antialias=True)[0].permute(1, 2, 0).numpy()
    result = resized(window, side, filter)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 5e-4
    assert np.abs(resized(window, side, filter, mirrored=True) - expected[:, ::-1]).max() < 5e-4


def test_a_flat_window_stays_flat() -> None:
    assert np.abs(resized(np.full((77, 130, 5), 1e4, np.float32), 48) - 1e4).max() < 1e-2

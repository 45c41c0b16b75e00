"""What becomes of decoded windows on a CPU, against PIL and against the plainest torch."""

import numpy as np
import pytest
import torch
from drawn import photograph
from PIL import Image
from torch import Tensor

from coma.pipeline import MEAN, STD
from coma.pipeline.squares import Squares, normalise

SIZES = [(300, 340), (64, 64), (40, 30), (65, 63), (1, 500), (1200, 900), (7, 1)]


def windows() -> list[Tensor]:
    return [
        torch.from_numpy(np.asarray(photograph(number, width, height)).copy())
        for number, (height, width) in enumerate(SIZES)
    ]


def levels(squares: Tensor) -> Tensor:
    """[n, 3, S, S] normalised → [n, S, S, 3] from 0 to 255."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((squares * std + mean) * 255).permute(0, 2, 3, 1)


@pytest.mark.parametrize("side", [16, 64, 224])
def test_squares_are_pils(side: int) -> None:
    given = windows()
    mirrored = np.arange(len(given)) % 2
    made = Squares(side, 1).normalised(given, mirrored)
    assert made.shape == (len(given), 3, side, side)
    assert made.dtype == torch.float32
    for window, flip, ours in zip(given, mirrored, levels(made), strict=True):
        image = Image.fromarray(window.numpy()).resize((side, side), Image.Resampling.BILINEAR)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        difference = (ours - torch.from_numpy(np.asarray(image).copy())).abs()
        assert difference.max() < 2.01
        assert difference.mean() < 0.1


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_nothing(threads: int) -> None:
    given, mirrored = windows(), np.array([1, 1, 0, 0, 1, 0, 1])
    assert torch.equal(Squares(64, threads).normalised(given, mirrored), Squares(64, 1).normalised(given, mirrored))
    assert len(Squares(64, threads).normalised([], mirrored[:0])) == 0


def test_a_device_that_normalises_itself_comes_to_the_same() -> None:
    given, mirrored = windows(), np.array([0, 1, 0, 1, 1, 0, 0])
    squares = Squares(64, 2)
    raw = squares.raw(given, mirrored)
    assert raw.dtype == torch.uint8
    torch.testing.assert_close(normalise(raw), squares.normalised(given, mirrored), rtol=0, atol=1e-5)


def test_images_are_channels_last() -> None:
    squares = Squares(32, 1)
    for made in (squares.normalised(windows(), np.zeros(7, int)), squares.raw(windows(), np.zeros(7, int))):
        assert made.is_contiguous(memory_format=torch.channels_last)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from coma.pipeline.crops import Crops, center_crops, random_resized_crops
from coma.pipeline.preprocessing import EVAL_FRACTION

SIZES = [(500, 375), (375, 500), (640, 120), (60, 900), (32, 32)]


def draw(width: int, height: int, count: int, seed: int = 0, scale: tuple[float, float] = (0.2, 1.0)) -> Crops:
    samples = np.arange(count)
    sizes = np.full(count, width, np.int32), np.full(count, height, np.int32)
    return random_resized_crops(samples, np.zeros(count, np.int64), *sizes, seed=seed, scale=scale)


def torchvisions(width: int, height: int, count: int) -> np.ndarray:
    """Windows drawn by torchvision: [count, 4] top, left, height, width."""
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    drawn = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    return np.array(drawn, np.float64)


def assert_same_distribution(width: int, height: int, count: int) -> None:
    """Kolmogorov and Smirnov's test of all that a window is: sides, area, ratio, and where it lies."""
    crops = draw(width, height, count)
    ours = np.concatenate([crops.start, crops.shape], axis=1).astype(np.float64)
    theirs = torchvisions(width, height, count)

    def measures(windows: np.ndarray) -> dict[str, np.ndarray]:
        top, left, high, wide = windows.T
        return {
            "top": top,
            "left": left,
            "height": high,
            "width": wide,
            "area": high * wide,
            "ratio": wide / high,
            "centre, down": (top + high / 2) / height,
            "centre, across": (left + wide / 2) / width,
        }

    for (name, mine), other in zip(measures(ours).items(), measures(theirs).values(), strict=True):
        assert ks_2samp(mine, other).pvalue > 1e-3, name


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_distribution_is_torchvisions(width: int, height: int) -> None:
    assert_same_distribution(width, height, 1500)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_distribution_is_torchvisions_in_many_draws(width: int, height: int) -> None:
    assert_same_distribution(width, height, 100_000)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**40))
def test_windows_lie_inside_the_image(width: int, height: int, seed: int) -> None:
    for crops in (
        draw(width, height, 8, seed, (0.01, 1.0)),
        center_crops(*sizes(width, height), image_size=224, fraction=EVAL_FRACTION),
    ):
        assert (crops.start >= 0).all()
        assert (crops.shape >= 1).all()
        assert (crops.start + crops.shape <= [height, width]).all()


def sizes(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([width], np.int32), np.array([height], np.int32)


def test_a_crop_depends_on_its_own_keys_alone() -> None:
    width, height = np.array([500, 300, 400]), np.array([300, 200, 600])
    together = random_resized_crops(np.array([7, 8, 9]), np.array([0, 1, 2]), width, height, seed=5)
    alone = random_resized_crops(np.array([8]), np.array([1]), width[1:2], height[1:2], seed=5)
    for name in ("start", "shape", "flip"):
        np.testing.assert_array_equal(getattr(together, name)[1:2], getattr(alone, name))
    assert together[1:2].flip == alone.flip

    other_epoch = random_resized_crops(np.array([8]), np.array([2]), width[1:2], height[1:2], seed=5)
    other_seed = random_resized_crops(np.array([8]), np.array([1]), width[1:2], height[1:2], seed=6)
    assert (other_epoch.shape != alone.shape).any()
    assert (other_seed.shape != alone.shape).any()


def test_half_of_the_images_are_mirrored_whatever_their_crop() -> None:
    crops = draw(500, 400, 4000)
    assert abs(crops.flip.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(crops.flip, crops.start[:, 1])[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("width", "height", "image_size", "expected"),
    [
        (500, 375, 224, (23, 86, 328)),  # 375 * 224 / 256 = 328
        (256, 256, 224, (16, 16, 224)),  # exactly what resizing first would cut
        (32, 32, 32, (2, 2, 28)),
        (1, 1, 224, (0, 0, 1)),
    ],
)
def test_evaluation_shows_the_centre(width: int, height: int, image_size: int, expected: tuple[int, int, int]) -> None:
    crops = center_crops(*sizes(width, height), image_size=image_size, fraction=EVAL_FRACTION)
    top, left, side = expected
    assert crops.start.tolist() == [[top, left]]
    assert crops.shape.tolist() == [[side, side]]
    assert crops.flip.tolist() == [0]

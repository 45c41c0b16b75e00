"""Preprocessing of networks made elsewhere: their crop, filter, mean and deviation, against timm's own transform."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import draw_images, shard_images
from PIL import Image
from timm.data import create_transform

from coma.pipeline import Preprocessing, Stream
from coma.pipeline.crops import center_crops
from coma.pipeline.preprocessing import EVAL_FRACTION

SIDE = 56
LIKE = {
    "timm's": Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9, "bicubic"),
    "clip's": Preprocessing((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 1.0, "bicubic"),
    "squashed": Preprocessing(crop_fraction=1.0, squash=True),
    "default": Preprocessing(),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth images of several shapes, without the noise that tells filters apart most."""
    folder = tmp_path_factory.mktemp("photographs")
    sizes = [(496, 248), (248, 496), (512, 256), (336, 336)]  # that timm cuts at whole pixels
    return draw_images(folder, 4, size=lambda i: sizes[i], name="{}.png", smooth=True)


@pytest.fixture(scope="module")
def shards(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_images(photographs, tmp_path_factory.mktemp("shards") / "data")


@pytest.mark.parametrize("name", LIKE)
def test_the_stream_shows_what_timms_transform_shows(name: str, photographs: Path, shards: Path) -> None:
    like = LIKE[name]
    transform = create_transform(
        (3, SIDE, SIDE),
        interpolation=like.interpolation,
        mean=like.mean,
        std=like.std,
        crop_pct=like.crop_fraction,
        crop_mode="squash" if like.squash else "center",
    )
    with Stream(
        shards, batch_size=4, image_size=SIDE, unit_size=SIDE, views=1, training=False, preprocessing=like
    ) as stream:
        batch = next(stream)
        sources = stream.manifest.sources(batch.samples.numpy())
    for image, source in zip(batch.images, sources, strict=True):
        expected = transform(Image.open(photographs / source))
        grey_levels = (image - expected).abs() * torch.tensor(like.std).view(3, 1, 1) * 255
        assert grey_levels.mean() < 2  # half a pixel of the original, where its window begins
        assert grey_levels.max() < 12


def test_the_default_is_what_it_was() -> None:
    """Windows of evaluation: the shorter side at 256, of which 224 are shown."""
    width, height = np.array([500, 300, 224]), np.array([375, 400, 224])
    crops = center_crops(width, height, image_size=224, fraction=EVAL_FRACTION)
    side = np.rint(np.minimum(width, height) * 224 / 256).astype(int)
    assert crops.shape.tolist() == [[s, s] for s in side]
    assert crops.start[:, 0].tolist() == ((height - side) // 2).tolist()


def test_a_squashed_window_has_the_shape_of_its_image() -> None:
    crops = center_crops(np.array([500]), np.array([250]), image_size=90, fraction=0.9, squash=True)
    assert crops.shape.tolist() == [[225, 450]]
    assert crops.start.tolist() == [[12, 25]]

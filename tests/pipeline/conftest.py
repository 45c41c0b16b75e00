"""Small generated photographs, sharded once a session."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn import photograph, shard_images
from PIL import Image

from coma.shards.manifest import Manifest, read_manifest

CLASSES = 3
PER_CLASS = 25


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of JPEGs of many sizes, among them what people really have: grey, CMYK, rotated, PNG."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / f"class-{label}"
        folder.mkdir()
        for number in range(PER_CLASS):
            width, height = (int(side) for side in rng.integers(60, 180, 2))
            image = photograph(1000 * label + number, width, height)
            image.save(folder / f"{number:03d}.jpg", quality=92)
    first = root / "class-0"
    photograph(1, 150, 90).convert("L").save(first / "grey.jpg", quality=92)
    photograph(2, 150, 90).convert("CMYK").save(first / "cmyk.jpg", quality=92)
    photograph(3, 150, 90).save(first / "png.png")
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photograph(10 + orientation, 160, 80).save(first / f"exif-{orientation}.jpg", quality=95, exif=exif)
    return root


@pytest.fixture(scope="session")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs in several shards. Not to be changed: `damaged` gives a copy."""
    return shard_images(photos, tmp_path_factory.mktemp("sharded") / "shards", seed=3, shard_bytes=65536)


@pytest.fixture(scope="session")
def manifest(data: Path) -> Manifest:
    manifest = read_manifest(data)
    assert len(manifest.shards) > 3
    return manifest


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(data, tmp_path / "shards"))

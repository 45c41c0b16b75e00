"""Images that are cut into tiles, and the tiles of a data set."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from coma.shards.images.arrays import read_window
from coma.shards.manifest import read_manifest
from coma.shards.tiles.grid import image_of, place_in


def noise(height: int, width: int, channels: int, seed: int = 0, dtype: str = "uint8") -> npt.NDArray[Any]:
    """Return random pixels [H, W, C] on patches of different brightness."""
    random = np.random.default_rng(seed)
    if dtype == "float32":
        return random.normal(size=(height, width, channels)).astype(np.float32)
    patches = random.integers(0, 200, (height // 16 + 1, width // 16 + 1, channels))
    pixels = np.kron(patches, np.ones((16, 16, 1), np.int64))[:height, :width]
    return (pixels + random.integers(0, 50, pixels.shape)).astype(dtype)


def tiles_of(data: Path, split: str = "train") -> dict[str, npt.NDArray[Any]]:
    """Return the tiles [h, w, C] of a split by their names in the manifest."""
    manifest = read_manifest(data, split)
    rows = list(range(len(manifest)))
    tiles = {}
    for row, source, name in zip(rows, manifest.sources(rows), manifest.formats(rows), strict=True):
        with (manifest.folder / manifest.shards[manifest.shard_id[row]]).open("rb") as file:
            file.seek(int(manifest.offset[row]))
            encoded = file.read(int(manifest.size[row]))
        height, width = int(manifest.height[row]), int(manifest.width[row])
        if name == "npy":
            pixels = read_window(encoded, "npy", 0, 0, height, width)
        else:
            pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        assert pixels.shape[:2] == (height, width)
        assert source not in tiles
        tiles[source] = pixels
    return tiles


def assert_cut(tiles: dict[str, npt.NDArray[Any]], path: str, image: npt.NDArray[Any], tile: int) -> None:
    """Check that the tiles of an image [H, W, C] have its pixels at their places, and are all of it."""
    seen = np.zeros(image.shape[:2], bool)
    for source, pixels in tiles.items():
        if image_of(source) != path:
            continue
        place = place_in(source)
        assert place is not None
        left, top = place
        height, width = min(tile, image.shape[0]), min(tile, image.shape[1])
        assert pixels.dtype == image.dtype
        np.testing.assert_array_equal(pixels, image[top : top + height, left : left + width])
        seen[top : top + height, left : left + width] = True
    assert seen.all()


def set_aside(data: Path) -> dict[str, str]:
    """Return {path: reason} of the quarantine of a data set."""
    rows = pq.read_table(data / "quarantine.parquet").to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["reason"] for row in rows}

"""CPU time of a tile by the layout of the image that it is cut from: read by itself, and in one go with its neighbours.

`python -m benchmarks.tiles [--width PX --height PX --tile PX]` writes the same drawn picture in several layouts, and
prints milliseconds of CPU time a tile, without its encoding.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from coma.shards.images.array_files.facts import Window
from coma.shards.images.options import MOST_PIXELS, PixelOptions
from coma.shards.sources.listing import WHOLE_FILE, SourceImage
from coma.shards.tiles.grid import Grid
from coma.shards.tiles.pictures import open_picture
from coma.shards.tiles.reader import opened

_BY_ITSELF = 12
"""Tiles that are read at random."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles of 256 px, uncompressed": {"tile": (256, 256)},
    "tiles of 256 px, deflate": {"tile": (256, 256), "compression": "deflate"},
    "tiles of 240 px, deflate": {"tile": (240, 240), "compression": "deflate"},
    "strips of 16 rows, uncompressed": {"rowsperstrip": 16},
    "strips of 16 rows, deflate": {"rowsperstrip": 16, "compression": "deflate"},
    "strips of 512 rows, deflate": {"rowsperstrip": 512, "compression": "deflate"},
    "JPEG": {},
}


def main() -> None:
    """Measure all layouts."""
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, default in (("--width", 8192), ("--height", 6144), ("--tile", 512)):
        parser.add_argument(flag, type=int, default=default)
    options = parser.parse_args()
    grid = Grid(options.width, options.height, options.tile, 0)
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (options.height // 32, options.width // 32, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(small).resize((options.width, options.height)))
    picture ^= random.integers(0, 8, picture.shape, dtype=np.uint8)
    print(f"{len(grid)} tiles of {options.tile} px; ms of CPU time a tile")
    with tempfile.TemporaryDirectory() as folder:
        for name, how in LAYOUTS.items():
            path = Path(folder) / ("image.tif" if how else "image.jpg")
            if how:
                tifffile.imwrite(path, picture, photometric="rgb", **how)
            else:
                Image.fromarray(picture).save(path, quality=90)
            by_itself, together = _measure(path, grid, random)
            print(f"{name:34} by itself {by_itself:8.1f}   in one go {together:8.1f}")
            path.unlink()


def _measure(path: Path, grid: Grid, random: np.random.Generator) -> tuple[float, float]:
    """Return the time of a tile by itself, and in bands of a row of tiles."""
    status = path.stat()
    image = SourceImage(path.name, path.name, WHOLE_FILE, status.st_size, status.st_mtime_ns, None, None)
    pixels = PixelOptions(max_pixels=MOST_PIXELS)
    with opened(path.parent, image) as data:
        began_s = time.process_time()
        for number in random.permutation(len(grid))[:_BY_ITSELF].tolist():
            tile = grid.at(number)
            picture = open_picture(data, pixels)  # what is decoded whole is decoded for each tile
            picture.read(Window(tile.top, tile.left, tile.height, tile.width))
        by_itself = (time.process_time() - began_s) / _BY_ITSELF
        began_s = time.process_time()
        picture = open_picture(data, pixels)
        for row in range(grid.down):
            tile = grid.at(row * grid.across)
            picture.read(Window(tile.top, 0, tile.height, grid.width))
        return 1000 * by_itself, 1000 * (time.process_time() - began_s) / len(grid)


if __name__ == "__main__":
    main()

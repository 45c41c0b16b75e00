"""Images drawn for a machine that has no data: JPEGs of ImageNet's size in pixels and bytes, in shards.

Smooth colours with detail at several scales, of about as many bytes as photographs of their size. Nothing can be
learned from them.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from coma.shards.manifest import INFO_NAME
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

CLASSES = 4
_SIZES = ((500, 375), (375, 500), (500, 333), (480, 360))
"""(width, height) in pixels, in turn."""
_QUALITY = 92
_DETAILS = ((96, 0.3), (24, 0.3), (6, 0.4), (2, 0.5), (1, 0.15))
"""Side of a detail in pixels, and its weight beside what is there."""


def drawn(folder: Path, count: int, scale: float = 1.0) -> Path:
    """Draw `count` images, sides times `scale`, and shard them, unless that has been done; return the data set."""
    data = folder / "shards"
    if (data / INFO_NAME).is_file():
        return data
    images = folder / "images"
    for label in range(CLASSES):
        (images / f"class-{label}").mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    draw = partial(_draw, images, scale=scale)
    if cores == 1 or count < 100:
        for number in range(count):
            draw(number)
    else:
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(draw, range(count), chunksize=16))
    shard(images, data, ShardOptions(workers=1, check="header"))
    return data


def _draw(folder: Path, number: int, *, scale: float) -> None:
    rng = np.random.default_rng(number)
    width, height = (round(side * scale) for side in _SIZES[number % len(_SIZES)])
    image = Image.new("RGB", (width, height), (128, 128, 128))
    for side, weight in _DETAILS:
        noise = rng.integers(0, 256, (height // side + 2, width // side + 2, 3), np.uint8)
        image = Image.blend(image, Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), weight)
    image.save(folder / f"class-{number % CLASSES}" / f"{number:06d}.jpg", quality=_QUALITY)

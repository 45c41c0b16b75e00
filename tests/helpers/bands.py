"""Samples of other than three 8-bit channels, drawn for tests: 13 bands of TIFF, 16-bit grey PNG, float32 arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from drawn import shard_images
from numpy.typing import NDArray
from PIL import Image

KINDS = {"tiff": (13, "uint16"), "png": (1, "uint16"), "npy": (2, "float32")}
"""Kinds of sets: channels and type of each."""


def draw_sample(seed: int, height: int, width: int, channels: int, dtype: str, strength: float = 1.0) -> NDArray[Any]:
    """A sample [height, width, channels] of waves with noise; each channel has a level of its own."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = []
    for channel in range(channels):
        across, down = chance.uniform(0.05, 0.3, 2)
        wave = np.sin(x * across + chance.uniform(0, 6)) * np.cos(y * down + chance.uniform(0, 6))
        waves.append(strength * (200 + 40 * channel) * wave + 900 * (channel + 1))
    values = np.stack(waves, axis=-1) + chance.normal(0, 15, (height, width, channels))
    return (values / 1000 - 2 if dtype == "float32" else values.clip(0, None)).astype(dtype)


def write_sample(path: Path, sample: NDArray[Any], number: int = 0) -> None:
    """Write a sample as a file of the kind that its name says; TIFFs in several layouts, by `number`."""
    if path.suffix == ".npy":
        np.save(path, sample)
    elif path.suffix == ".png":
        Image.fromarray(sample[..., 0]).save(path)
    else:
        planar = number % 2 == 1
        tifffile.imwrite(
            path,
            np.moveaxis(sample, 2, 0) if planar else sample,
            photometric="minisblack",
            planarconfig="separate" if planar else "contig",
            tile=(16, 32) if number % 4 < 2 else None,
            compression="deflate" if number % 3 else None,
            predictor=number % 3 == 2,
        )


def band_set(folder: Path, kind: str, count: int = 24, sides: Sequence[int] = (40, 48), **options: Any) -> Path:
    """Draw a set of one of `KINDS` in two classes into `folder`/images and shard it into `folder`/data."""
    channels, dtype = KINDS[kind]
    for number in range(count):
        place = folder / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        height, width = sides[number % len(sides)], sides[(number + 1) % len(sides)]
        sample = draw_sample(number, height, width, channels, dtype, 1 + number % 2)
        write_sample(place / f"{number:03d}.{kind}", sample, number // 2)
    return shard_images(folder / "images", folder / "data", channels=channels, **options)


def read_sample(path: Path) -> NDArray[Any]:
    """Read a file of `write_sample` by numpy, PIL or tifffile: [height, width, channels]."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".png":
        return np.asarray(Image.open(path), np.uint16)[..., None]
    array = tifffile.imread(path)
    return np.moveaxis(array, 0, 2) if array.shape[0] == KINDS["tiff"][0] else array

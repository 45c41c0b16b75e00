"""Images of seeded noise, drawn for tests, and small data sets that are sharded from them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

Size = tuple[int, int]


def draw_images(
    folder: Path,
    count: int,
    *,
    classes: Sequence[str] = (),
    size: Size | Callable[[int], Size] = (40, 40),
    name: str | Callable[[int], str] = "{}.jpg",
    smooth: bool = False,
    levels: tuple[int, int] = (0, 256),
    seed: int = 0,
) -> Path:
    """Draw `count` images into `folder`, or into its class folders in turn; return `folder`.

    `size` is (width, height). It and `name` may be functions of an image's number. `levels` are the limits of the
    noise; smooth images look like photographs.
    """
    generator = np.random.default_rng(seed)
    for number in range(count):
        width, height = size(number) if callable(size) else size
        image = Image.fromarray(
            generator.integers(*levels, (6, 8, 3) if smooth else (height, width, 3), dtype=np.uint8)
        )
        if smooth:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        below = classes[number % len(classes)] if classes else ""
        path = folder / below / (name(number) if callable(name) else name.format(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def shard_images(source: Path, out: Path, **options: object) -> Path:
    """Shard images in one process; return `out`."""
    shard(source, out, ShardOptions(workers=1, **options))
    return out


def sharded(
    folder: Path, count: int, *, shard_bytes: int | None = None, val_fraction: float = 0.0, **drawing: object
) -> Path:
    """Draw images into `folder`/images and shard them into `folder`/data, which is returned."""
    source = draw_images(folder / "images", count, **drawing)
    return shard_images(source, folder / "data", shard_bytes=shard_bytes, val_fraction=val_fraction)


def encoded(seed: int, width: int = 40, height: int = 30, form: str = "JPEG", **options: object) -> bytes:
    """An encoded image of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Smooth random colours with some detail: what a JPEG is made for, and no symmetry."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)).resize((width, height))
    return Image.blend(coarse, fine, 0.2)

"""Images with segmentation masks, drawn for tests: blocks of classes, whose colours the images have."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Ids = npt.NDArray[np.uint8]


def draw_ids(seed: int, width: int = 40, height: int = 30, classes: int = 4, ignored: bool = True) -> Ids:
    """Class ids [height, width] in blocks, every class among them, and 255 in a corner if `ignored`."""
    generator = np.random.default_rng(seed)
    blocks = generator.permuted(np.arange(48) % classes).reshape(6, 8).astype(np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    ids = blocks[rows[:, None], columns[None, :]]
    if ignored:
        ids[: height // 6, : width // 8] = 255
    return ids


def as_png(values: npt.NDArray[np.integer], palette: Sequence[int] | None = None, **options: object) -> bytes:
    """A PNG of these values: grey, or indices into a palette."""
    image = Image.fromarray(values)
    if palette is not None:
        image = Image.fromarray(values, "P")
        image.putpalette(list(palette))
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def picture_of(ids: Ids, seed: int = 0, form: str = "JPEG", **options: object) -> bytes:
    """An image in which each class has a colour of its own, with noise."""
    colours = np.random.default_rng(7).integers(30, 220, (256, 3))
    noise = np.random.default_rng(seed).integers(-20, 20, (*ids.shape, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(colours[ids] + noise, 0, 255).astype(np.uint8)).save(file, form, **options)
    return file.getvalue()


def draw_pairs(
    root: Path,
    count: int,
    *,
    images: str = "images/{}.jpg",
    masks: str = "masks/{}.png",
    first: int = 0,
    size: tuple[int, int] | None = None,
    classes: int = 4,
    values: npt.NDArray[np.uint8] | None = None,
) -> dict[str, Ids]:
    """Draw images and masks; return {path of the image: class ids}. `values` are what the masks hold for each id."""
    drawn = {}
    for number in range(first, first + count):
        width, height = size or (40 + 3 * (number % 5), 30 + 2 * (number % 4))
        ids = draw_ids(number, width, height, classes)
        for pattern, data in (
            (images, picture_of(ids, number)),
            (masks, as_png(ids if values is None else values[ids])),
        ):
            path = root / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        drawn[images.format(number)] = ids
    return drawn

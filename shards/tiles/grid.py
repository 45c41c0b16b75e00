"""Grids of tiles: where the tiles of an image lie, and what they are called.

Tiles lie `tile - overlap` pixels apart. The last one of a row or column is moved in, so that it ends at the border:
every pixel is in a tile, and none is padded. An image that is smaller than a tile is a tile of its own size.
Legend: n images, t tiles, N samples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_PLACE = re.compile(r"(?:@x=\d+,y=\d+)*@x=(\d+),y=(\d+)$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of an image, in pixels, as displayed."""

    left: int
    top: int
    width: int
    height: int
    bytes: int = 0
    """Estimate of what it takes in a shard."""
    spool: str | None = None
    """File that has its bytes already; None: they are cut from the image."""
    offset: int = 0
    """First byte in that file."""
    size: int = 0
    """Bytes in that file."""

    @property
    def place(self) -> str:
        """Where it lies in its image, as its name ends: "@x=1024,y=512"."""
        return f"@x={self.left},y={self.top}"

    @property
    def key(self) -> str:
        """Where it lies in its image, as the key of its sample ends."""
        return key_ending(self.left, self.top)


def key_ending(left: int, top: int) -> str:
    """Return how the key of a tile's sample ends: "-x1024-y512"."""
    return f"-x{left}-y{top}"


def image_of(source: str) -> str:
    """Return the path of the image that a tile, or a tile of a tile, was cut from; of other names the name itself."""
    return _PLACE.sub("", source)


def image_numbers(sources: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Number the images that samples of these names were cut from: [N], from 0 on; None if none of them is a tile."""
    if not any(source[-1:].isdigit() and place_in(source) for source in sources):  # as a rule, and quickly
        return None
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(image_of(source), len(numbers)) for source in sources], np.int64)


def place_in(source: str) -> tuple[int, int] | None:
    """Return left and top of a tile by its name; None for the name of an image."""
    match = _PLACE.search(source)
    return None if match is None else (int(match[1]), int(match[2]))


def starts(length: int, tile: int, overlap: int) -> npt.NDArray[np.int64]:
    """Return the first pixel of each tile along a side of `length` pixels."""
    count = 1 if length <= tile else 1 + -(-(length - tile) // (tile - overlap))
    evenly = (tile - overlap) * np.arange(count, dtype=np.int64)
    return np.minimum(evenly, max(0, length - tile))


@dataclass(frozen=True)
class Grid:
    """The tiles of an image, row after row."""

    width: int
    """Side of the image, in pixels."""
    height: int
    tile: int
    overlap: int

    @property
    def across(self) -> int:
        """Tiles beside each other."""
        return len(starts(self.width, self.tile, self.overlap))

    @property
    def down(self) -> int:
        """Tiles below each other."""
        return len(starts(self.height, self.tile, self.overlap))

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self.across * self.down

    def at(self, number: int, pixel_bytes: float = 0) -> Tile:
        """Return a tile by its number, of so many bytes a pixel."""
        stride = self.tile - self.overlap
        row, column = divmod(number, self.across)
        width, height = min(self.tile, self.width), min(self.tile, self.height)
        left, top = min(column * stride, self.width - width), min(row * stride, self.height - height)
        return Tile(left, top, width, height, round(width * height * pixel_bytes))

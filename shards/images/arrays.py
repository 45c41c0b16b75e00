"""Samples of any number of channels and of 8, 16 or 32 bits: facts of their files, and windows of their pixels.

Legend: H, W sides of a picture, h, w of a window in pixels, C channels.
"""

from coma.shards.images.array_files import npy
from coma.shards.images.array_files.facts import ArrayFacts as ArrayFacts
from coma.shards.images.array_files.facts import Pixels as Pixels
from coma.shards.images.array_files.facts import Window
from coma.shards.images.formats import BadImageError


def array_facts(data: bytes, channels: int | None = None) -> ArrayFacts:
    """Return what the header of a file says of its array: sides, channels, type and format.

    Args:
        data: the file's bytes.
        channels: how many channels there should be; it decides between [H, W, C] and [C, H, W] of a .npy.

    Raises:
        BadImageError: it is none of the formats that are read, or damaged.
    """
    if data.startswith(npy.MAGIC):
        return npy.facts(data, channels)
    raise BadImageError("unsupported format")


def read_window(data: bytes, format: str, top: int, left: int, height: int, width: int) -> Pixels:
    """Read a window [h, w, C] of a sample, in its own type, decoding no more than the window needs.

    Args:
        data: bytes of the sample in its shard.
        format: that of the manifest.
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.

    Raises:
        BadImageError: the bytes are damaged, or the window is not inside the picture.
    """
    window = Window(top, left, height, width)
    pixels = npy.read_window(data, window)
    if pixels.shape[:2] != (height, width) or min(top, left) < 0:
        raise BadImageError(f"unreadable: it has no {width}x{height} pixels from {left}, {top} on")
    return pixels


def read_array(data: bytes, facts: ArrayFacts) -> Pixels:
    """Read a whole file [H, W, C], also one whose bytes are not kept. Raises BadImageError."""
    return npy.read(data, facts.channels)

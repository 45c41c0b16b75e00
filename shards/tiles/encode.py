"""Bytes of a tile in a shard, and whether it is empty.

Legend: h, w sides of a tile, C channels.
"""

import io

import numpy as np
from PIL import Image

from coma.shards.images.array_files import npy
from coma.shards.images.array_files.facts import Pixels
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import PixelOptions
from coma.shards.images.prepare import ImageFacts, Prepared
from coma.shards.images.prepare_array import check_finite
from coma.shards.tiles.options import TileOptions

EMPTY = "empty tile"
"""Kind of the reason for which an empty tile is left out."""

_PNG_LEVEL = 3
_ROWS = 256  # whose deviation is summed at a time
_PNG_SHARE = 0.6  # of the pixels' bytes, of photographs
_JPEG_BYTES_PER_PIXEL = 0.35  # at quality 90


def bytes_per_pixel(pixels: PixelOptions, tiles: TileOptions) -> float:
    """Return an estimate of what a pixel of a tile takes in a shard."""
    if pixels.channels is not None:
        return pixels.channels * np.dtype(pixels.dtype or "uint16").itemsize
    return _JPEG_BYTES_PER_PIXEL if tiles.tile_format == "jpeg" else 3 * _PNG_SHARE


def tile_format(pixels: PixelOptions, tiles: TileOptions) -> str:
    """Return the manifest's name of the format of all tiles."""
    return "npy" if pixels.channels is not None else tiles.tile_format


def encode_tile(array: Pixels, pixels: PixelOptions, tiles: TileOptions) -> Prepared:
    """Return a tile [h, w, C] as it is written. Raises BadImageError if it is left out as empty, or not finite."""
    if array.dtype.kind == "f":
        check_finite(array)
    if tiles.empty_below is not None and is_empty(array, tiles.empty_below):
        raise BadImageError(f"{EMPTY}: the deviation of every channel is below {tiles.empty_below:g} (--empty-below)")
    height, width, channels = array.shape
    facts = ImageFacts(width, height, tile_format(pixels, tiles))
    if pixels.channels is not None:
        array = np.ascontiguousarray(array)
        return Prepared(npy.encode(array), facts, None, facts, False, array)
    encoded = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if channels == 1 else array))
    if tiles.tile_format == "jpeg":
        image.save(encoded, "JPEG", quality=pixels.quality)
    else:
        image.save(encoded, "PNG", compress_level=_PNG_LEVEL)
    return Prepared(encoded.getvalue(), facts, None, facts, False)


def is_empty(array: Pixels, deviation: float) -> bool:
    """Whether the standard deviation of every channel of a tile [h, w, C] is below `deviation`.

    Of integers it is computed from exact sums, so that every machine decides alike; some rows at a time, as a tile may
    be most of what a worker may hold.
    """
    return all(_is_even(array[..., channel], deviation) for channel in range(array.shape[2]))


def _is_even(values: Pixels, deviation: float) -> bool:
    """Whether the standard deviation of values [h, w] is below `deviation`."""
    is_float, count = values.dtype.kind == "f", values.size
    mean = values.mean(dtype=np.float64) if is_float else 0  # squares of integers are exact as they are
    total, squares = 0, 0
    for row in range(0, len(values), _ROWS):
        some = values[row : row + _ROWS].astype(np.float64 if is_float else np.int64).ravel() - mean
        total += some.sum().item()
        squares += (some @ some).item()
    limit = deviation * count
    return bool(count * squares - total * total < limit * limit)

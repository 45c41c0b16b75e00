"""Windows of the pixels of a TIFF: only the strips or tiles that meet a window are decoded, and of them what it needs.

Legend: h, w sides of a window, r rows of a block, b columns of a block, c channels of a block, C of the picture.
"""

from collections.abc import Callable

import numpy as np

from coma.shards.images.array_files.facts import Pixels, Window
from coma.shards.images.array_files.inflate import inflate
from coma.shards.images.array_files.tiff_layout import TiffLayout, layout, layouts

_STORED = 1


def read(data: bytes, channels: int) -> Pixels:
    """Read the first picture of a TIFF whole, upright, or the pictures that are its channels. Raises BadImageError."""
    pictures = layouts(data, channels)
    pixels = [upright(_read(data, of, Window(0, 0, of.height, of.width)), of.orientation) for of in pictures]
    return pixels[0] if len(pixels) == 1 else np.concatenate(pixels, axis=2)


def read_window(data: bytes, window: Window) -> Pixels:
    """Read a window [h, w, C] of the first picture of a TIFF, cut to the picture. Raises BadImageError."""
    of = layout(data)
    height, width = min(window.bottom, of.height) - window.top, min(window.right, of.width) - window.left
    return _read(data, of, Window(window.top, window.left, max(0, height), max(0, width)))


def _read(data: bytes, of: TiffLayout, window: Window) -> Pixels:
    stored = _stored(data, of)
    native = of.dtype.newbyteorder("=")
    if stored is not None:  # a view: nothing is copied in the machine's own byte order
        pixels = stored[:, window.top : window.bottom, window.left : window.right]
        return _channels_last(pixels.astype(native, copy=False))
    planes = of.channels if of.planar else 1
    out = np.empty((planes, window.height, window.width, of.block_channels), native)
    for plane in range(planes):
        for row in range(window.top // of.block_height, -(-window.bottom // of.block_height)):
            for column in range(window.left // of.block_width, -(-window.right // of.block_width)):
                top, left = row * of.block_height, column * of.block_width
                part = Window(
                    max(window.top - top, 0),
                    max(window.left - left, 0),
                    min(window.bottom - top, of.rows_of(row)) - max(window.top - top, 0),
                    min(window.right - left, of.block_width) - max(window.left - left, 0),
                )
                number = (plane * of.down + row) * of.across + column
                at = (top + part.top - window.top, left + part.left - window.left)
                out[plane, at[0] : at[0] + part.height, at[1] : at[1] + part.width] = _part_of_block(
                    data, of, number, of.rows_of(row), part
                )
    return _channels_last(out)


def _channels_last(pixels: Pixels) -> Pixels:
    """Return pixels [h, w, C] of [1, h, w, C] or of planes [C, h, w, 1]."""
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[..., 0], 0, 2)


def _stored(data: bytes, of: TiffLayout) -> Pixels | None:
    """Return a view of the whole picture, [1, H, W, C] or [C, H, W, 1]; None unless it lies in one piece."""
    if of.compression != _STORED or of.predictor != 1 or of.tiled:
        return None
    planes = of.channels if of.planar else 1
    starts = of.offsets[: of.down * planes].astype(np.int64)
    row_bytes = of.width * of.block_channels * of.dtype.itemsize
    sizes = np.tile([of.rows_of(row) * row_bytes for row in range(of.down)], planes)
    if (starts[1:] != starts[:-1] + sizes[:-1]).any() or starts[0] + int(sizes.sum()) > len(data):
        return None
    values = np.frombuffer(data, of.dtype, of.width * of.height * of.channels, int(starts[0]))
    return values.reshape(planes, of.height, of.width, of.block_channels)


def _part_of_block(data: bytes, of: TiffLayout, number: int, rows: int, part: Window) -> Pixels:
    """Decode a part [h, w, c] of a block by its number."""
    start, size = int(of.offsets[number]), int(of.sizes[number])
    return decode_part(memoryview(data)[start : start + size], of, rows, part)


def decode_part(block: memoryview, of: TiffLayout, rows: int, part: Window) -> Pixels:
    """Decode a part [h, w, c] of a block of so many rows. Raises BadImageError."""
    row_bytes = of.block_width * of.block_channels * of.dtype.itemsize
    raw = inflate(of.compression, block, rows * row_bytes, part.bottom * row_bytes)[part.top * row_bytes :]
    if of.predictor == 3:
        return _summed_floats(raw, of, part)
    values = np.frombuffer(raw, of.dtype).reshape(part.height, of.block_width, of.block_channels)
    native = of.dtype.newbyteorder("=")
    if of.predictor == 2:
        differences = values[:, : part.right].view(f"{of.dtype.byteorder}u{of.dtype.itemsize}")
        unsigned = np.dtype(f"u{of.dtype.itemsize}")
        values = np.add.accumulate(differences.astype(unsigned, copy=False), axis=1, dtype=unsigned).view(native)
    return values[:, part.left : part.right].astype(native, copy=False)


def _summed_floats(raw: memoryview, of: TiffLayout, part: Window) -> Pixels:
    """Undo the predictor of floating point: differences of bytes, the most significant bytes of a row first."""
    channels, item = of.block_channels, of.dtype.itemsize
    differences = np.frombuffer(raw, np.uint8).reshape(part.height, of.block_width * item, channels)
    summed = np.add.accumulate(differences, axis=1, dtype=np.uint8)
    by_byte = summed.reshape(part.height, item, of.block_width, channels)[:, :, part.left : part.right]
    values = np.ascontiguousarray(np.moveaxis(by_byte, 1, 3)).view(f">f{item}")[..., 0]
    return values.astype(of.dtype.newbyteorder("="), copy=False)


_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.swapaxes(pixels[::-1, ::-1], 0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""Orientation → what makes pixels [H, W, C] upright."""


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror pixels [H, W, C] as an orientation says, 1 to 8; others say nothing."""
    return _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels

"""PNGs of 8 and 16 bits: facts of their headers, and their pixels.

Pillow reads all but colours of 16 bits, which it cuts to 8: those are read here, and written anew in a shard.
Legend: H, W sides in pixels, C channels, h, w sides of one pass of an interlaced picture.
"""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from coma.shards.images.array_files.facts import ArrayFacts, Pixels, Window
from coma.shards.images.array_files.tiff_pixels import upright
from coma.shards.images.formats import BadImageError, fault, open_image
from coma.shards.images.options import MOST_PIXELS
from coma.shards.images.png import chunks, png_chunks, without_long_texts

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # type of colour → channels
_GREY, _PALETTE = 0, 3
_ORIENTATION = 0x0112
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of Adam7, and steps between columns and between rows."""

Rows = npt.NDArray[np.uint8]


def facts(data: bytes, channels: int | None = None) -> ArrayFacts:
    """Return the facts about a PNG; with `channels`, which is given for a file of a source, all chunks are checked.

    Raises BadImageError.
    """
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadImageError("truncated: the header is cut")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour == _PALETTE:
        raise BadImageError("unsupported format: a PNG with a palette, whose values are not those of channels")
    if bits not in (8, 16) or colour not in _CHANNELS:
        raise BadImageError(f"unsupported format: a PNG of {bits} bits; save it with 8 or 16")
    if not (width and height):
        raise BadImageError("unreadable: it has no pixels")
    why, turned = "", False
    if channels is not None:
        about = png_chunks(data, checksums=True)
        if about.unknown_critical == "CgBI":
            raise BadImageError("unsupported format: a PNG that Apple's tools made for iOS (CgBI)")
        if about.animated:
            raise BadImageError("animated: a PNG of several pictures; save one picture a file")
        shown = without_long_texts(data)
        orientation = _orientation(shown)
        turned = orientation >= 5
        if orientation != 1:
            why = "orientation"
        elif shown is not data:
            why = "PNG with a longer text or profile than PIL reads"
    if bits == 16 and colour != _GREY:
        why = why or "PNG of 16 bits in colour"
    if turned:
        width, height = height, width
    return ArrayFacts(width, height, _CHANNELS[colour], f"uint{bits}", "png", kept=not why, why=why, turned=turned)


def read_window(data: bytes, window: Window) -> Pixels:
    """Read a window [h, w, C] of a PNG of 8 bits or of 16 bits in grey; all of it is decoded. Raises BadImageError."""
    return _by_pillow(data)[window.top : window.bottom, window.left : window.right]


def read(data: bytes) -> Pixels:
    """Read a PNG whole, upright. Raises BadImageError."""
    bits, colour = data[24], data[25]
    shown = without_long_texts(data)
    pixels = _sixteen_bits(data, _CHANNELS[colour]) if bits == 16 and colour != _GREY else _by_pillow(shown)
    return upright(pixels, _orientation(shown))


def _by_pillow(data: bytes) -> Pixels:
    try:
        image = open_image(data, MOST_PIXELS)
        pixels = np.asarray(image)
    except BadImageError:
        raise
    except Exception as error:  # PIL raises many kinds over damage
        raise BadImageError(fault(error)) from None
    if image.mode.startswith("I"):
        pixels = pixels.astype(np.uint16)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _orientation(data: bytes) -> int:
    """Return the orientation in a PNG's EXIF or XMP, 1 if there is none that can be read."""
    if not png_chunks(data, checksums=False).may_turn:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()  # it may stand behind the pixels
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, which viewers ignore; damaged pixels are found when they are read
        return 1
    return orientation if orientation in range(1, 9) else 1


def _sixteen_bits(data: bytes, channels: int) -> Pixels:
    """Decode a PNG of 16 bits in colour. Raises BadImageError."""
    width, height = struct.unpack_from(">II", data, 16)
    passes = _PASSES if data[28] else ((0, 0, 1, 1),)
    sides = [(-(-(height - y) // down), -(-(width - x) // right)) for x, y, right, down in passes]
    expected = sum(h * (1 + 2 * channels * w) for h, w in sides if h > 0 and w > 0)
    packed = b"".join(data[at + 8 : end - 4] for name, at, end in chunks(data) if name == b"IDAT")
    try:
        raw = np.frombuffer(zlib.decompressobj().decompress(packed, expected), np.uint8)
    except zlib.error as error:
        raise BadImageError(f"unreadable: {error}") from None
    if len(raw) < expected:
        raise BadImageError(f"truncated: it holds {len(raw):,} bytes of pixels, not {expected:,}")
    pixels = np.empty((height, width, channels), np.uint16)
    at = 0
    for (x, y, right, down), (h, w) in zip(passes, sides, strict=True):
        if h > 0 and w > 0:
            rows = raw[at : at + h * (1 + 2 * channels * w)].reshape(h, -1)  # [h, filter and bytes]
            at += rows.size
            values = _unfiltered(rows[:, 0], rows[:, 1:].reshape(h, w, 2 * channels))
            pixels[y::down, x::right] = values.view(">u2")
    return pixels


def _unfiltered(filters: Rows, coded: Rows) -> Rows:
    """Undo the filters of the rows [h] of bytes [h, w, bytes a pixel].

    A pixel needs those to the left, above, and above to the left: all pixels of one anti-diagonal are done at once.
    """
    h, w, size = coded.shape
    if filters.max(initial=0) > 4:
        raise BadImageError("unreadable: a filter that PNG does not have")
    out = np.zeros((h + 1, w + 1, size), np.int16)
    out[1:, 1:] = coded
    kinds = filters.astype(np.intp)[:, None]
    for diagonal in range(h + w - 1):
        y = np.arange(max(0, diagonal - w + 1), min(h, diagonal + 1))
        x = diagonal - y
        left, above, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        estimate = left + above - corner
        to_left, to_above, to_corner = abs(estimate - left), abs(estimate - above), abs(estimate - corner)
        nearest = np.where(
            (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
        )
        predicted = np.choose(kinds[y], (np.int16(0), left, above, (left + above) >> 1, nearest))
        out[y + 1, x + 1] = (out[y + 1, x + 1] + predicted) & 0xFF
    return out[1:, 1:].astype(np.uint8)

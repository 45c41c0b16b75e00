"""Windows of a TIFF that are read from its file: the strips or tiles that meet a window, and nothing else.

Legend: h, w sides of a window, c channels of a block, C of the picture.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from coma.shards.images import tiff
from coma.shards.images.array_files.facts import Pixels, Window
from coma.shards.images.array_files.tiff_layout import JPEG, YCBCR, TiffLayout, layout, layouts
from coma.shards.images.array_files.tiff_pixels import decode_part
from coma.shards.images.formats import BadImageError, fault
from coma.shards.images.readable import Readable

_STORED = 1
_JFIF, _ADOBE, _SCAN = 0xE0, 0xEE, b"\xda"
"""Markers of a JPEG's segments."""
_GREY, _RGB = 1, 2
_DROPPED = ([0], [2])
"""Extra samples that are left out: one that is not described, or alpha that the colours are not multiplied with."""
_UPRIGHT = 1
_SAME_SHAPE = 0.02
"""Part by which the sides of a reduced copy that is not marked as one may differ from the picture's proportions."""
_MOST_BLOCK_BYTES = 2**27
"""Bytes of a strip or tile, decoded, that a worker holds."""
_FAR_LARGER = 8
"""Times a tile's area that may be decoded for it before windows are too dear to be read one by one."""


@dataclass(frozen=True, eq=False)
class TiffPicture:
    """The first picture of a TIFF."""

    data: Readable
    of: TiffLayout
    channels: int
    """As it is shown, which may be without alpha."""

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return self.of.width

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return self.of.height

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the values."""
        return self.of.dtype.newbyteorder("=")

    @property
    def block_height(self) -> int:
        """Rows of its strips or tiles."""
        return self.of.block_height

    def is_read_by_window(self, tile: int) -> bool:
        """Whether tiles are read one by one in any order: what meets one is not much larger, or not compressed."""
        of = self.of
        plain = of.compression == _STORED and of.predictor == 1
        return plain or max(of.block_width, tile) * max(of.block_height, tile) <= _FAR_LARGER * tile * tile

    def read(self, window: Window) -> Pixels:
        """Read a window [h, w, C]. Raises BadImageError."""
        of = self.of
        planes = of.channels if of.planar else 1
        out = np.empty((planes, window.height, window.width, of.block_channels), self.dtype)
        for row in range(window.top // of.block_height, -(-window.bottom // of.block_height)):
            for column in range(window.left // of.block_width, -(-window.right // of.block_width)):
                top, left = row * of.block_height, column * of.block_width
                rows = min(of.rows_of(row), window.bottom - top)
                part = Window(max(window.top - top, 0), max(window.left - left, 0), 0, 0)
                height, width = rows - part.top, min(window.right - left, of.block_width) - part.left
                part = Window(part.top, part.left, height, width)
                y, x = top + part.top - window.top, left + part.left - window.left
                for plane in range(planes):
                    number = (plane * of.down + row) * of.across + column
                    out[plane, y : y + height, x : x + width] = self._part(number, of.rows_of(row), part)
        pixels = out[0] if planes == 1 else np.moveaxis(out[..., 0], 0, 2)
        return pixels[..., : self.channels]

    def _part(self, number: int, rows: int, part: Window) -> Pixels:
        """Read a part [h, w, c] of a block."""
        of, start, size = self.of, int(self.of.offsets[number]), int(self.of.sizes[number])
        if of.compression == JPEG:
            return _jpeg(self.data[start : start + size], of, part)
        if of.compression == _STORED and of.predictor == 1:
            return self._stored(start, size, rows, part)
        return decode_part(memoryview(self.data[start : start + size]), of, rows, part)

    def _stored(self, start: int, size: int, rows: int, part: Window) -> Pixels:
        """Read a part of a block that is not compressed: of a wide one row by row."""
        of = self.of
        pixel_bytes = of.block_channels * of.dtype.itemsize
        row_bytes = of.block_width * pixel_bytes
        if size < rows * row_bytes:
            raise BadImageError(f"truncated: a strip or tile holds {size:,} bytes, not {rows * row_bytes:,}")
        first, stop = start + part.top * row_bytes, start + part.bottom * row_bytes
        if of.block_width <= 4 * part.width:
            values = np.frombuffer(self.data[first:stop], of.dtype)
            values = values.reshape(part.height, of.block_width, of.block_channels)[:, part.left : part.right]
        else:
            left, length = part.left * pixel_bytes, part.width * pixel_bytes
            lines = [self.data[at + left : at + left + length] for at in range(first, stop, row_bytes)]
            values = np.frombuffer(b"".join(lines), of.dtype).reshape(part.height, part.width, of.block_channels)
        return values.astype(self.dtype, copy=False)


def _jpeg(data: bytes, of: TiffLayout, part: Window) -> Pixels:
    """Decode a part [h, w, c] of a block that is a JPEG without the tables that all blocks share."""
    colours = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + (b"\1" if of.photometric == YCBCR else b"\0")
    tables = of.jpeg_tables[2:-2] if of.jpeg_tables else b""
    marks = colours if of.block_channels == 3 else b""
    whole = b"".join([b"\xff\xd8", marks, _without_colour_marks(tables), _without_colour_marks(data[2:])])
    try:
        with Image.open(io.BytesIO(whole), formats=("JPEG",)) as image:
            if of.block_channels == 4:  # as stored: Pillow inverts what it takes for CMYK of a file by itself
                image.tile = [image.tile[0]._replace(args=("CMYK", ""))]
            pixels = np.asarray(image)
    except Exception as error:  # PIL raises many kinds over damage
        raise BadImageError(fault(error, "JPEG")) from None
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.shape[2] != of.block_channels or pixels.shape[0] < part.bottom or pixels.shape[1] < part.right:
        raise BadImageError("unreadable: a JPEG in it has other sides or channels than the TIFF says")
    return pixels[part.top : part.bottom, part.left : part.right]


def _without_colour_marks(segments: bytes) -> bytes:
    """Leave out the JFIF and Adobe segments of a JPEG, which its decoder would believe rather than the TIFF."""
    kept, at = [], 0
    while segments[at : at + 1] == b"\xff" and segments[at + 1 : at + 2] not in (b"", _SCAN):
        end = at + 2 + int.from_bytes(segments[at + 2 : at + 4])
        if segments[at + 1] not in (_JFIF, _ADOBE):
            kept.append(segments[at:end])
        at = end
    return b"".join([*kept, segments[at:]])


@dataclass(frozen=True, eq=False)
class TiffPages:
    """A TIFF of a picture for each channel."""

    pages: tuple[TiffPicture, ...]

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return self.pages[0].width

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return self.pages[0].height

    @property
    def channels(self) -> int:
        """Channels of a window."""
        return len(self.pages)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the values."""
        return self.pages[0].dtype

    @property
    def block_height(self) -> int:
        """Rows of its strips or tiles."""
        return max(page.block_height for page in self.pages)

    def is_read_by_window(self, tile: int) -> bool:
        """Whether tiles are read one by one in any order."""
        return all(page.is_read_by_window(tile) for page in self.pages)

    def read(self, window: Window) -> Pixels:
        """Read a window [h, w, C]. Raises BadImageError."""
        return np.concatenate([page.read(window) for page in self.pages], axis=2)


def open_tiff(data: Readable, channels: int | None) -> TiffPicture | TiffPages | None:
    """Open the first picture of a TIFF; None if it is not read by windows but has to be decoded whole.

    Args:
        data: the file.
        channels: how many channels there should be, with the values that they have; None shows 8-bit RGB.

    Raises:
        BadImageError: it is damaged, or not of plain values.
    """
    as_rgb = channels is None
    if has_other_pictures(data):
        if channels is None:
            raise BadImageError("animated: a TIFF of several pictures; save one picture a file")
        pages = layouts(data, channels)
        for page in pages:
            _check_block(page)
        upright = all(page.orientation not in range(_UPRIGHT + 1, 9) for page in pages)
        return TiffPages(tuple(TiffPicture(data, page, 1) for page in pages)) if upright else None
    try:
        of = layout(data, jpeg=True)
    except BadImageError as error:
        if as_rgb and str(error).startswith("unsupported format"):
            return None
        raise
    _check_block(of)
    if of.orientation in range(_UPRIGHT + 1, 9):
        return None
    if not as_rgb:
        return TiffPicture(data, of, of.channels)
    extra = tiff.first_directory(data).get(tiff.EXTRA_SAMPLES)
    shown = of.channels - (extra is not None and extra.tolist() in _DROPPED)
    plain = (of.photometric == _GREY and shown == 1) or (of.photometric in (_RGB, YCBCR) and shown == 3)
    return TiffPicture(data, of, shown) if plain and of.dtype == np.uint8 else None


def _check_block(of: TiffLayout) -> None:
    """Refuse strips and tiles that a worker cannot hold. Raises BadImageError."""
    if of.compression == _STORED and of.predictor == 1:
        return  # no more is read than a window needs
    block_bytes = of.block_width * of.block_height * of.block_channels * of.dtype.itemsize
    if block_bytes > _MOST_BLOCK_BYTES:
        what = "tile" if of.tiled else "strip"
        raise BadImageError(
            f"unsupported format: a TIFF with a {what} of {block_bytes:,} bytes, the limit is {_MOST_BLOCK_BYTES:,}; "
            "write it in smaller tiles"
        )


def has_other_pictures(data: Readable) -> bool:
    """Whether there are pictures other than the first one, its masks, and smaller copies of it, marked or not."""
    sides: list[tuple[int, int]] = []
    for number, directory in enumerate(tiff.directories(data)):
        if number == tiff.MOST_DIRECTORIES:
            return True
        sides.append((tiff.first_value(directory, tiff.WIDTH, 0), tiff.first_value(directory, tiff.HEIGHT, 0)))
        if number and not tiff.belongs(directory) and not _is_smaller_copy(sides[0], sides[-1]):
            return True
    return False


def _is_smaller_copy(whole: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a picture has the proportions of a larger one, as the levels of a slide have."""
    if min(*whole, *other) < 1 or other[0] >= whole[0]:
        return False
    pixel = 1 / min(other)  # sides are rounded
    return abs(other[0] * whole[1] / (other[1] * whole[0]) - 1) <= _SAME_SHAPE + pixel

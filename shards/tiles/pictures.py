"""Pictures that windows are read from, whatever their format: from the file where that can be, else decoded whole.

Legend: h, w sides of a window, H, W of a picture, C channels.
"""

from functools import partial
from typing import Protocol

import numpy as np

from coma.shards.images import tiff
from coma.shards.images.array_files import npy
from coma.shards.images.array_files.facts import Pixels, Window
from coma.shards.images.arrays import array_facts, read_array
from coma.shards.images.formats import MAGIC, BadImageError, Once
from coma.shards.images.options import PixelOptions
from coma.shards.images.prepare import WholeImage, whole_image
from coma.shards.images.prepare_array import check_fit
from coma.shards.images.readable import Readable
from coma.shards.sources.listing import MAX_IMAGE_BYTES
from coma.shards.tiles.tiff_windows import open_tiff

_MOST_WHOLE_BYTES = 2**28
"""Bytes of an array that a worker decodes whole."""


class Picture(Protocol):
    """A picture whose windows are read."""

    @property
    def width(self) -> int:
        """Pixels, upright."""

    @property
    def height(self) -> int:
        """Pixels, upright."""

    @property
    def channels(self) -> int:
        """Channels of its windows."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the values."""

    @property
    def block_height(self) -> int | None:
        """Rows that are decoded together; None: all are."""

    def is_read_by_window(self, tile: int) -> bool:
        """Whether tiles of this side are read one by one, in any order, at little more than their own cost."""

    def read(self, window: Window) -> Pixels:
        """Read a window [h, w, C]. Raises BadImageError."""


class NpyPicture:
    """An array [H, W], [H, W, C] or [C, H, W] in the order of C."""

    block_height = 1

    def __init__(self, data: Readable, channels: int | None) -> None:
        self._data = data
        self._header = header = npy.NpyHeader(data)
        self._leading = npy.is_channels_first(header.shape, channels)
        shape = header.shape if len(header.shape) == 3 else (*header.shape, 1)
        self.height, self.width, self.channels = (shape[1], shape[2], shape[0]) if self._leading else shape
        self.dtype: np.dtype[np.generic] = header.dtype.newbyteorder("=")

    def is_read_by_window(self, tile: int) -> bool:
        """Whether tiles are read one by one, as they always are."""
        return True

    def read(self, window: Window) -> Pixels:
        """Read a window [h, w, C]. Raises BadImageError."""
        planes, deep = (self.channels, 1) if self._leading else (1, self.channels)
        pixel_bytes = deep * self.dtype.itemsize
        length = window.width * pixel_bytes
        lines = []
        for plane in range(planes):
            for row in range(window.top, window.bottom):
                pixel = (plane * self.height + row) * self.width + window.left
                at = self._header.start + pixel * pixel_bytes
                lines.append(self._data[at : at + length])
        values = np.frombuffer(b"".join(lines), self._header.dtype).astype(self.dtype, copy=False)
        pixels = values.reshape(planes, window.height, window.width, deep)
        return np.moveaxis(pixels[..., 0], 0, 2) if self._leading else pixels[0]


class WholeArray:
    """A picture of any channels and depth that is decoded whole when the first window is read."""

    block_height = None

    def __init__(self, data: bytes, options: PixelOptions) -> None:
        facts = array_facts(data, options.channels)
        self._pixels = Once(partial(read_array, data, facts))
        self.width, self.height, self.channels = facts.width, facts.height, facts.channels
        self.dtype = np.dtype(facts.dtype)
        if facts.pixel_bytes > _MOST_WHOLE_BYTES:
            raise BadImageError(
                f"too large: {facts.pixel_bytes:,} bytes of pixels, the limit of what is decoded whole is "
                f"{_MOST_WHOLE_BYTES:,}; {_way_out(data, options)}"
            )

    def is_read_by_window(self, tile: int) -> bool:
        """Whether tiles are read one by one, which they are not."""
        return False

    def read(self, window: Window) -> Pixels:
        """Read a window [h, w, C]. Raises BadImageError."""
        return self._pixels()[window.top : window.bottom, window.left : window.right]


class WholeRgb:
    """A picture that PIL decodes whole, upright, in 8-bit RGB or grey, when the first window is read."""

    block_height = None
    channels = 3
    dtype: np.dtype[np.generic] = np.dtype(np.uint8)

    def __init__(self, image: WholeImage) -> None:
        self._image = image
        self.width, self.height = image.facts.width, image.facts.height

    def is_read_by_window(self, tile: int) -> bool:
        """Whether tiles are read one by one, which they are not."""
        return False

    def read(self, window: Window) -> Pixels:
        """Read a window [h, w, C]. Raises BadImageError."""
        pixels = np.asarray(self._image.decoded().crop((window.left, window.top, window.right, window.bottom)))
        return pixels if pixels.ndim == 3 else pixels[..., None]


def open_picture(data: Readable, options: PixelOptions) -> Picture:
    """Open a picture, which is checked as far as its header goes.

    Raises BadImageError if it is damaged, too large to be decoded whole, or does not fit the data set, and OSError if
    it cannot be read.
    """
    if not len(data):
        raise BadImageError("empty")
    picture = _by_windows(data, options) or _whole(data, options)
    if options.channels is not None:
        check_fit(picture.channels, picture.dtype.name, options)
    return picture


def _by_windows(data: Readable, options: PixelOptions) -> Picture | None:
    if options.channels is not None and data.startswith(npy.MAGIC):
        return None if npy.NpyHeader(data).fortran else NpyPicture(data, options.channels)
    if MAGIC["TIFF"].match(data[:16]):
        return open_tiff(data, options.channels)
    return None


def _whole(data: Readable, options: PixelOptions) -> Picture:
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImageError(
            f"too large: {len(data):,} bytes, the limit of what is decoded whole is {MAX_IMAGE_BYTES:,}; "
            f"{_way_out(data, options)}"
        )
    if options.channels is not None:
        return WholeArray(data[:], options)
    try:
        return WholeRgb(whole_image(data[:], options.max_pixels))
    except BadImageError as error:
        if str(error).startswith("bomb: "):
            way_out = _way_out(data, options)
            raise BadImageError(f"{error} (--max-pixels) for what is decoded whole; {way_out}") from None
        raise


def _way_out(data: Readable, options: PixelOptions) -> str:
    """Say how a picture that is too large to be decoded whole is read piece by piece."""
    if options.channels is not None:
        return "write it as an upright TIFF of tiles, or as a .npy in the order of C, which are read piece by piece"
    directory = tiff.first_directory(data) if MAGIC["TIFF"].match(data[:16]) else {}
    own_values = tiff.way_out(directory) if tiff.first_value(directory, tiff.BITS, 8) > 8 else ""
    return f"write it as an upright TIFF of tiles of 8-bit grey or RGB, which is read piece by piece{own_values}"

"""Reading of tiles: from the image that they are cut from, which stays open, or from a spool."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coma.errors import ComaError, DataError
from coma.shards.images.array_files import npy
from coma.shards.images.array_files.facts import Window
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import PixelOptions
from coma.shards.images.prepare import ImageFacts, Prepared
from coma.shards.sources.listing import SourceImage, clamped
from coma.shards.tiles.encode import encode_tile, tile_format
from coma.shards.tiles.file_bytes import FileBytes
from coma.shards.tiles.grid import Tile
from coma.shards.tiles.options import TileOptions
from coma.shards.tiles.pictures import Picture, open_picture

_OPEN_PICTURES = 16
"""Images of which a worker keeps the places of strips and tiles in memory."""


@contextmanager
def opened(root: Path, image: SourceImage) -> Iterator[FileBytes]:
    """Open an image in the block.

    Raises BadImageError if it is to be set aside, there or in the block, ComaError if the source as a whole has gone.
    """
    data = None
    try:
        data = FileBytes(root, image)
        yield data
    except OSError as error:
        raise _as_bad_image(root, image, error) from error
    finally:
        if data is not None:
            data.close()


def _as_bad_image(root: Path, image: SourceImage, error: OSError) -> BadImageError | ComaError:
    if not root.exists():
        return ComaError(f"{root} has gone; once it is back, the same command resumes")
    if image.size >= 0 and isinstance(error, FileNotFoundError):
        return BadImageError("vanished: it was there when the source was listed")
    return BadImageError(f"unreadable: {error.strerror or error}")


class TileReader:
    """Reads tiles of images below `root`, and keeps the most recently used images open."""

    def __init__(self, root: Path, pixels: PixelOptions, tiles: TileOptions) -> None:
        self._root = root
        self._pixels = pixels
        self._tiles = tiles
        self._open: OrderedDict[tuple[str, int], tuple[FileBytes, Picture]] = OrderedDict()

    def prepare(self, image: SourceImage) -> Prepared:
        """Return a tile as it is written.

        Raises BadImageError if it is to be set aside, ComaError if the source has gone.
        """
        assert image.tile is not None
        if image.refused is not None:
            raise BadImageError(image.refused)
        if image.tile.spool is not None:
            return self._from_spool(image.tile, image.mtime_ns)
        try:
            return cut(self._picture(image), image.tile, self._pixels, self._tiles)
        except OSError as error:
            raise _as_bad_image(self._root, image, error) from error

    def close(self) -> None:
        """Close all images."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _picture(self, image: SourceImage) -> Picture:
        place = (image.file, image.offset)
        if place not in self._open:
            while len(self._open) >= _OPEN_PICTURES:
                self._open.popitem(last=False)[1][0].close()
            data = FileBytes(self._root, image)
            try:
                self._open[place] = (data, open_picture(data, self._pixels))
            except BaseException:
                data.close()
                raise
        self._open.move_to_end(place)
        return self._open[place][1]

    def _from_spool(self, tile: Tile, mtime_ns: int) -> Prepared:
        assert tile.spool is not None
        with open(tile.spool, "rb", buffering=0) as file:  # noqa: PTH123  (tiles are many)
            data = os.pread(file.fileno(), tile.size, tile.offset)
            if len(data) != tile.size or clamped(os.fstat(file.fileno()).st_mtime_ns) != mtime_ns:
                raise DataError(f"{tile.spool} was changed while its tiles were read; run the command again")
        facts = ImageFacts(tile.width, tile.height, tile_format(self._pixels, self._tiles))
        array = npy.read(data) if self._pixels.channels is not None else None
        return Prepared(data, facts, None, facts, False, array)


def cut(picture: Picture, tile: Tile, pixels: PixelOptions, tiles: TileOptions) -> Prepared:
    """Cut a tile from a picture. Raises BadImageError, OSError."""
    if tile.left + tile.width > picture.width or tile.top + tile.height > picture.height:
        raise BadImageError("changed: it has other sides than when it was listed")
    return encode_tile(picture.read(Window(tile.top, tile.left, tile.height, tile.width)), pixels, tiles)

"""Listing of the tiles of a source's images, whose headers are read for that.

Legend: n images, t tiles and images that are set aside whole.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from coma.errors import UsageError
from coma.shards.images import tiff
from coma.shards.images.formats import MAGIC, BadImageError
from coma.shards.images.options import PixelOptions, pixels_in_words
from coma.shards.manifest.pixel_coding import DTYPES
from coma.shards.sources.listing import SourceImage, SourceListing, SplitListing, counted_images, printable
from coma.shards.tiles.encode import bytes_per_pixel
from coma.shards.tiles.grid import Grid
from coma.shards.tiles.options import TileOptions
from coma.shards.tiles.pictures import open_picture
from coma.shards.tiles.reader import opened

log = logging.getLogger(__name__)

_REPORT_EVERY_IMAGES = 20
_MOST_TILE_BYTES = 2**28
"""Bytes of a tile's values: a worker holds it a few times."""


class TileNames(Sequence[str]):
    """[t] names of the tiles of images, made when they are asked for: there may be millions."""

    def __init__(self, split: "TiledListing", with_place: bool) -> None:
        self._split = split
        self._with_place = with_place

    def __len__(self) -> int:
        """Return the number of tiles."""
        return int(self._split.first[-1])

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        """Return one name, or some."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        image, grid, number = self._split.locate(at)
        if not self._with_place:
            return self._split.images.files[image]
        place = "" if grid is None else grid.at(number).place
        return self._split.images.paths[image] + place


@dataclass(frozen=True, eq=False)
class TiledListing(SplitListing):
    """The tiles of one split's images, row after row, image after image; an image that is set aside is an entry."""

    images: SplitListing = field(kw_only=True)
    sides: npt.NDArray[np.int64] = field(kw_only=True)
    """[n, 2] width and height of each image, 0 if it is set aside."""
    windowed: npt.NDArray[np.bool_] = field(kw_only=True)
    """[n] whether tiles are read from the image one by one."""
    block_rows: npt.NDArray[np.int64] = field(kw_only=True)
    """[n] rows of pixels that are decoded together, 0 if all are."""
    first: npt.NDArray[np.int64] = field(kw_only=True)
    """[n + 1] number of each image's first tile, and of all tiles."""
    options: TileOptions = field(kw_only=True)
    pixel_bytes: float = field(kw_only=True)
    """Estimate of the bytes of a pixel in a shard."""
    spooled: dict[int, tuple[str, int, int, int]] | None = None
    """Tile → file, its time of change, first byte and size, where its bytes are already; None before they are."""

    @property
    def group_of(self) -> npt.NDArray[np.int64]:
        """[t] the image of each tile."""
        return np.repeat(np.arange(len(self.images)), np.diff(self.first))

    def locate(self, at: int) -> tuple[int, Grid | None, int]:
        """Return the image that a tile belongs to, the image's grid (None if it is set aside), its number there."""
        image = int(np.searchsorted(self.first, at, side="right")) - 1
        return image, self.grid(image), at - int(self.first[image])

    def grid(self, image: int) -> Grid | None:
        """Return the grid of an image, None if it is set aside."""
        width, height = self.sides[image].tolist()
        assert self.options.tile is not None
        return Grid(width, height, self.options.tile, self.options.overlap) if width else None

    def image(self, i: int) -> SourceImage:
        """Return tile i, or the image that is set aside in its place."""
        number, grid, at = self.locate(i)
        image = self.images.image(number)
        if grid is None:
            return replace(image, refused=self.refused[i])
        tile = grid.at(at, self.pixel_bytes)
        if self.spooled is not None and i in self.spooled:
            spool, mtime_ns, offset, size = self.spooled[i]
            tile = replace(tile, spool=spool, offset=offset, size=size)
            image = replace(image, mtime_ns=mtime_ns)
        return replace(image, path=image.path + tile.place, refused=self.refused.get(i), tile=tile)


@dataclass(frozen=True)
class _Measure:
    """What an image's header says of it."""

    width: int = 0
    height: int = 0
    dtype: str = ""
    windowed: bool = True
    block_rows: int = 0
    refused: str | None = None


def list_tiles(
    listing: SourceListing, pixels: PixelOptions, tiles: TileOptions, progress: Callable[[int], None]
) -> tuple[SourceListing, PixelOptions]:
    """Return the listing of the tiles of all images, and what its samples are: their type is that of the first one.

    Raises UsageError for a source whose images cannot be cut, and for tiles that a worker cannot hold.
    """
    if listing.image_column is not None:
        raise UsageError(f"--tile {tiles.tile}: images inside of parquet files are not cut; unpack them into a folder")
    if listing.mask_coding is not None:
        raise UsageError(f"--tile {tiles.tile}: masks are not cut; --masks none takes the images alone")
    measured: list[list[_Measure]] = []
    count = 0
    for split in listing.splits:
        of_split: list[_Measure] = []
        for i in range(len(split)):
            measure = _measure(listing, split.image(i), pixels, tiles)
            if pixels.channels is not None and pixels.dtype is None and measure.refused is None:
                log.info(
                    "samples are of %s, as %s is; --dtype says otherwise", measure.dtype, printable(split.paths[i])
                )
                pixels = replace(pixels, dtype=measure.dtype)  # type: ignore[arg-type]
            of_split.append(measure)
            count += 1
            if count % _REPORT_EVERY_IMAGES == 0:
                progress(count)
        measured.append(of_split)
    splits = tuple(_tiled(split, each, pixels, tiles) for split, each in zip(listing.splits, measured, strict=True))
    _check_tile_bytes(splits, pixels, tiles)
    for tiled in splits:
        log.info("split %s has %s", tiled.name, counted_tiles(tiled))
    return replace(listing, splits=splits), pixels


def _check_tile_bytes(splits: tuple[TiledListing, ...], pixels: PixelOptions, tiles: TileOptions) -> None:
    """Raise UsageError for tiles that a worker cannot hold."""
    if pixels.channels is None or pixels.dtype is None:
        return
    assert tiles.tile is not None
    pixel_bytes = pixels.channels * np.dtype(pixels.dtype).itemsize
    most = max(int(np.minimum(split.sides, tiles.tile).prod(axis=1).max(initial=0)) for split in splits) * pixel_bytes
    if most > _MOST_TILE_BYTES:
        raise UsageError(
            f"--tile {tiles.tile}: a tile of {pixels_in_words(pixels.channels, pixels.dtype)} has {most:,} bytes, "
            f"the limit is {_MOST_TILE_BYTES:,}; give {math.isqrt(_MOST_TILE_BYTES // pixel_bytes)} or less"
        )


def counted_tiles(split: TiledListing) -> str:
    """Say how many tiles a split has, and of how many images."""
    images = int((split.sides[:, 0] > 0).sum())
    tiles = len(split) - (len(split.images) - images)
    return f"{'1 tile' if tiles == 1 else f'{tiles:,} tiles'} of {counted_images(images)}"


def _tiled(split: SplitListing, measured: list[_Measure], pixels: PixelOptions, tiles: TileOptions) -> TiledListing:
    assert tiles.tile is not None
    sides = np.array([(each.width, each.height) for each in measured], np.int64).reshape(-1, 2)
    counts = [
        1 if each.refused is not None else len(Grid(each.width, each.height, tiles.tile, tiles.overlap))
        for each in measured
    ]
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    pixel_bytes = bytes_per_pixel(pixels, tiles)
    refused = {int(first[i]): each.refused for i, each in enumerate(measured) if each.refused is not None}
    tile_bytes = np.minimum(sides, tiles.tile).prod(axis=1) * pixel_bytes
    whole = np.array([each.refused is not None for each in measured], bool)
    sizes = np.where(whole, split.sizes, tile_bytes.astype(np.int64))
    tiled = TiledListing(
        name=split.name,
        paths=(),
        files=(),
        offsets=np.repeat(split.offsets, counts),
        sizes=np.repeat(sizes, counts),
        mtimes_ns=np.repeat(split.mtimes_ns, counts),
        labels=None if split.labels is None else np.repeat(split.labels, counts),
        refused=refused,
        images=split,
        sides=sides,
        windowed=np.array([each.windowed for each in measured], bool),
        block_rows=np.array([each.block_rows for each in measured], np.int64),
        first=first,
        options=tiles,
        pixel_bytes=pixel_bytes,
    )
    return replace(tiled, paths=TileNames(tiled, True), files=TileNames(tiled, False))


def _measure(listing: SourceListing, image: SourceImage, pixels: PixelOptions, tiles: TileOptions) -> _Measure:
    if image.refused is not None:
        return _Measure(refused=image.refused)
    assert tiles.tile is not None
    lost = ""
    try:
        with opened(listing.root, image) as data:
            try:
                picture = open_picture(data, pixels)
            except BadImageError:
                lost = _tiles_lost(data, tiles)
                raise
            name = picture.dtype.name
            if pixels.channels is not None:
                assert name in DTYPES
            windowed = picture.is_read_by_window(tiles.tile)
            return _Measure(picture.width, picture.height, name, windowed, picture.block_height or 0)
    except BadImageError as error:
        return _Measure(refused=f"{error}{lost}")


def _tiles_lost(data: Any, tiles: TileOptions) -> str:
    """Say how many tiles are lost with an image that is set aside, if its header says its sides."""
    if not MAGIC["TIFF"].match(data[:16]):
        return ""
    directory = tiff.first_directory(data)
    width, height = (tiff.first_value(directory, tag, 0) for tag in (tiff.WIDTH, tiff.HEIGHT))
    assert tiles.tile is not None
    if not (0 < width < 2**31 and 0 < height < 2**31):
        return ""
    count = len(Grid(width, height, tiles.tile, tiles.overlap))
    return f" ({'its only tile is' if count == 1 else f'all {count:,} tiles are'} lost)"


def tiled_splits(listing: SourceListing) -> Iterator[TiledListing]:
    """Yield the splits of a listing that hold tiles."""
    for split in listing.splits:
        if isinstance(split, TiledListing):
            yield split

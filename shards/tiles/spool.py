"""Spools of tiles: those of images from which tiles cannot be read one by one are cut in one go, before the shards.

Shuffled shards ask for tiles in any order. Where that would decode a whole JPEG, or a strip as wide as the image, for
each tile, a job walks through the image once instead, and writes the tiles' bytes to a file, from which the shards
take them. A spool is the bytes of tiles, then an index in JSON, then the length of the index.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import ComaError
from coma.shards.files import remove_temporaries, replacing
from coma.shards.images.array_files.facts import Window
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import PixelOptions
from coma.shards.sources.listing import SourceImage, SourceListing, clamped, printable
from coma.shards.tiles.encode import encode_tile
from coma.shards.tiles.grid import Grid
from coma.shards.tiles.listing import TiledListing, tiled_splits
from coma.shards.tiles.options import TileOptions
from coma.shards.tiles.pictures import Picture, open_picture
from coma.shards.tiles.reader import opened
from coma.shards.write.pool import run_jobs
from coma.shards.write.worker import Job, Tally

_TILES_PER_JOB = 256
_MOST_BAND_BYTES = 2**28
"""Bytes of pixels that a worker reads at a time."""
_LENGTH = struct.Struct("<Q")

Wanted = dict[str, npt.NDArray[np.bool_]]
"""Split → [t] whether each of its tiles is needed."""


@dataclass(frozen=True)
class TileJob:
    """Cut some rows of tiles of one image into a spool."""

    root: Path
    image: SourceImage
    grid: Grid
    rows: range
    first: int
    """Number of the image's first tile in its split."""
    wanted: tuple[int, ...]
    """Numbers of the tiles in the image's grid."""
    target: Path
    digest: str
    pixels: PixelOptions
    tiles: TileOptions
    tile_bytes: int
    """Estimate of what a tile takes in a shard."""

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"the tiles of {printable(self.image.path)}"

    def run(self, report: Callable[[Tally], None]) -> None:
        """Write the spool. Raises ComaError if it cannot be written."""
        index: dict[str, tuple[int, int] | str] = {}
        try:
            with replacing(self.target) as file:
                for number, outcome in self._tiles():
                    if isinstance(outcome, str):
                        index[str(number)] = outcome
                    else:
                        index[str(number)] = (file.tell(), len(outcome))
                        file.write(outcome)
                    report(Tally(1, self.tile_bytes))
                ending = json.dumps({"digest": self.digest, "tiles": index}).encode()
                file.write(ending + _LENGTH.pack(len(ending)))
        except OSError as error:
            raise ComaError(
                f"cannot write {self.target}: {error.strerror or error}; finished shards are kept, and the same "
                "command resumes from them"
            ) from error

    def _tiles(self) -> Iterator[tuple[int, bytes | str]]:
        """Yield the wanted tiles, each with its bytes, or with the reason for which it is set aside."""
        left = set(self.wanted)
        try:
            with opened(self.root, self.image) as data:
                picture = open_picture(data, self.pixels)
                if (picture.width, picture.height) != (self.grid.width, self.grid.height):
                    raise BadImageError("changed: it has other sides than when it was listed")
                for numbers in self._bands(picture):
                    for number, outcome in self._band(picture, [each for each in numbers if each in left]):
                        left.discard(number)
                        yield number, outcome
        except BadImageError as error:
            yield from ((number, str(error)) for number in sorted(left))

    def _bands(self, picture: Picture) -> Iterator[list[int]]:
        """Yield tiles that are read together: as many rows as may be in memory, or parts of one."""
        across = self.grid.across
        tile_bytes = self.grid.tile**2 * picture.channels * picture.dtype.itemsize
        most = max(1, _MOST_BAND_BYTES // tile_bytes)
        rows_at_once = max(1, most // across)
        for row in self.rows[::rows_at_once]:
            rows = range(row, min(row + rows_at_once, self.rows.stop))
            for column in range(0, across, most):
                columns = range(column, min(column + most, across))
                yield [each * across + at for each in rows for at in columns]

    def _band(self, picture: Picture, numbers: list[int]) -> Iterator[tuple[int, bytes | str]]:
        """Yield tiles that are read together, each with its bytes or the reason for which it is set aside."""
        tiles = {number: self.grid.at(number) for number in numbers}
        if not tiles:
            return
        top, left = min(tile.top for tile in tiles.values()), min(tile.left for tile in tiles.values())
        bottom = max(tile.top + tile.height for tile in tiles.values())
        right = max(tile.left + tile.width for tile in tiles.values())
        band = None
        if picture.block_height is not None:
            with suppress(BadImageError):  # then each tile by itself, of which only some may be damaged
                band = picture.read(Window(top, left, bottom - top, right - left))
        for number, tile in tiles.items():
            try:
                if band is None:
                    pixels = picture.read(Window(tile.top, tile.left, tile.height, tile.width))
                else:
                    y, x = tile.top - top, tile.left - left
                    pixels = band[y : y + tile.height, x : x + tile.width]
                yield number, encode_tile(pixels, self.pixels, self.tiles).data
            except BadImageError as error:
                yield number, str(error)


def needs_spool(listing: SourceListing) -> bool:
    """Whether tiles of some images have to be cut before the shards are written."""
    return any(not split.windowed.all() for split in tiled_splits(listing))


def spool_bytes(listing: SourceListing) -> int:
    """Return an estimate of the bytes of all tiles that are cut before the shards are written."""
    return sum(int(split.sizes[~split.windowed[split.group_of]].sum()) for split in tiled_splits(listing))


def spool_tiles(
    listing: SourceListing,
    folder: Path,
    wanted: Wanted,
    pixels: PixelOptions,
    workers: int | None,
    engine: str,
    progress: Callable[[Tally, Tally], None],
) -> SourceListing:
    """Cut the wanted tiles of the images that are not read by window into `folder`; return the listing with places.

    Spools that are there from an earlier run are kept. `progress` is called with the tiles that are done, and all that
    are to do.
    Raises what `run_jobs` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    jobs = [
        list(_jobs(listing.root, split, number, folder, wanted[split.name], pixels))
        for number, split in enumerate(tiled_splits(listing))
    ]
    missing = [job for of_split in jobs for job in of_split if _read_index(job) is None]
    total = sum((Tally(len(job.wanted), len(job.wanted) * job.tile_bytes) for job in missing), Tally())
    done = Tally()
    waiting: list[Job] = [*missing]
    with closing(run_jobs(waiting, workers, engine)) as events:
        for event in events:
            if isinstance(event, Tally):
                done += event
                progress(done, total)
    splits = tuple(_placed(split, each) for split, each in zip(tiled_splits(listing), jobs, strict=True))
    return replace(listing, splits=splits)


def _jobs(
    root: Path, split: TiledListing, number: int, folder: Path, wanted: npt.NDArray[np.bool_], pixels: PixelOptions
) -> Iterator[TileJob]:
    for image in np.flatnonzero(~split.windowed).tolist():
        grid = split.grid(image)
        if grid is None:
            continue
        first = int(split.first[image])
        rows_per_job = grid.down
        if block_rows := int(split.block_rows[image]):
            rows_per_job = max(1, _TILES_PER_JOB // grid.across, block_rows // (grid.tile - grid.overlap))
        about = split.images.image(image)
        for row in range(0, grid.down, rows_per_job):
            rows = range(row, min(row + rows_per_job, grid.down))
            numbers = range(rows.start * grid.across, rows.stop * grid.across)
            needed = tuple(each for each in numbers if wanted[first + each])
            if needed:
                digest = xxhash.xxh3_128(f"{rows} {about.size} {about.mtime_ns} {about.offset} ".encode())
                digest.update(f"{split.options} {pixels} ".encode() + os.fsencode(about.file))
                target = folder.absolute() / f"{number:03d}{image:07d}{row:07d}.bin"
                yield TileJob(
                    root=root.absolute(),
                    image=about,
                    grid=grid,
                    rows=rows,
                    first=first,
                    wanted=needed,
                    target=target,
                    digest=digest.hexdigest(),
                    pixels=pixels,
                    tiles=split.options,
                    tile_bytes=int(split.sizes[first]),
                )


def _read_index(job: TileJob) -> dict[int, list[int] | str] | None:
    """Return what a spool holds: tile → first byte and size, or a reason; None if it lacks a wanted one."""
    try:
        with job.target.open("rb") as file:
            file.seek(-_LENGTH.size, os.SEEK_END)
            (length,) = _LENGTH.unpack(file.read())
            file.seek(-_LENGTH.size - length, os.SEEK_END)
            about = json.loads(file.read(length))
        tiles = {int(number): outcome for number, outcome in about["tiles"].items()}
    except (OSError, ValueError, KeyError, struct.error):
        return None
    return tiles if about["digest"] == job.digest and tiles.keys() >= set(job.wanted) else None


def _placed(split: TiledListing, jobs: list[TileJob]) -> TiledListing:
    """Return a listing that knows where the tiles in spools are."""
    spooled: dict[int, tuple[str, int, int, int]] = {}
    refused = dict(split.refused)
    for job in jobs:
        index = _read_index(job)
        if index is None:
            raise ComaError(f"{job.target} has gone; the same command resumes")
        mtime_ns = clamped(job.target.stat().st_mtime_ns)
        for number, outcome in index.items():
            if isinstance(outcome, str):
                refused[job.first + number] = outcome
            else:
                spooled[job.first + number] = (str(job.target), mtime_ns, outcome[0], outcome[1])
    return replace(split, spooled=spooled, refused=refused)

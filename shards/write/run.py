"""One run of `coma shard`: the source's listing, the layout of its shards, and the record that identifies it."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from coma.errors import DataError, UsageError
from coma.shards.files import is_remote, reaching
from coma.shards.images.formats import BadImageError
from coma.shards.sources.detect import list_source
from coma.shards.sources.listing import SourceListing, SplitListing, printable
from coma.shards.sources.reader import SourceReader
from coma.shards.tiles.listing import list_tiles, tiled_splits
from coma.shards.write.layout import ShardLayout, SplitLayout, lay_out
from coma.shards.write.options import ShardOptions
from coma.shards.write.resume import counted_type
from coma.shards.write.summary import ShardProgress

log = logging.getLogger(__name__)

_LAYOUT_VERSION = 2  # increase it whenever the same source and options would give other bytes


@dataclass(frozen=True)
class ShardRun:
    """A source and what is to become of it."""

    source: Path
    listing: SourceListing
    splits: list[SplitLayout]
    out: Path
    options: ShardOptions
    record: dict[str, Any]
    """Everything that the bytes of the shards depend on: a run with the same record resumes an unfinished one."""
    progress: Callable[[ShardProgress], None]

    def listing_of(self, split: SplitLayout) -> SplitListing:
        """Return the listing that a split's images are taken from."""
        return self.listing.splits[split.source_split]

    def source_bytes(self, split: SplitLayout, shard: ShardLayout) -> int:
        """Return the bytes of a shard's images in the source."""
        return int(self.listing_of(split).source_bytes[split.order[shard.start : shard.stop]].sum())

    def shards(self) -> list[tuple[SplitLayout, ShardLayout]]:
        """Return the shards of this part of the run, of all splits."""
        every = [(split, shard) for split in self.splits for shard in split.shards]
        if self.options.part is None:
            return every
        number, parts = self.options.part
        return every[number - 1 :: parts]


def prepare_run(
    source: Path, out: Path, options: ShardOptions | None, progress: Callable[[ShardProgress], None] | None
) -> ShardRun:
    """List the source and lay out its shards; nothing is written.

    Raises UsageError and DataError as `writer.shard` says.
    """
    source, options, progress = Path(source), options or ShardOptions(), progress or (lambda _: None)
    with reaching(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out} is a file; name a folder that is new or empty")
    listing = list_source(
        source,
        layout=options.layout,
        image_column=options.image_column,
        label_column=options.label_column,
        root=options.root,
        splits=options.splits,
        masks=options.mask_options,
        exclude=None if is_remote(out) else out,
        progress=lambda images: progress(ShardProgress(images=images)),
        arrays=options.channels is not None,
    )
    if listing.image_column is not None and options.part is not None and options.channels and options.dtype is None:
        raise UsageError(
            f"--channels {options.channels} --part {options.part_name}: a part does not read all of the parquet files, "
            "so say with --dtype which type the values have"
        )
    record = _record(listing, options)
    if options.tile is not None:
        listing, pixels = list_tiles(
            listing, options.pixels, options.tiles, lambda images: progress(ShardProgress(images=images))
        )
        record |= _record_of_tiles(listing, options)
        options = replace(options, dtype=pixels.dtype)
    splits = lay_out(source, listing, options)
    return ShardRun(source, listing, splits, out, options, record, progress)


def with_type(run: ShardRun) -> ShardRun:
    """Return a run whose images can be read by now, with the type of values of its samples, if it has to be found.

    It is that of the finished shards, else of the first image, in the source's order, that has the channels asked
    for. Raises DataError if none has.
    """
    if run.options.channels is None or run.options.dtype is not None:
        return run
    finished = (counted_type(run.out, layout) for split in run.splits for layout in split.shards)
    dtype = next(filter(None, finished), None) or _first_type(run)
    return replace(run, options=replace(run.options, dtype=dtype))  # type: ignore[arg-type]


def _first_type(run: ShardRun) -> str:
    if run.options.tile is not None:  # it is known from the headers, unless none fits
        raise DataError(_none_fits(run, run.listing.splits[0].refused.get(0, "")))
    reader, first = SourceReader(run.listing.root), ""
    try:
        for split in run.listing.splits:
            for i in range(len(split)):
                image = split.image(i)
                try:
                    array = reader.prepare(image, run.options.pixels).array
                except BadImageError as error:
                    first = first or f"{printable(image.path)} is set aside: {error}"
                else:
                    assert array is not None
                    log.info("samples are of %s, as %s is; --dtype says otherwise", array.dtype, printable(image.path))
                    return array.dtype.name
    finally:
        reader.close()
    raise DataError(_none_fits(run, first))


def _none_fits(run: ShardRun, first: str) -> str:
    return f"none of the {len(run.listing):,} images of {run.source} fits --channels {run.options.channels}; {first}"


def default_out(source: Path) -> Path:
    """Return `<name of the source>-shards` in the current folder."""
    source = source.resolve()
    return Path(f"{(source.name if source.is_dir() else source.stem) or 'images'}-shards")


def free_bytes(out: Path) -> int | None:
    """Return the free space on the disk of OUT, None for an object store."""
    if is_remote(out):
        return None
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _record_of_tiles(listing: SourceListing, options: ShardOptions) -> dict[str, Any]:
    """Return what the bytes of the shards depend on besides, if images are cut."""
    sides = xxhash.xxh3_128(b"".join(split.sides.tobytes() for split in tiled_splits(listing)))
    return {
        "images": len(listing),
        "tiled_images": sum(int((split.sides[:, 0] > 0).sum()) for split in tiled_splits(listing)),
        "images_set_aside": sum(int((split.sides[:, 0] == 0).sum()) for split in tiled_splits(listing)),
        "sides": sides.hexdigest(),
        "tile": options.tile,
        "overlap": options.overlap,
        "empty_below": options.empty_below,
        "tile_format": options.tile_format if options.channels is None else None,
        "quality": options.quality if options.tile_format == "jpeg" else None,
    }


def _record(listing: SourceListing, options: ShardOptions) -> dict[str, Any]:
    """Return everything that the bytes of the shards depend on, except for the contents of the files."""
    digest = xxhash.xxh3_128(repr(listing.class_names).encode())
    for split in listing.splits:
        digest.update(f"\n{split.name}\n{len(split)}\n".encode())
        for path in split.paths:
            digest.update(os.fsencode(path) + b"\0")
        digest.update(split.sizes.tobytes())
        digest.update(split.labels.tobytes() if split.labels is not None else b"unlabelled")
        if split.masks is not None:
            digest.update(b"masks\n" + b"\0".join(map(os.fsencode, split.masks.paths)))
            digest.update(split.masks.sizes.tobytes())
    coding = listing.mask_coding
    pixels: dict[str, Any] = {}
    if options.channels is not None:
        pixels = {"channels": options.channels, "dtype": options.dtype, "uncompressed": options.uncompressed}
    return (
        {
            "layout": _LAYOUT_VERSION,
            "sources": digest.hexdigest(),
            "images": len(listing),
            "seed": options.seed,
            "shard_bytes": options.shard_bytes,
            "resize_px": options.resize_px,
            "quality": options.quality if options.resize_px is not None else None,
            "val_fraction": options.val_fraction,
            "check": options.check,
            "max_pixels": options.max_pixels,
            "dedupe": options.dedupe,
        }
        | ({} if coding is None else {"masks": coding.to_json()})
        | pixels
    )

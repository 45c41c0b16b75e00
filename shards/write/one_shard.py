"""Writing of one shard.

A shard is three files: the tar, its DALI index, and a part file, which holds the shard's rows of manifest and
quarantine until the end of the run. The part file is renamed into place before the tar, so that a tar that is there
always has one. Samples that are not 8-bit RGB have a fourth file, of the counts of their values, which is there before
the part file.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import ComaError
from coma.shards import tar
from coma.shards.files import replacing, write_atomically
from coma.shards.images.masks import MASK_EXTENSION, PreparedMask, prepare_mask
from coma.shards.images.pixel_counts import PixelCounts
from coma.shards.images.prepare import EXTENSIONS, BadImageError, PixelOptions, Prepared
from coma.shards.manifest.columns import MASK_FIELDS, SCHEMA
from coma.shards.manifest.mask_coding import MaskCoding
from coma.shards.sources.listing import SourceImage, printable
from coma.shards.sources.reader import SourceReader
from coma.shards.tiles.options import TileOptions
from coma.shards.tiles.reader import TileReader
from coma.shards.write.layout import ShardLayout
from coma.shards.write.worker import REPORT_EVERY_S, Tally

PART_SCHEMA = pa.schema(
    [field.with_nullable(True) for field in (*SCHEMA, *MASK_FIELDS)]
    + [
        pa.field("mask_last_class", pa.int32()),  # greatest class id in the mask, -1 if it has none
        pa.field("mask_converted", pa.string()),  # why the mask's bytes differ from the source's
        pa.field("converted", pa.string()),  # why the bytes differ from the source's
        pa.field("reason", pa.string()),  # why the image was set aside
        pa.field("passed_over", pa.string()),  # what it is, if it is no image
        pa.field("bytes", pa.int64()),
    ]
)
PART_KEY = b"coma.part"
"""Key of the counts in a part file's metadata."""


@dataclass(frozen=True)
class ShardJob:
    """Everything that a worker needs to write one shard."""

    layout: ShardLayout
    root: Path
    images: tuple[SourceImage, ...]
    """In the shard's order."""
    class_names: tuple[str, ...] | None
    split_folder: Path
    parts_folder: Path
    pixels: PixelOptions
    mask_coding: MaskCoding | None = None
    """Classes of the masks; None: the images have none."""
    tiles: TileOptions = field(default_factory=TileOptions)

    @property
    def name(self) -> str:
        """Name of the shard."""
        return self.layout.name

    def run(self, report: Callable[[Tally], None]) -> None:
        """Write the shard."""
        write_shard(self, report)


def write_shard(job: ShardJob, report: Callable[[Tally], None]) -> None:
    """Write a shard's tar, index and part file, each atomically.

    If all its images are set aside, only the part file is written. Raises ComaError if the disk is full or the
    source folder as a whole has gone.
    """
    tar_path = job.split_folder / f"{job.name}.tar"
    counts_of_values = _empty_counts(job.pixels)
    try:
        with replacing(tar_path) as file:
            rows, index_lines = _write_tar(job, file, counts_of_values, report)
            tar_bytes = file.tell()
            if index_lines:
                index = "\n".join([f"v1.2 {len(index_lines)}", *index_lines, ""])
                write_atomically(tar_path.with_suffix(".idx"), index)
            kept = len(index_lines)
            set_aside = sum("reason" in row for row in rows)
            counts = {"kept": kept, "set_aside": set_aside, "tar_bytes": tar_bytes if kept else 0}
            table = pa.Table.from_pylist(rows, PART_SCHEMA.with_metadata({PART_KEY: json.dumps(counts)}))
            if counts_of_values is not None:
                with replacing(counts_file(job.parts_folder, job.name)) as file_of_counts:
                    pq.write_table(counts_of_values.to_table(), file_of_counts, compression="zstd")
            with replacing(job.parts_folder / f"{job.name}.parquet") as part:
                pq.write_table(table, part)
            if not index_lines:
                raise _NoImagesError
    except _NoImagesError:
        pass
    except OSError as error:
        raise ComaError(
            f"cannot write {tar_path}: {error.strerror or error}; finished shards are kept, and the same command "
            "resumes from them"
        ) from error


class _NoImagesError(Exception):
    """Leaves the `replacing` block without a tar."""


def counts_file(parts_folder: Path, name: str) -> Path:
    """Return the file of the counts of a shard's values."""
    return parts_folder / f"{name}.values.parquet"


def _empty_counts(pixels: PixelOptions) -> PixelCounts | None:
    if pixels.channels is None:
        return None
    assert pixels.dtype is not None, "the type is resolved before shards are written"
    return PixelCounts(pixels.channels, pixels.dtype)


def _write_tar(
    job: ShardJob, file: BinaryIO, counts: PixelCounts | None, report: Callable[[Tally], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the members of a tar; return the rows of the part file and the lines of the index."""
    rows: list[dict[str, Any]] = []
    index_lines: list[str] = []
    tally, reported_s = Tally(), time.monotonic()
    reader, tile_reader = SourceReader(job.root), TileReader(job.root, job.pixels, job.tiles)
    try:
        for i, image in enumerate(job.images):
            try:
                if image.tile is None:
                    prepared = reader.prepare(image, job.pixels)
                else:
                    prepared = tile_reader.prepare(image)
                mask = _read_mask(job, reader, image, prepared)
            except BadImageError as error:
                rows += _set_aside(image, str(error))
                tally += Tally(set_aside=1)
            else:
                key = f"{job.layout.start + i:09d}{'' if image.tile is None else image.tile.key}"
                rows.append(_add_sample(file, key, image, prepared, mask, job, index_lines))
                if counts is not None and prepared.array is not None:
                    counts.add(prepared.array)
            tally += Tally(1, _bytes_of(image))
            if time.monotonic() - reported_s > REPORT_EVERY_S:
                report(tally)
                tally, reported_s = Tally(), time.monotonic()
    finally:
        reader.close()
        tile_reader.close()
    file.write(tar.ending(file.tell()))
    report(tally)
    return rows, index_lines


def _bytes_of(image: SourceImage) -> int:
    return image.bytes + (0 if image.mask is None else max(0, image.mask.size))


def _set_aside(image: SourceImage, reason: str) -> Iterator[dict[str, Any]]:
    """Yield the row of an image that is set aside, and that of its mask, which is then of no use."""
    yield {"source": printable(image.path), "reason": reason, "bytes": image.bytes}
    if image.mask is not None:
        yield {
            "source": printable(image.mask.path),
            "passed_over": "mask of an image that was set aside",
            "bytes": max(0, image.mask.size),
        }


def _read_mask(job: ShardJob, reader: SourceReader, image: SourceImage, prepared: Prepared) -> PreparedMask | None:
    if job.mask_coding is None:
        return None
    if image.mask is None:  # the listing refuses such an image
        raise BadImageError("mask missing")
    path = printable(image.mask.path)
    try:
        data = reader.read_or_set_aside(image.mask)
    except BadImageError as error:
        raise BadImageError(f"mask damaged: {path}: {error}") from None
    return prepare_mask(data, path, prepared, job.mask_coding, job.pixels.max_pixels)


def _add_sample(
    file: BinaryIO,
    key: str,
    image: SourceImage,
    prepared: Prepared,
    mask: PreparedMask | None,
    job: ShardJob,
    index_lines: list[str],
) -> dict[str, Any]:
    """Append a sample's members to the tar and its line to the index; return its manifest row."""
    xxh3_64 = xxhash.xxh3_64_intdigest(prepared.data)
    label, facts = image.label, prepared.facts
    about = {
        "source": printable(image.path),
        "width": facts.width,
        "height": facts.height,
        "label": label,
        "class_name": job.class_names[label] if label is not None and job.class_names is not None else None,
        "xxh3_64": f"{xxh3_64:016x}",
    }
    if prepared.converted is not None:
        about["converted"] = prepared.converted
    of_mask: dict[str, Any] = {}
    if mask is not None and image.mask is not None:
        of_mask = {
            "mask_size": len(mask.data),
            "mask_xxh3_64": xxhash.xxh3_64_intdigest(mask.data),
            "mask_source": printable(image.mask.path),
            "mask_last_class": mask.last_class,
            "mask_converted": mask.converted,
        }
        about |= {"mask_source": of_mask["mask_source"], "mask_xxh3_64": f"{of_mask['mask_xxh3_64']:016x}"}
        about |= {} if mask.converted is None else {"mask_converted": mask.converted}
    extension = EXTENSIONS[facts.format]
    members = {extension: prepared.data, "json": json.dumps(about, ensure_ascii=False).encode()}
    if label is not None:
        members["cls"] = str(label).encode()
    if mask is not None:
        members[MASK_EXTENSION] = mask.data
    offset = 0
    line = []
    at = file.tell()
    for suffix in sorted(members):
        name, data = f"{key}.{suffix}", members[suffix]
        at += file.write(tar.header(name.encode(), len(data)))
        line.append(f"{suffix} {at} {len(data)} {name}")
        if suffix == extension:
            offset = at
        elif suffix == MASK_EXTENSION:
            of_mask["mask_offset"] = at
        at += file.write(data)
        at += file.write(tar.padding(len(data)))
    index_lines.append(" ".join(line))
    return {
        "key": key,
        "shard": f"{job.name}.tar",
        "offset": offset,
        "size": len(prepared.data),
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "label": label,
        "xxh3_64": xxh3_64,
        "source": about["source"],
        "converted": prepared.converted,
        **of_mask,
    }

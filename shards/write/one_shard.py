"""Writing of one shard.

A shard is three files: the tar, its DALI index, and a part file, which holds the shard's rows of manifest and
quarantine until the end of the run. The part file is renamed into place before the tar, so that a tar that is there
always has one.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import ComaError
from coma.shards import tar
from coma.shards.files import replacing, write_atomically
from coma.shards.images.prepare import EXTENSIONS, BadImageError, PixelOptions, Prepared
from coma.shards.manifest.columns import SCHEMA
from coma.shards.sources.listing import SourceImage, printable
from coma.shards.sources.reader import SourceReader
from coma.shards.write.layout import ShardLayout
from coma.shards.write.worker import REPORT_EVERY_S, Tally

PART_SCHEMA = pa.schema(
    [field.with_nullable(True) for field in SCHEMA]
    + [
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
    try:
        with replacing(tar_path) as file:
            rows, index_lines = _write_tar(job, file, report)
            tar_bytes = file.tell()
            if index_lines:
                index = "\n".join([f"v1.2 {len(index_lines)}", *index_lines, ""])
                write_atomically(tar_path.with_suffix(".idx"), index)
            kept = len(index_lines)
            counts = {"kept": kept, "set_aside": len(rows) - kept, "tar_bytes": tar_bytes if kept else 0}
            table = pa.Table.from_pylist(rows, PART_SCHEMA.with_metadata({PART_KEY: json.dumps(counts)}))
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


def _write_tar(
    job: ShardJob, file: BinaryIO, report: Callable[[Tally], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the members of a tar; return the rows of the part file and the lines of the index."""
    rows: list[dict[str, Any]] = []
    index_lines: list[str] = []
    tally, reported_s = Tally(), time.monotonic()
    reader = SourceReader(job.root)
    try:
        for i, image in enumerate(job.images):
            try:
                prepared = reader.prepare(image, job.pixels)
            except BadImageError as error:
                size = max(0, image.size)
                rows.append({"source": printable(image.path), "reason": str(error), "bytes": size})
                tally += Tally(set_aside=1)
            else:
                key = f"{job.layout.start + i:09d}"
                rows.append(_add_sample(file, key, image, prepared, job, index_lines))
            tally += Tally(1, max(0, image.size))
            if time.monotonic() - reported_s > REPORT_EVERY_S:
                report(tally)
                tally, reported_s = Tally(), time.monotonic()
    finally:
        reader.close()
    file.write(tar.ending(file.tell()))
    report(tally)
    return rows, index_lines


def _add_sample(
    file: BinaryIO, key: str, image: SourceImage, prepared: Prepared, job: ShardJob, index_lines: list[str]
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
    extension = EXTENSIONS[facts.format]
    members = {extension: prepared.data, "json": json.dumps(about, ensure_ascii=False).encode()}
    if label is not None:
        members["cls"] = str(label).encode()
    offset = 0
    line = []
    at = file.tell()
    for suffix in sorted(members):
        name, data = f"{key}.{suffix}", members[suffix]
        at += file.write(tar.header(name.encode(), len(data)))
        line.append(f"{suffix} {at} {len(data)} {name}")
        if suffix == extension:
            offset = at
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
    }

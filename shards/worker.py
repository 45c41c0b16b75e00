"""Write one shard; `serve` does so in a worker process until told to stop.

A shard is three files: the tar, its DALI index, and a part, which holds the shard's rows of manifest and
quarantine until the end. The part takes its name before the tar does: all is known of a tar in place.
"""

import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import ComaError
from coma.shards.files import replacing, write_atomically
from coma.shards.images import BadImageError, ImageFacts, check_and_resize, check_image
from coma.shards.manifest import SCHEMA
from coma.shards.plan import ShardPlan
from coma.shards.sources import printable, read_source

PART_SCHEMA = pa.schema(
    [field.with_nullable(True) for field in SCHEMA]
    + [pa.field("reason", pa.string()), pa.field("bytes", pa.int64())]  # of an image that was set aside
)
PART_KEY = b"coma.part"
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write one shard."""

    plan: ShardPlan
    root: Path
    paths: tuple[str, ...]
    """One an image, relative to `root`, in the shard's order."""
    sizes: tuple[int, ...]
    """Bytes, as they were when the source was listed."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    split_folder: Path
    parts_folder: Path
    resize_px: int | None
    quality: int


@dataclass(frozen=True)
class Tally:
    """How far a shard is; as progress, since the last report."""

    images: int = 0
    source_bytes: int = 0
    set_aside: int = 0


def write_shard(job: ShardJob, report: Callable[[Tally], None]) -> None:
    """Write a shard, its index and its part; nothing stands under their names before it is whole.

    If no image of it is any good, there is a part and no tar. Raises ComaError when the disk is full, or the
    source folder as a whole has gone.
    """
    tar_path = job.split_folder / f"{job.plan.name}.tar"
    try:
        with replacing(tar_path) as file:
            rows, index_lines = _write_tar(job, file, report)
            tar_bytes = file.tell()
            if index_lines:
                write_atomically(
                    tar_path.with_suffix(".idx"), "\n".join([f"v1.2 {len(index_lines)}", *index_lines, ""])
                )
            kept = len(index_lines)
            counts = {"kept": kept, "set_aside": len(rows) - kept, "tar_bytes": tar_bytes if kept else 0}
            table = pa.Table.from_pylist(rows, PART_SCHEMA.with_metadata({PART_KEY: json.dumps(counts)}))
            with replacing(job.parts_folder / f"{job.plan.name}.parquet") as part:
                pq.write_table(table, part)
            if not index_lines:
                raise _NothingToKeep
    except _NothingToKeep:
        pass
    except OSError as error:
        raise ComaError(
            f"cannot write {tar_path}: {error.strerror or error}; what is done is kept, and the same command "
            "goes on from there"
        ) from error


class _NothingToKeep(Exception):
    """Leaves `replacing` without a file."""


def _write_tar(
    job: ShardJob, file: BinaryIO, report: Callable[[Tally], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    index_lines: list[str] = []
    images = source_bytes = set_aside = 0
    reported_s = time.monotonic()
    # The layout of webdataset.TarWriter, byte for byte; that one would import torch into each worker.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (path, listed_bytes) in enumerate(zip(job.paths, job.sizes, strict=True)):
            source = printable(path)
            try:
                image, facts = _load(job, path, listed_bytes)
            except BadImageError as error:
                rows.append({"source": source, "reason": str(error), "bytes": max(0, listed_bytes)})
                set_aside += 1
            else:
                label = job.labels[i] if job.labels is not None else None
                row = _add_sample(
                    tar, f"{job.plan.start + i:09d}", source, image, facts, label, job, index_lines
                )
                rows.append(row)
            images += 1
            source_bytes += max(0, listed_bytes)
            if time.monotonic() - reported_s > _REPORT_EVERY_S:
                report(Tally(images, source_bytes, set_aside))
                images = source_bytes = set_aside = 0
                reported_s = time.monotonic()
    report(Tally(images, source_bytes, set_aside))
    return rows, index_lines


def _load(job: ShardJob, path: str, listed_bytes: int) -> tuple[bytes, ImageFacts]:
    try:
        data = read_source(job.root, path)
    except OSError as error:
        if not job.root.is_dir():
            raise ComaError(f"{job.root} has gone; once it is back, the same command goes on") from error
        if listed_bytes >= 0 and isinstance(error, FileNotFoundError):
            raise BadImageError("vanished: it was there when the folder was listed") from None
        raise BadImageError(f"unreadable: {error.strerror or error}") from None
    if len(data) != listed_bytes:
        raise BadImageError(
            f"changed: {listed_bytes} bytes when the folder was listed, {len(data)} when read"
        )
    if job.resize_px is None:
        return data, check_image(data)
    return check_and_resize(data, job.resize_px, job.quality)


def _add_sample(
    tar: tarfile.TarFile,
    key: str,
    source: str,
    image: bytes,
    facts: ImageFacts,
    label: int | None,
    job: ShardJob,
    index_lines: list[str],
) -> dict[str, Any]:
    """Append a sample's members to the tar and its line to the index; return its manifest row."""
    xxh3_64 = xxhash.xxh3_64_intdigest(image)
    class_name = job.class_names[label] if label is not None and job.class_names is not None else None
    about = {
        "source": source,
        "width": facts.width,
        "height": facts.height,
        "label": label,
        "class_name": class_name,
        "xxh3_64": f"{xxh3_64:016x}",
    }
    extension = _extension(source) if job.resize_px is None else "jpg"
    members = {extension: image, "json": json.dumps(about, ensure_ascii=False).encode()}
    if label is not None:
        members["cls"] = str(label).encode()
    offset = 0
    line = []
    for suffix in sorted(members):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(members[suffix])
        member.mode = 0o444
        tar.addfile(member, io.BytesIO(members[suffix]))
        blocks = -(-member.size // tarfile.BLOCKSIZE)
        start = tar.offset - blocks * tarfile.BLOCKSIZE
        line.append(f"{suffix} {start} {member.size} {member.name}")
        if suffix == extension:
            offset = start
    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member, for a table of contents that nobody asks for
    index_lines.append(" ".join(line))
    return {
        "key": key,
        "shard": f"{job.plan.name}.tar",
        "offset": offset,
        "size": len(image),
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "label": label,
        "xxh3_64": xxh3_64,
        "source": source,
    }


def _extension(source: str) -> str:
    extension = source.rpartition(".")[2].lower()
    return "jpg" if extension in ("jpeg", "jpe", "jfif") else extension


def serve(connection: "Connection[Any, Any]") -> None:
    """Write the shards that arrive on `connection` until None does, or the other end has gone.

    Answers with Tally (progress), None (that shard is done) or the exception that ended it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        while (job := connection.recv()) is not None:
            try:
                write_shard(job, connection.send)
            except Exception as error:
                connection.send(error)
            else:
                connection.send(None)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent was killed


def serve_at(descriptor: int) -> None:
    """Serve on an inherited file descriptor."""
    serve(Connection(descriptor))

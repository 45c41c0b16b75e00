"""Index one tar of WebDataset samples that somebody else wrote: its rows of manifest and quarantine, DALI's index."""

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import ComaError, DataError
from coma.shards.files import replacing, write_atomically
from coma.shards.images.prepare import BadImageError, check_image
from coma.shards.sources.model import SourceImage, printable
from coma.shards.sources.read import RefusedError, SourceReader
from coma.shards.sources.webdataset import ClassNames, WdsSample, samples
from coma.shards.tar import PackedTarError, TarError, ends
from coma.shards.write.jobs import Tally
from coma.shards.write.layout import ShardPlan
from coma.shards.write.state import parts_folder
from coma.shards.write.worker import PART_KEY, PART_SCHEMA

_REPORT_EVERY_S = 0.1
_ROWS = 8192  # held as Python objects at a time


@dataclass(frozen=True)
class IndexedTar:
    """A tar to index."""

    path: str
    """Below the source's root."""
    size: int
    mtime_ns: int
    plan: ShardPlan
    """Its split, and its number in it, by which its part is called."""

    @property
    def shard(self) -> str:
        """What its link is called."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Found:
    """What a part says of its tar: how it was when it was indexed, and what was in it."""

    size: int
    mtime_ns: int
    decode: bool
    ended: bool
    """Whether it ends as tars do."""
    kept: int
    set_aside: int
    without_label: int
    """Of those that were kept."""
    without_image: int
    image_bytes: int
    """Of all images, the bad ones too."""
    names: dict[int, str | None]
    """{label: name} as `ClassNames` has it; in the part, JSON makes text of the labels."""


@dataclass(frozen=True)
class IndexJob:
    """All that a worker needs to index one tar."""

    root: Path
    tar: IndexedTar
    out: Path
    decode: bool

    @property
    def name(self) -> str:
        """The tar's."""
        return self.tar.path

    @property
    def part(self) -> Path:
        """Where what is found waits for the end of the run."""
        return parts_folder(self.out) / f"{self.tar.plan.name}.parquet"

    @property
    def index(self) -> Path:
        """DALI's, beside the link to the tar."""
        return (self.out / self.tar.plan.split / self.tar.shard).with_suffix(".idx")

    def run(self, report: Callable[[Tally], None]) -> tuple[str, bool] | None:
        """Write the tar's index and part; return what is wrong with it if it is no good, and if it is damaged."""
        path = self.root / self.tar.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if (status.st_size, status.st_mtime_ns) != (self.tar.size, self.tar.mtime_ns):
                    raise DataError(f"{path} was changed while its folder was indexed; run the command again")
                with replacing(self.part) as file:
                    self._write(descriptor, file, report)
            finally:
                os.close(descriptor)
        except TarError as error:
            return f"{printable(str(path))} ({error})", not isinstance(error, PackedTarError)
        except OSError as error:
            raise ComaError(
                f"cannot index {path}: {error.strerror or error}; what is done is kept, and the same command goes on"
            ) from error
        return None

    def _write(self, descriptor: int, file: Any, report: Callable[[Tally], None]) -> None:
        rows: list[dict[str, Any]] = []
        index = _DaliIndex()
        names = ClassNames()
        numbers = ("kept", "set_aside", "without_label", "without_image", "image_bytes")
        counts: dict[str, Any] = dict.fromkeys(numbers, 0)
        told = Tally()
        told_s = time.monotonic()
        reader = SourceReader(self.root)

        def tell() -> None:
            nonlocal told, told_s
            aside, size = counts["set_aside"], counts["image_bytes"]
            images = counts["kept"] + aside
            report(Tally(images - told.images, size - told.source_bytes, aside - told.set_aside))
            told, told_s = Tally(images, size, aside), time.monotonic()

        with closing(reader), pq.ParquetWriter(file, PART_SCHEMA, compression="zstd") as writer:
            for sample in samples(descriptor):
                if sample.image is None:
                    counts["without_image"] += 1
                    continue
                rows.append(self._row(reader, sample))
                counts["image_bytes"] += sample.image.size
                if "reason" in rows[-1]:
                    counts["set_aside"] += 1
                else:
                    counts["kept"] += 1
                    counts["without_label"] += sample.label is None
                    names.add(sample.label, sample.class_name)
                    index.add(sample)
                if len(rows) == _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, PART_SCHEMA))
                    rows = []
                if time.monotonic() - told_s > _REPORT_EVERY_S:
                    tell()
            writer.write_table(pa.Table.from_pylist(rows, PART_SCHEMA))
            if counts["kept"]:
                write_atomically(self.index, index.text())
            else:
                self.index.unlink(missing_ok=True)
            how = (self.tar.size, self.tar.mtime_ns, self.decode, ends(descriptor))
            found = Found(*how, **counts, names=names.names)
            writer.add_key_value_metadata({PART_KEY: json.dumps(asdict(found))})
        tell()

    def _row(self, reader: SourceReader, sample: WdsSample) -> dict[str, Any]:
        """The sample's row in the manifest, or in the quarantine."""
        image = sample.image
        assert image is not None
        source = f"{self.tar.path}/{image.name}"
        try:
            data = reader.read(
                SourceImage(
                    path=source,
                    file=self.tar.path,
                    offset=image.offset,
                    size=image.size,
                    mtime_ns=self.tar.mtime_ns,
                    label=sample.label,
                    refused=sample.refused,
                )
            )
            facts = check_image(data, decode=self.decode)
        except (BadImageError, RefusedError) as error:
            return {"source": printable(source), "reason": str(error), "bytes": image.size}
        return {
            "key": printable(sample.key),
            "shard": self.tar.shard,
            "offset": image.offset,
            "size": image.size,
            "width": facts.width,
            "height": facts.height,
            "format": facts.format,
            "label": sample.label,
            "xxh3_64": xxhash.xxh3_64_intdigest(data),
            "source": printable(source),
        }


class _DaliIndex:
    """DALI's index of the samples of a tar. It has no escapes: a blank in a name takes version 1.1, without names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.lines_with_names: list[str] | None = []

    def add(self, sample: WdsSample) -> None:
        """Add a sample; what DALI could not ask for, an extension with a blank in it, is left out."""
        members = [(extension, member) for extension, member in sample.members if len(extension.split()) == 1]
        entries = [f"{extension} {member.offset} {member.size}" for extension, member in members]
        self.lines.append(" ".join(entries))
        if any(len(member.name.split()) != 1 for _, member in members):
            self.lines_with_names = None
        if self.lines_with_names is not None:
            named = [f"{entry} {member.name}" for entry, (_, member) in zip(entries, members, strict=True)]
            self.lines_with_names.append(" ".join(named))

    def text(self) -> bytes:
        """The whole file."""
        version, lines = "v1.2", self.lines_with_names
        if lines is None:
            version, lines = "v1.1", self.lines
        return os.fsencode("\n".join([f"{version} {len(lines)}", *lines, ""]))


def found_in(job: IndexJob) -> Found | None:
    """Return what is known of a tar, None if it is not indexed as it is now."""
    try:
        said = json.loads(pq.read_metadata(job.part).metadata[PART_KEY])
        found = Found(**said | {"names": {int(label): name for label, name in said["names"].items()}})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    asked = (job.tar.size, job.tar.mtime_ns, job.decode)
    is_whole = not found.kept or job.index.is_file()
    return found if (found.size, found.mtime_ns, found.decode) == asked and is_whole else None


def drop_labels(job: IndexJob) -> None:
    """Take the labels out of a part whose split has not one for every image."""
    with pq.ParquetFile(job.part) as file:
        table, metadata = file.read(), file.metadata.metadata
    column = table.schema.get_field_index("label")
    table = table.set_column(column, PART_SCHEMA.field("label"), pa.nulls(len(table), pa.int32()))
    with replacing(job.part) as part:
        pq.write_table(table.replace_schema_metadata({PART_KEY: metadata[PART_KEY]}), part)

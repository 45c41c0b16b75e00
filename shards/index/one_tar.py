"""Indexing of one tar that somebody else wrote: its part file (rows of manifest and quarantine) and DALI's index."""

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
from coma.shards.files import open_for_arrow, replacing, write_atomically
from coma.shards.images.prepare import BadImageError, check_image
from coma.shards.sources.listing import SourceImage, clamped, printable
from coma.shards.sources.reader import SourceReader
from coma.shards.sources.webdataset import ClassNames, WdsSample, samples, source_of, split_of_sample
from coma.shards.tar import PackedTarError, TarError, has_ending
from coma.shards.write.layout import ShardLayout
from coma.shards.write.one_shard import PART_KEY, PART_SCHEMA
from coma.shards.write.resume import parts_folder
from coma.shards.write.worker import REPORT_EVERY_S, Tally

_ROWS = 8192  # held as Python objects at a time


@dataclass(frozen=True)
class ListedTar:
    """A tar to index."""

    path: str
    """Relative to the source's root."""
    size: int
    mtime_ns: int
    layout: ShardLayout
    """Its split and its number in it, which name its part file."""

    @property
    def shard(self) -> str:
        """Name of its link in the data set."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class TarCounts:
    """What a part file says of its tar: its state when it was indexed, and counts of its contents."""

    size: int
    mtime_ns: int
    decode: bool
    ended: bool
    """Whether it ends in zero blocks, as tars do."""
    kept: int
    set_aside: int
    without_label: int
    """Kept images without a label."""
    image_bytes: int
    """Bytes of all images, including those that were set aside."""
    names: dict[int, str | None]
    """`ClassNames.names`; in the part file, JSON turns the labels into text."""
    words: tuple[str, ...] = ()
    """The labels that are words. In the part file's rows word i is the label -1 - i."""
    held_out: str | None = None
    """Key of a sample in a folder that is called val or test, in a tar of split train."""


@dataclass(frozen=True)
class IndexJob:
    """Everything that a worker needs to index one tar."""

    root: Path
    tar: ListedTar
    out: Path
    decode: bool

    @property
    def name(self) -> str:
        """Path of the tar."""
        return self.tar.path

    @property
    def part(self) -> Path:
        """The part file."""
        return parts_folder(self.out) / f"{self.tar.layout.name}.parquet"

    @property
    def index(self) -> Path:
        """DALI's index, beside the link to the tar."""
        return (self.out / self.tar.layout.split / self.tar.shard).with_suffix(".idx")

    def run(self, report: Callable[[Tally], None]) -> tuple[str, bool] | None:
        """Write the tar's index and part file; return why it cannot be read, if so, and whether it is damaged."""
        path = self.root / self.tar.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if (status.st_size, clamped(status.st_mtime_ns)) != (self.tar.size, self.tar.mtime_ns):
                    raise DataError(f"{path} was changed while its folder was indexed; run the command again")
                with replacing(self.part) as file:
                    self._write(descriptor, file, report)
            finally:
                os.close(descriptor)
        except TarError as error:
            return f"{printable(str(path))} ({error})", not isinstance(error, PackedTarError)
        except OSError as error:
            raise ComaError(
                f"cannot index {path}: {error.strerror or error}; what is done is kept, and the same command resumes"
            ) from error
        return None

    def _write(self, descriptor: int, file: Any, report: Callable[[Tally], None]) -> None:
        rows: list[dict[str, Any]] = []
        index = _DaliIndex()
        names = ClassNames()
        words: dict[str, int] = {}
        held_out: str | None = None
        fields = ("kept", "set_aside", "without_label", "image_bytes")
        counts: dict[str, Any] = dict.fromkeys(fields, 0)
        tally, reported_s = Tally(), time.monotonic()
        reader = SourceReader(self.root)
        with closing(reader), pq.ParquetWriter(file, PART_SCHEMA, compression="zstd") as writer:
            for sample in samples(descriptor):
                for member, what in sample.passed_over:
                    source = printable(f"{self.tar.path}/{member.name}")
                    rows.append({"source": source, "passed_over": what, "bytes": member.size})
                if sample.image is None:
                    continue
                label = sample.label
                if isinstance(label, str):
                    label = -1 - words.setdefault(label, len(words))
                if self.tar.layout.split == "train" and split_of_sample("", sample.key) not in (None, "train"):
                    held_out = printable(sample.key)
                rows.append(row := self._row(reader, sample, label))
                counts["image_bytes"] += sample.image.size
                if "reason" in row:
                    counts["set_aside"] += 1
                else:
                    counts["kept"] += 1
                    counts["without_label"] += sample.label is None
                    names.add(sample.label, sample.class_name)
                    index.add(sample)
                if len(rows) >= _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, PART_SCHEMA))
                    rows = []
                tally += Tally(1, sample.image.size, "reason" in row)
                if time.monotonic() - reported_s > REPORT_EVERY_S:
                    report(tally)
                    tally, reported_s = Tally(), time.monotonic()
            writer.write_table(pa.Table.from_pylist(rows, PART_SCHEMA))
            if counts["kept"]:
                write_atomically(self.index, index.text())
            else:
                self.index.unlink(missing_ok=True)
            state = (self.tar.size, self.tar.mtime_ns, self.decode, has_ending(descriptor))
            tar_counts = TarCounts(*state, **counts, names=names.names, words=tuple(words), held_out=held_out)
            writer.add_key_value_metadata({PART_KEY: json.dumps(asdict(tar_counts))})
        report(tally)

    def _row(self, reader: SourceReader, sample: WdsSample, label: int | None) -> dict[str, Any]:
        """Return the sample's row of the part file, for the manifest or the quarantine."""
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
                    label=label,
                    refused=sample.refused,
                )
            )
            facts = check_image(data, decode=self.decode)
        except BadImageError as error:
            return {"source": printable(source), "reason": str(error), "bytes": image.size}
        return {
            "key": printable(sample.key),
            "shard": self.tar.shard,
            "offset": image.offset,
            "size": image.size,
            "width": facts.width,
            "height": facts.height,
            "format": facts.format,
            "label": label,
            "xxh3_64": xxhash.xxh3_64_intdigest(data),
            "source": printable(source_of(self.tar.path, sample)),
        }


class _DaliIndex:
    """DALI's index of a tar. It has no escapes, so a blank in a name requires version 1.1, which has no names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.lines_with_names: list[str] | None = []

    def add(self, sample: WdsSample) -> None:
        """Add a sample; members whose extension holds a blank, which DALI cannot ask for, are left out."""
        members = [(extension, member) for extension, member in sample.members if len(extension.split()) == 1]
        entries = [f"{extension} {member.offset} {member.size}" for extension, member in members]
        self.lines.append(" ".join(entries))
        if any(len(member.name.split()) != 1 for _, member in members):
            self.lines_with_names = None
        if self.lines_with_names is not None:
            named = [f"{entry} {member.name}" for entry, (_, member) in zip(entries, members, strict=True)]
            self.lines_with_names.append(" ".join(named))

    def text(self) -> bytes:
        """Return the contents of the file."""
        version, lines = "v1.2", self.lines_with_names
        if lines is None:
            version, lines = "v1.1", self.lines
        return os.fsencode("\n".join([f"{version} {len(lines)}", *lines, ""]))


def read_counts(job: IndexJob) -> TarCounts | None:
    """Return the counts of an indexed tar; None if it is not indexed, or has changed since."""
    try:
        with open_for_arrow(job.part) as file:
            fields = json.loads(pq.read_metadata(file).metadata[PART_KEY])
        names = {int(label): name for label, name in fields["names"].items()}
        counts = TarCounts(**fields | {"names": names, "words": tuple(fields["words"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    state = (job.tar.size, job.tar.mtime_ns, job.decode)
    is_whole = not counts.kept or job.index.is_file()
    return counts if (counts.size, counts.mtime_ns, counts.decode) == state and is_whole else None


def relabel(job: IndexJob, number_of: dict[str, int] | None) -> None:
    """Number the words among the labels of a part file, or remove all its labels; doing it twice changes nothing."""
    with open_for_arrow(job.part) as source, pq.ParquetFile(source) as file:
        table, metadata = file.read(), file.metadata.metadata
    labels = table["label"].to_pylist()
    if number_of is None:
        labels = [None] * len(labels)
    else:
        counts = read_counts(job)
        words = counts.words if counts is not None else ()
        labels = [number_of[words[-1 - label]] if label is not None and label < 0 else label for label in labels]
    column = table.schema.get_field_index("label")
    table = table.set_column(column, PART_SCHEMA.field("label"), pa.array(labels, pa.int32()))
    with replacing(job.part) as part:
        pq.write_table(table.replace_schema_metadata({PART_KEY: metadata[PART_KEY]}), part)

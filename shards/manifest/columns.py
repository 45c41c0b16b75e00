"""The numbers of a manifest, row group by row group out of its parquet file, each checked on the way.

Legend: N samples, S shards of one split.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import DataError
from coma.shards.files import is_remote, reaching, without_credentials

CLASS_NAMES_KEY = b"coma.class_names"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # file name, in the manifest's own folder
        pa.field("offset", pa.int64(), nullable=False),  # of the image's first byte, in the tar
        pa.field("size", pa.int64(), nullable=False),  # of the image, bytes
        pa.field("width", pa.int32(), nullable=False),  # as displayed, after EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),  # "jpeg", "png", ...: what the bytes are
        pa.field("label", pa.int32(), nullable=True),  # null in every row, or in none
        pa.field("xxh3_64", pa.uint64(), nullable=False),  # of the image's bytes
        pa.field("source", pa.string(), nullable=False),  # path in the source folder
    ]
)
DTYPES: dict[str, np.dtype[Any]] = {
    "shard_id": np.dtype("<i4"),
    "offset": np.dtype("<i8"),
    "size": np.dtype("<i8"),
    "width": np.dtype("<i4"),
    "height": np.dtype("<i4"),
    "xxh3_64": np.dtype("<u8"),
    "label": np.dtype("<i4"),
}
"""What a row becomes: 40 bytes."""
_READ = ("shard", "offset", "size", "width", "height", "label", "xxh3_64")
_BATCH_ROWS = 2**17
_FINGERPRINTED = ("shard_id", "offset", "size", "xxh3_64", "label")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Facts:
    """What is known of a manifest besides its rows."""

    rows: int
    """N."""
    labelled: bool
    shards: tuple[str, ...]
    """[S] file names, in order."""
    shard_lengths: tuple[int, ...]
    """[S] samples in each."""
    least_bytes: tuple[int, ...]
    """[S] where the last image in each ends."""
    class_names: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Columns:
    """A manifest without its strings."""

    facts: Facts
    arrays: Mapping[str, Array]
    """By name, each [N]; without "label" if there are none."""
    fingerprint: str


class Rows(Protocol):
    """Where checked rows go."""

    def put(self, start: int, part: dict[str, Array]) -> None:
        """Take the rows from `start` on, which come in order: arrays of `DTYPES`, of one length."""


class InMemory:
    """Rows as arrays."""

    def __init__(self, rows: int) -> None:
        self.arrays = {name: np.empty(rows, dtype) for name, dtype in DTYPES.items()}

    def put(self, start: int, part: dict[str, Array]) -> None:
        """Copy them."""
        for name, values in part.items():
            self.arrays[name][start : start + len(values)] = values


def read_columns(path: Path, source: Any) -> Columns:
    """Read all of a manifest into memory. `scan` says what is raised."""
    with parquet(path, source) as file:
        rows = InMemory(file.metadata.num_rows)
        facts = scan(path, file, rows)
    arrays = rows.arrays
    if not facts.labelled:
        del arrays["label"]
    return Columns(facts, arrays, fingerprint(facts, lambda name: [arrays[name].data]))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A manifest to be read from.

    It is read, never mapped: a file that is cut short meanwhile is an error then, not the end of the process.
    """
    with reaching(path), path.open("rb") if is_remote(path) else pa.OSFile(str(path), "rb") as file:
        yield file


@contextmanager
def parquet(path: Path, source: Any) -> Iterator[pq.ParquetFile]:
    """An opened manifest as parquet."""
    with pq.ParquetFile(source, read_dictionary=["shard"], pre_buffer=is_remote(path)) as file:
        yield file


def scan(path: Path, file: pq.ParquetFile, rows: Rows) -> Facts:
    """Hand the rows of a manifest on, a part at a time.

    Raises:
        DataError: columns are missing or of another type, rows are out of order, shards are not plain file
            names, labels are missing or outside the classes, or there are numbers that cannot be.
        pa.ArrowException, OSError: the file cannot be read.
    """
    place = without_credentials(str(path))
    _check_types(place, file.schema_arrow)
    metadata = file.schema_arrow.metadata or {}
    class_names = tuple(json.loads(metadata[CLASS_NAMES_KEY])) if CLASS_NAMES_KEY in metadata else None
    shards, due, count, unlabelled = _Shards(place), file.metadata.num_rows, 0, 0
    least_label, last_label = 0, 0
    for batch in _batches(file):
        start, count = count, count + len(batch)
        if count > due:
            break
        for name in _READ:
            if batch.column(name).null_count and not SCHEMA.field(name).nullable:
                raise _other_type(place, name, SCHEMA.field(name).type)
        label = batch.column("label")
        part = {
            name: batch.column(name).to_numpy() for name in ("offset", "size", "width", "height", "xxh3_64")
        }
        part["label"] = label.fill_null(0).to_numpy()
        ends = part["offset"] + part["size"]  # below 0 if they are past what int64 holds
        if (
            min(part["offset"].min(), ends.min()) < 0
            or min(part[name].min() for name in ("size", "width", "height")) < 1
        ):
            raise _damaged(place)
        part["shard_id"] = shards.ids(batch.column("shard"), ends)
        unlabelled += label.null_count
        least_label = min(least_label, int(part["label"].min()))
        last_label = max(last_label, int(part["label"].max()))
        rows.put(start, part)
    if count != due:
        raise DataError(f"{place} is damaged: it does not have the {due} rows that it says; shard again")
    if count == 0:
        raise DataError(f"{place} lists no samples")
    if unlabelled not in (0, count):
        raise DataError(f"{place}: {unlabelled} of {count} labels are missing")
    if not unlabelled and (least_label < 0 or (class_names is not None and last_label >= len(class_names))):
        raise DataError(f"{place}: a label lies outside its {len(class_names or ())} classes; shard again")
    return Facts(
        rows=count,
        labelled=not unlabelled,
        shards=tuple(shards.numbers),
        shard_lengths=tuple(shards.lengths),
        least_bytes=tuple(shards.least_bytes),
        class_names=class_names,
    )


def fingerprint(facts: Facts, column: Any) -> str:
    """16 hex digits that change whenever the data would.

    Args:
        facts: of the manifest.
        column: gives a column's bytes, in parts, by its name.
    """
    digest = xxhash.xxh3_64(json.dumps(facts.shards).encode())
    for name in _FINGERPRINTED:
        parts: Iterable[Any] = [b"none"] if name == "label" and not facts.labelled else column(name)
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


class _Shards:
    """The shards that have come up so far, numbered in the order of their first rows."""

    def __init__(self, place: str) -> None:
        self.numbers: dict[str, int] = {}
        self.lengths: list[int] = []
        self.least_bytes: list[int] = []
        self._place = place

    def ids(self, names: pa.DictionaryArray, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The numbers of the next rows' shards, whose images end at `ends`."""
        codes = names.indices.to_numpy()
        runs = np.flatnonzero(np.diff(codes, prepend=codes[0] - 1))  # where another shard begins
        lengths = np.diff(runs, append=len(codes))
        found = [self._number(name) for name in names.dictionary.take(pa.array(codes[runs])).to_pylist()]
        for number, length, end in zip(
            found, lengths.tolist(), np.maximum.reduceat(ends, runs).tolist(), strict=True
        ):
            self.lengths[number] += length
            self.least_bytes[number] = max(self.least_bytes[number], end)
        return np.repeat(np.array(found, np.int32), lengths)

    def _number(self, name: str | None) -> int:
        if name not in self.numbers:
            if not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
                raise DataError(
                    f"{self._place} names the shard {name!r}, which is not a plain file name beside it"
                )
            self.numbers[name] = len(self.numbers)
            self.lengths.append(0)
            self.least_bytes.append(0)
        elif self.numbers[name] != len(self.numbers) - 1:
            raise _damaged(self._place)
        return self.numbers[name]


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    for group in range(file.num_row_groups):  # one by one: together they would be fetched together
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(_READ)):
            if len(batch):
                yield batch


def _check_types(place: str, schema: pa.Schema) -> None:
    for name in _READ:
        number, want = schema.get_field_index(name), SCHEMA.field(name).type
        if number < 0:
            raise DataError(f"{place} is not a manifest: it has no column {name}")
        kind = schema.field(number).type
        kind = kind.value_type if name == "shard" and pa.types.is_dictionary(kind) else kind
        if kind != want:
            raise _other_type(place, name, kind)


def _other_type(place: str, name: str, kind: pa.DataType) -> DataError:
    want = SCHEMA.field(name)
    return DataError(f"{place}: column {name} is {kind}, not {want.type} without nulls; shard again")


def _damaged(place: str) -> DataError:
    return DataError(
        f"{place} is damaged: its rows are out of order or hold sizes that cannot be; shard again"
    )

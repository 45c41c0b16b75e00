"""Columns of a manifest: read from its parquet file one row group at a time, and checked on the way.

Legend: N samples, S shards of one split.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import DataError
from coma.shards.files import is_remote, without_credentials
from coma.shards.manifest.mask_coding import MASKS_KEY, MaskCoding, coding_from_json
from coma.shards.manifest.pixel_coding import PIXELS_KEY, PixelCoding, pixels_from_json

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
MASK_FIELDS = (
    pa.field("mask_offset", pa.int64(), nullable=False),  # of the mask's first byte, in the image's tar
    pa.field("mask_size", pa.int64(), nullable=False),
    pa.field("mask_xxh3_64", pa.uint64(), nullable=False),
    pa.field("mask_source", pa.string(), nullable=False),
)
"""More columns of a split that has masks, whose metadata has their coding."""
DTYPES: dict[str, np.dtype[Any]] = {
    "shard_id": np.dtype("<i4"),
    "offset": np.dtype("<i8"),
    "size": np.dtype("<i8"),
    "width": np.dtype("<i4"),
    "height": np.dtype("<i4"),
    "xxh3_64": np.dtype("<u8"),
    "label": np.dtype("<i4"),
}
"""Column → type of its array; a row takes 40 bytes."""
MASK_DTYPES: dict[str, np.dtype[Any]] = {
    "mask_offset": np.dtype("<i8"),
    "mask_size": np.dtype("<i8"),
    "mask_xxh3_64": np.dtype("<u8"),
}
"""The same for a split with masks, in which a row takes 64 bytes."""
_COLUMNS_READ = ("shard", "offset", "size", "width", "height", "label", "xxh3_64")
_BATCH_ROWS = 2**17
_FINGERPRINTED = ("shard_id", "offset", "size", "xxh3_64", "label")

Array = npt.NDArray[Any]
PutRows = Callable[[int, dict[str, Array]], None]
"""Takes checked rows: the number of the first, and arrays of `DTYPES` of one length. Called in order."""


@dataclass(frozen=True)
class ManifestSummary:
    """What is known of a manifest besides its rows."""

    rows: int
    """Number of samples, N in what follows."""
    labelled: bool
    shards: tuple[str, ...]
    """[S] file names, in order."""
    shard_lengths: tuple[int, ...]
    """[S] samples in each."""
    least_bytes: tuple[int, ...]
    """[S] the byte at which the last image in each ends."""
    class_names: tuple[str, ...] | None
    masks: MaskCoding | None = None
    """Coding of the masks; None: there are none."""
    pixels: PixelCoding | None = None
    """Channels, type and statistics of the pixels; None: they are of 8-bit RGB images."""

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Column → type, of the columns that the manifest has."""
        return {
            name: dtype
            for name, dtype in columns_of(self.masks is not None).items()
            if name != "label" or self.labelled
        }


def columns_of(has_masks: bool) -> dict[str, np.dtype[Any]]:
    """Return the types of the columns of a manifest with or without masks, of which "label" may be missing."""
    return DTYPES | MASK_DTYPES if has_masks else DTYPES


@dataclass(frozen=True, eq=False)
class Columns:
    """A manifest without its strings."""

    summary: ManifestSummary
    arrays: Mapping[str, Array]
    """Column → array [N]; an unlabelled manifest has no "label"."""
    fingerprint: str


def read_columns(path: Path, source: Any) -> Columns:
    """Read all columns of a manifest into memory. Raises what `scan` raises."""
    with open_parquet(path, source) as file:
        dtypes = columns_of(has_masks(file))
        arrays = {name: np.empty(file.metadata.num_rows, dtype) for name, dtype in dtypes.items()}

        def put(start: int, rows: dict[str, Array]) -> None:
            for name, values in rows.items():
                arrays[name][start : start + len(values)] = values

        summary = scan(path, file, put)
    if not summary.labelled:
        del arrays["label"]
    return Columns(summary, arrays, fingerprint(summary, lambda name: [arrays[name].data]))


@contextmanager
def open_parquet(path: Path, source: Any) -> Iterator[pq.ParquetFile]:
    """Read an open manifest as parquet."""
    with pq.ParquetFile(source, read_dictionary=["shard"], pre_buffer=is_remote(path)) as file:
        yield file


def has_masks(file: pq.ParquetFile) -> bool:
    """Whether a manifest has masks."""
    return MASKS_KEY in (file.schema_arrow.metadata or {})


def scan(path: Path, file: pq.ParquetFile, put_rows: PutRows) -> ManifestSummary:
    """Read and check the rows of a manifest batch by batch, and pass each batch to `put_rows`.

    Raises:
        DataError: columns are missing or of another type, rows are out of order, shards are not plain file
            names, labels are missing or outside the classes, or a size or offset is impossible.
        pa.ArrowException, OSError: the file cannot be read.
    """
    place = without_credentials(str(path))
    columns = [SCHEMA.field(name) for name in _COLUMNS_READ]
    columns += [field for field in MASK_FIELDS if field.name in MASK_DTYPES] if has_masks(file) else []
    _check_types(place, file.schema_arrow, columns)
    metadata = file.schema_arrow.metadata or {}
    masks = _coding(place, metadata)
    class_names = tuple(json.loads(metadata[CLASS_NAMES_KEY])) if CLASS_NAMES_KEY in metadata else None
    shards, expected, count, unlabelled = _Shards(place), file.metadata.num_rows, 0, 0
    least_label, last_label = 0, 0
    for batch in _batches(file, [field.name for field in columns]):
        start, count = count, count + len(batch)
        if count > expected:
            break
        for field in columns:
            if batch.column(field.name).null_count and not field.nullable:
                raise _other_type(place, field, field.type)
        label = batch.column("label")
        numbers = ("offset", "size", "width", "height", "xxh3_64")
        rows = {name: batch.column(name).to_numpy() for name in numbers}
        rows["label"] = label.fill_null(0).to_numpy()
        ends = rows["offset"] + rows["size"]  # negative if int64 overflows
        smallest = min(rows[name].min() for name in ("size", "width", "height"))
        if min(rows["offset"].min(), ends.min()) < 0 or smallest < 1:
            raise _damaged(place)
        if masks is not None:
            rows |= {name: batch.column(name).to_numpy() for name in MASK_DTYPES}
            mask_ends = rows["mask_offset"] + rows["mask_size"]
            if min(rows["mask_offset"].min(), mask_ends.min()) < 0 or rows["mask_size"].min() < 1:
                raise _damaged(place)
            ends = np.maximum(ends, mask_ends)
        rows["shard_id"] = shards.ids(batch.column("shard"), ends)
        unlabelled += label.null_count
        least_label = min(least_label, int(rows["label"].min()))
        last_label = max(last_label, int(rows["label"].max()))
        put_rows(start, rows)
    if count != expected:
        raise DataError(f"{place} is damaged: it does not have the {expected} rows that it says; shard again")
    if count == 0:
        raise DataError(f"{place} lists no samples")
    if unlabelled not in (0, count):
        raise DataError(f"{place}: {unlabelled} of {count} labels are missing")
    if not unlabelled and (least_label < 0 or (class_names is not None and last_label >= len(class_names))):
        raise DataError(f"{place}: a label lies outside its {len(class_names or ())} classes; shard again")
    return ManifestSummary(
        rows=count,
        labelled=not unlabelled,
        shards=tuple(shards.numbers),
        shard_lengths=tuple(shards.lengths),
        least_bytes=tuple(shards.least_bytes),
        class_names=class_names,
        masks=masks,
        pixels=_pixels(place, metadata),
    )


def _coding(place: str, metadata: Mapping[bytes, bytes]) -> MaskCoding | None:
    if MASKS_KEY not in metadata:
        return None
    try:
        return coding_from_json(json.loads(metadata[MASKS_KEY]))
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{place} is damaged: it does not say which classes its masks have; shard again") from None


def _pixels(place: str, metadata: Mapping[bytes, bytes]) -> PixelCoding | None:
    if PIXELS_KEY not in metadata:
        return None
    try:
        return pixels_from_json(json.loads(metadata[PIXELS_KEY]))
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{place} is damaged: it does not say what pixels its images have; shard again") from None


def fingerprint(summary: ManifestSummary, read_column: Callable[[str], Iterable[Any]]) -> str:
    """Return 16 hex digits that change whenever the data do; `read_column` yields a column's bytes in pieces."""
    digest = xxhash.xxh3_64(json.dumps(summary.shards).encode())
    for name in _FINGERPRINTED:
        for piece in [b"none"] if name == "label" and not summary.labelled else read_column(name):
            digest.update(piece)
    if summary.masks is not None:
        digest.update(summary.masks.to_metadata())
        for name in MASK_DTYPES:
            for piece in read_column(name):
                digest.update(piece)
    if summary.pixels is not None:
        digest.update(summary.pixels.identity.encode())
    return digest.hexdigest()


class _Shards:
    """The shards seen so far, numbered in the order of their first rows."""

    def __init__(self, place: str) -> None:
        self.numbers: dict[str, int] = {}
        self.lengths: list[int] = []
        self.least_bytes: list[int] = []
        self._place = place

    def ids(self, names: pa.DictionaryArray, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the shard numbers of the next rows, whose images end at `ends`."""
        codes = names.indices.to_numpy()
        runs = np.flatnonzero(np.diff(codes, prepend=codes[0] - 1))  # the first row of each shard
        lengths = np.diff(runs, append=len(codes))
        numbers = [self._number(name) for name in names.dictionary.take(pa.array(codes[runs])).to_pylist()]
        last_ends = np.maximum.reduceat(ends, runs).tolist()
        for number, length, end in zip(numbers, lengths.tolist(), last_ends, strict=True):
            self.lengths[number] += length
            self.least_bytes[number] = max(self.least_bytes[number], end)
        return np.repeat(np.array(numbers, np.int32), lengths)

    def _number(self, name: str | None) -> int:
        if name not in self.numbers:
            if not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
                raise DataError(f"{self._place} names the shard {name!r}, not a plain file name beside it")
            self.numbers[name] = len(self.numbers)
            self.lengths.append(0)
            self.least_bytes.append(0)
        elif self.numbers[name] != len(self.numbers) - 1:
            raise _damaged(self._place)
        return self.numbers[name]


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for group in range(file.num_row_groups):  # one call for all would fetch them all at once
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
            if len(batch):
                yield batch


def _check_types(place: str, schema: pa.Schema, columns: list[pa.Field]) -> None:
    for field in columns:
        number = schema.get_field_index(field.name)
        if number < 0:
            raise DataError(f"{place} is not a manifest: it has no column {field.name}")
        kind = schema.field(number).type
        kind = kind.value_type if field.name == "shard" and pa.types.is_dictionary(kind) else kind
        if kind != field.type:
            raise _other_type(place, field, kind)


def _other_type(place: str, want: pa.Field, kind: pa.DataType) -> DataError:
    return DataError(f"{place}: column {want.name} is {kind}, not {want.type} without nulls; shard again")


def _damaged(place: str) -> DataError:
    return DataError(f"{place} is damaged: its rows are out of order or hold impossible sizes; shard again")

"""The table of features: its columns and metadata, and its writing from parts.

Legend: N images, C channels, h x w the map of an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coma.embedding.images import ImageSet, Section
from coma.embedding.parts import Features, Part, read_part
from coma.errors import DataError
from coma.shards.files import replacing
from coma.shards.manifest.quarantine import QUARANTINE_SCHEMA

METADATA_KEY = b"coma.embed"
"""Key of the settings in the table's metadata, a JSON object."""
_ROW_GROUP_BYTES = 2**25
VECTOR, PATCHES = "vector", "patches"


@dataclass(frozen=True)
class Shape:
    """What is kept of each image."""

    channels: int
    map_shape: tuple[int, int, int] | None
    """h, w, C of its map."""
    half: bool

    @property
    def dtype(self) -> str:
        """Name of the type of all values."""
        return "float16" if self.half else "float32"

    @property
    def bytes_per_image(self) -> int:
        """Bytes of an image's features."""
        values = self.channels + (int(np.prod(self.map_shape)) if self.map_shape else 0)
        return values * (2 if self.half else 4)


@dataclass
class Written:
    """What became of the images."""

    splits: dict[str, int] = field(default_factory=dict)
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the quarantine."""

    @property
    def images(self) -> int:
        """Number of images in the table."""
        return sum(self.splits.values())


def table_of(out: Path) -> Path:
    """Return the parquet file that belongs to OUT: itself, or the one beside an .npy."""
    return out.with_suffix(".parquet")


def quarantine_of(out: Path) -> Path:
    """Return the file that lists the images that were set aside."""
    return out.with_name(f"{out.stem}.quarantine.parquet")


def schema(images: ImageSet, shape: Shape, settings: dict[str, Any], *, with_features: bool) -> pa.Schema:
    """Return the columns of the table; without features they are in an .npy beside it."""
    value = pa.float16() if shape.half else pa.float32()
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
    if images.is_labelled:
        columns += [pa.field("label", pa.int32()), pa.field("label_name", pa.string())]
    if with_features or shape.map_shape is not None:
        columns.append(pa.field(VECTOR, pa.list_(pa.field("element", value, nullable=False), shape.channels), False))
    if with_features and shape.map_shape is not None:
        columns.append(pa.field(PATCHES, pa.fixed_shape_tensor(value, shape.map_shape), nullable=False))
    return pa.schema(columns, {METADATA_KEY: json.dumps(settings, sort_keys=True).encode()})


def read_settings(table: Path) -> dict[str, Any] | None:
    """Return the settings that a table was made with; None if `coma embed` has not made it."""
    try:
        metadata = pq.read_schema(table).metadata or {}
        settings: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return settings


def read_written(out: Path) -> Written:
    """Return what became of the images of a table that is whole. Raises DataError if it is damaged."""
    quarantine = quarantine_of(out)
    with as_data_error(table_of(out)):
        counts = pq.read_table(table_of(out), columns=["split"])["split"].value_counts().to_pylist()
        rows = pq.read_table(quarantine).to_pylist() if quarantine.is_file() else []
    return Written({each["values"]: each["counts"] for each in counts}, rows)


def read_vectors(out: Path) -> npt.NDArray[np.floating[Any]]:
    """Return the vectors of a table [N, C], in the type that they are kept in. Raises DataError if it is damaged."""
    with as_data_error(table_of(out)):
        if VECTOR not in pq.read_schema(table_of(out)).names:
            vectors: npt.NDArray[np.floating[Any]] = np.load(out, mmap_mode="r")
            return vectors
        column = pq.read_table(table_of(out), columns=[VECTOR])[VECTOR].combine_chunks()
    values: npt.NDArray[np.floating[Any]] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


@contextmanager
def as_data_error(path: Path) -> Iterator[None]:
    """Raise a DataError in place of what pyarrow and the system say of `path`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({str(error).splitlines()[0]}): remove it, and embed again") from None


def write_table(
    out: Path, images: ImageSet, parts: Sequence[Part], work: Path, shape: Shape, settings: dict[str, Any]
) -> Written:
    """Write OUT from all parts, whole or not at all, and the list of what was set aside.

    Raises:
        DataError: a part is damaged, or no image is good.
    """
    written = Written()
    in_npy = out.suffix.lower() == ".npy"
    columns = schema(images, shape, settings, with_features=not in_npy)
    with ExitStack() as stack:
        array = _Npy(stack.enter_context(replacing(out)), shape) if in_npy else None  # put into place last
        file = stack.enter_context(replacing(table_of(out)))
        compression = dict.fromkeys(("key", "path", "split", "label", "label_name"), "zstd")
        options: dict[str, Any] = {"use_dictionary": ["split", "label_name"], "compression": compression}
        groups = _RowGroups(stack.enter_context(pq.ParquetWriter(file, columns, **options)))
        for part in parts:
            features, section = read_part(work / part.name), images.sections[part.section]
            written.set_aside += _set_aside(section, features)
            if not len(features.samples):
                continue
            if array is not None:
                array.add(features.vectors if features.maps is None else features.maps)
            groups.add(_rows(section, features, columns))
            written.splits[section.split] = written.splits.get(section.split, 0) + len(features.samples)
        if not written.images:
            first = written.set_aside[0]
            raise DataError(
                f"none of the {len(images):,} images of {images.place} can be embedded, such as {first['path']} "
                f"({first['reason']})"
            )
        groups.write()
        if array is not None:
            array.finish(written.images)
        _write_quarantine(quarantine_of(out), written.set_aside)
    return written


def _rows(section: Section, features: Features, columns: pa.Schema) -> pa.Table:
    """Return the rows of a part."""
    samples = features.samples
    labels = section.labels(samples)
    names = section.class_names
    values: dict[str, Any] = {
        "key": section.keys(samples),
        "path": section.paths(samples),
        "split": [section.split] * len(samples),
        "label": labels,
        "label_name": [None if label is None or names is None else names[label] for label in labels],
    }
    arrays = []
    for field_ in columns:
        if field_.name == VECTOR:
            arrays.append(_lists(features.vectors, field_.type))
        elif field_.name == PATCHES:
            assert features.maps is not None
            arrays.append(pa.ExtensionArray.from_storage(field_.type, _lists(features.maps, field_.type.storage_type)))
        else:
            arrays.append(pa.array(values[field_.name], field_.type))
    return pa.Table.from_arrays(arrays, schema=columns)


def _lists(values: npt.NDArray[Any], kind: Any) -> pa.Array:
    """Return an array of n lists of equal length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), type=kind)


def _set_aside(section: Section, features: Features) -> list[dict[str, Any]]:
    rows = sorted(features.damaged)
    if not rows:
        return []
    return [
        {"path": path, "reason": features.damaged[row], "bytes": size}
        for row, path, size in zip(rows, section.paths(rows), section.sizes(rows), strict=True)
    ]


def _write_quarantine(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the images that were set aside; without any, remove the list of an earlier table."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA), file)


class _RowGroups:
    """Row groups of a table, each of several parts."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        """Take the rows of a part, and write those that wait if they are enough."""
        self._waiting.append(rows)
        if sum(table.nbytes for table in self._waiting) >= _ROW_GROUP_BYTES:
            self.write()

    def write(self) -> None:
        """Write all rows that wait."""
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._writer.write_table(table, row_group_size=len(table))
            self._waiting = []


class _Npy:
    """An array that grows by rows, whose number its header has in the end."""

    def __init__(self, file: BinaryIO, shape: Shape) -> None:
        self._file, self._shape = file, shape
        self._header(2**62)  # as long as any

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Append rows."""
        self._file.write(np.ascontiguousarray(rows).data)

    def finish(self, rows: int) -> None:
        """Write the header."""
        self._file.seek(0)
        self._header(rows)

    def _header(self, rows: int) -> None:
        shape = (rows, *(self._shape.map_shape or (self._shape.channels,)))
        described = {"descr": np.dtype(self._shape.dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, described)

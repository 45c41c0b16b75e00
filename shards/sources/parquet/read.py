"""Reading of untrusted parquet files. Runs only in the process of `coma.shards.sources.parquet.sandbox`.

Arrow allocates what a page's header claims before it reads the page; claims that cannot be checked beforehand end in a
MemoryError there.
"""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coma.errors import ComaError, DataError
from coma.shards.files import replacing
from coma.shards.images.foreign import HEAD_BYTES, foreign_file
from coma.shards.sources.listing import printable

MEMORY_BYTES = 880 << 20
"""Memory for reading beyond what the process has at its start, which keeps it under 1 GiB."""

_MAX_FOOTER_BYTES = 64 << 20
_MAX_COLUMNS = 10_000
_MAX_TEXT = 1 << 16  # characters of a path or a label
_FREE_ROWS = 1 << 16  # rows that a file may have whatever its size
_FREE_BYTES = 256 << 20  # bytes that images may unpack to whatever the file's size
_MAX_EXPANSION = 100  # images hardly compress
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 4096
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
_BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())
_LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_BUFFER_BYTES = 1 << 20  # makes Arrow read pages as they are needed instead of whole row groups


@dataclass(frozen=True)
class Contents:
    """What a parquet file says it holds."""

    kinds: dict[str, str]
    """Column ("label") or member of a struct ("image.bytes") → "struct", "bytes", "text", "integer", "number" (floats
    and decimals), "bool", "list of text" and so on, or the name of another type."""
    images: tuple[str, ...]
    """Columns that are images by Hugging Face's metadata."""
    classes: dict[str, tuple[str, ...]]
    """Column → class names, if the same metadata have them."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of n rows of a file."""

    lengths: npt.NDArray[np.int64]
    """[n] bytes of the column that holds the images, -1 where it is null; zeros if none was asked for."""
    values: tuple[list[Any], ...]
    """A list [n] of plain values for each column asked for: bytes as text if they are, of lists the first 2 items."""


def read_contents(file: Path) -> Iterator[Contents]:
    """Yield what the file says it holds. Raises DataError if it cannot be read, or claims the impossible."""
    with _data_errors(file), _open_parquet(file) as parquet:
        schema = parquet.schema_arrow
        kinds: dict[str, str] = {}
        for field in schema:
            for name, kind in [(field.name, _kind(field.type)), *_members(field)]:
                if name in kinds:
                    raise DataError(f"{_shown(file)} has two columns called {printable(name)}")
                kinds[name] = kind
        yield Contents(kinds, *_features((schema.metadata or {}).get(b"huggingface")))


def read_rows(file: Path, bytes_column: str | None, columns: tuple[str, ...]) -> Iterator[Rows]:
    """Yield all rows, of `bytes_column` only the lengths. Raises DataError if they cannot be read."""
    with _data_errors(file):
        for batch in _batches(file, [*columns, *([bytes_column] if bytes_column is not None else [])]):
            lengths = np.zeros(len(batch), np.int64)
            if bytes_column is not None:
                lengths = _lengths(_leaf(batch, bytes_column))
            yield Rows(lengths, tuple(_checked_values(file, _leaf(batch, column)) for column in columns))


def copy_rows(
    file: Path,
    bytes_column: str,
    lengths: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.bool_],
    target: Path,
    ending: bytes,
) -> Iterator[int]:
    """Write the bytes of the rows `wanted` to `target`, then `ending`; yield the bytes of rows written at a time.

    Raises DataError if the file cannot be read or the lengths differ from `lengths`; ComaError if the target cannot
    be written, and then it is absent.
    """
    try:
        with replacing(target) as out:
            for column, chosen in _checked_batches(file, bytes_column, lengths, wanted):
                yield sum(out.write(piece) for piece in _runs(column, chosen))
            out.write(ending)
    except OSError as error:
        raise ComaError(
            f"cannot write {target}: {error.strerror or error}; what is done is kept, and the same command "
            "resumes from it"
        ) from None


def _shown(file: Path) -> str:
    return printable(str(file))


def _checked_batches(
    file: Path, bytes_column: str, lengths: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]
) -> Iterator[tuple[pa.Array, npt.NDArray[np.bool_]]]:
    """Yield batches of a column, each with the part of `wanted` for it. Raises DataError if the lengths differ."""
    at = 0
    with _data_errors(file):
        for batch in _batches(file, [bytes_column]):
            column = _leaf(batch, bytes_column)
            now = slice(at, at + len(batch))
            if not np.array_equal(_lengths(column), lengths[now]):
                break
            yield column, wanted[now]
            at = now.stop
        if at != len(lengths):
            raise DataError(f"{_shown(file)} was changed while its images were read; run the command again")


@contextmanager
def _data_errors(file: Path) -> Iterator[None]:
    """Raise Arrow's errors as DataErrors of one line."""
    try:
        yield
    except ComaError:
        raise
    except Exception as error:
        lines = str(error).splitlines()
        message = lines[0] if lines else type(error).__name__
        if isinstance(error, MemoryError) or "bad_alloc" in message:
            raise DataError(
                f"{_shown(file)} takes more than the limit of {MEMORY_BYTES >> 20} MiB of memory to read: it lies "
                "about its sizes, or its row groups are too large; if it is sound, write it anew with fewer rows "
                "per group"
            ) from None
        raise DataError(f"{_shown(file)} cannot be read as parquet: {message[:200]}") from None


@contextmanager
def _open_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{_shown(file)} is not a regular file")
    size = status.st_size
    with file.open("rb") as whole:
        head = whole.read(HEAD_BYTES)
        whole.seek(max(0, size - 8))
        tail = whole.read(8)
    footer_bytes = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != b"PAR1":
        raise DataError(f"{_shown(file)} is {_no_parquet(head, tail)}")
    if footer_bytes > min(size, _MAX_FOOTER_BYTES):
        raise DataError(
            f"{_shown(file)} claims {footer_bytes:,} bytes of metadata; it has {size:,}, and the limit is "
            f"{_MAX_FOOTER_BYTES:,}"
        )
    with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as parquet:
        if parquet.metadata.num_columns > _MAX_COLUMNS:
            raise DataError(
                f"{_shown(file)} has {parquet.metadata.num_columns:,} columns; the limit is {_MAX_COLUMNS:,}"
            )
        if not 0 <= parquet.metadata.num_rows <= size + _FREE_ROWS:
            raise DataError(
                f"{_shown(file)} claims {parquet.metadata.num_rows:,} rows in {size:,} bytes, which is impossible"
            )
        yield parquet


def _no_parquet(head: bytes, tail: bytes) -> str:
    """Say what a file is instead of parquet."""
    if head.startswith(b"PARE") or tail.endswith(b"PARE"):
        return "encrypted; write it anew without encryption"
    if head.startswith(b"PAR1"):
        return "cut short: it begins as a parquet file but does not end as one; fetch it again"
    return foreign_file(head) or "not a parquet file"


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns and struct members of all rows, some megabytes at a time."""
    with _open_parquet(file) as parquet:
        metadata = parquet.metadata
        leaves = [
            i
            for i in range(metadata.num_columns)
            if any(f"{metadata.schema.column(i).path}.".startswith(f"{column}.") for column in columns)
        ]
        most_bytes = _MAX_EXPANSION * file.stat().st_size + _FREE_BYTES
        unpacked_bytes = seen = 0
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            claimed_bytes = sum(row_group.column(leaf).total_uncompressed_size for leaf in leaves)
            row_bytes = max(1, claimed_bytes // max(1, row_group.num_rows))
            for batch in parquet.iter_batches(
                batch_size=min(_BATCH_ROWS, max(1, _BATCH_BYTES // row_bytes)),
                row_groups=[group],
                columns=columns,
                use_threads=False,
            ):
                unpacked_bytes += batch.nbytes
                seen += len(batch)
                if unpacked_bytes > most_bytes:
                    raise DataError(
                        f"{_shown(file)} unpacks to more than {most_bytes:,} bytes, {_MAX_EXPANSION} times its "
                        "size; images do not compress that much"
                    )
                if seen > metadata.num_rows:
                    break
                yield batch
        if seen != metadata.num_rows:
            raise DataError(f"{_shown(file)} is damaged: it claims {metadata.num_rows:,} rows, and has {seen:,}")


def _members(field: pa.Field) -> list[tuple[str, str]]:
    """Return the members of a struct, or of structs in a list, with their kinds."""
    if pa.types.is_struct(field.type):
        return [(f"{field.name}.{member.name}", _kind(member.type)) for member in field.type]
    if _is_list(field.type) and pa.types.is_struct(field.type.value_type):
        return [(f"{field.name}.{member.name}", "several values for an image") for member in field.type.value_type]
    return []


def _is_list(arrow_type: pa.DataType) -> bool:
    return any(is_list(arrow_type) for is_list in _LIST_TYPES)


def _kind(arrow_type: pa.DataType) -> str:
    if pa.types.is_dictionary(arrow_type):
        kind = _kind(arrow_type.value_type)
        return kind if kind in ("integer", "number", "bool", "text") else f"dictionary of {kind}"
    if pa.types.is_struct(arrow_type):
        return "struct"
    if pa.types.is_integer(arrow_type):
        return "integer"
    if pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type):
        return "number"
    if pa.types.is_boolean(arrow_type):
        return "bool"
    if arrow_type in _TEXT_TYPES:
        return "text"
    if arrow_type in _BYTES_TYPES:
        return "bytes"
    if _is_list(arrow_type):
        return f"list of {_kind(arrow_type.value_type)}"
    return printable(str(arrow_type))[:60]


def _features(metadata: bytes | None) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the columns that are images, and the class names, from Hugging Face's metadata."""
    try:
        features = json.loads(metadata or b"{}")["info"]["features"].items()
        kinds = {name: feature for name, feature in features if isinstance(feature, dict | list)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return (), {}
    images = tuple(
        name for name, feature in kinds.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    )
    return images, {name: names for top, feature in kinds.items() for name, names in _class_names(top, feature)}


def _class_names(column: str, feature: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield column and class names of a ClassLabel, also if it is in a sequence or a member of a struct."""
    while isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        feature = feature.get("feature")
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    if not isinstance(feature, dict):
        return
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        yield column, tuple(map(str, feature["names"]))
    elif "." not in column and not isinstance(feature.get("_type"), str):
        for member, below in feature.items():
            yield from _class_names(f"{column}.{member}", below)


def _leaf(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column, or a member of a struct, which is null where the struct is."""
    if name in batch.schema.names:
        column = batch.column(name)
    else:
        top, _, member = name.rpartition(".")
        struct = batch.column(top)
        column = struct.flatten()[struct.type.get_field_index(member)]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(column.type) else column


def _lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return the bytes [n] of each value, -1 for a null, from the buffers (Arrow's own function imports pandas)."""
    lengths = np.diff(_offsets(column)).astype(np.int64)
    if column.null_count:
        bits = np.frombuffer(column.buffers()[0], np.uint8)
        valid = np.unpackbits(bits, bitorder="little")[column.offset :][: len(column)]
        lengths[valid == 0] = -1
    return lengths


def _offsets(column: pa.Array) -> npt.NDArray[np.integer[Any]]:
    """Return the offsets [n + 1] of the values in the buffer of their bytes."""
    if not len(column):
        return np.zeros(1, np.int64)
    kind = np.dtype(np.int64 if pa.types.is_large_binary(column.type) else np.int32)
    return np.frombuffer(column.buffers()[1], kind)[column.offset :][: len(column) + 1]


def _checked_values(file: Path, column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{_shown(file)} holds text that is not UTF-8: {error.object[:40]!r}") from None
    values = [_bounded(value) for value in values]
    for value in values:
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, str) and len(item) > _MAX_TEXT:
                raise DataError(f"{_shown(file)} holds a path or label of more than {_MAX_TEXT:,} characters")
    return values


def _bounded(value: Any) -> Any:
    """Return bytes as text if they are some, and no more than is needed of other bytes and of lists."""
    if isinstance(value, list):
        return list(map(_bounded, value[:2]))
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value[:_MAX_TEXT].decode()
        return value[:16]
    return value


def _runs(column: pa.Array, chosen: npt.NDArray[np.bool_]) -> Iterator[memoryview]:
    """Yield the bytes of the chosen values without copying them, adjacent values together."""
    offsets, data = _offsets(column), column.buffers()[2]
    chosen = chosen & (_lengths(column) >= 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    for first, after in edges.reshape(-1, 2):
        if offsets[after] > offsets[first]:
            yield memoryview(data)[offsets[first] : offsets[after]]

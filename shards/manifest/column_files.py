"""Memory-mapped column files for large manifests, built once per machine.

    FOLDER/columns/KEY/NAME.npy      a column; KEY identifies this version of the manifest's file
    FOLDER/columns/KEY/columns.json  the manifest's summary; its modification time is the time of its last use
    FOLDER/columns/KEY.partial/      a folder that is being written
    FOLDER/columns/lock              the lock that whoever writes or removes columns holds

The kernel reads a page of a column when it is needed, shares it among processes and drops it when memory is short.
"""

import io
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from coma.shards.files import is_remote, open_for_arrow, remove_temporaries, without_credentials, write_atomically
from coma.shards.locks import take_lock
from coma.shards.manifest.columns import (
    Array,
    Columns,
    ManifestSummary,
    columns_of,
    fingerprint,
    has_masks,
    open_parquet,
    read_columns,
    scan,
)
from coma.shards.manifest.mask_coding import coding_from_json
from coma.shards.manifest.pixel_coding import pixels_from_json

log = logging.getLogger(__name__)

LARGE_BYTES = 2**25
"""Size of a manifest file, about a million rows, from which its columns are kept as files."""
UNUSED_S = 30 * 86400.0
"""Column files that were not opened for this long are removed when others are written."""

_SUMMARY_NAME = "columns.json"
_FORMAT = "coma columns 1"
_FOOTER_END = b"PAR1"
_CHUNK_BYTES = 2**22
_VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "generation", "blob_id")  # names that stores use
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")


def default_folder() -> Path:
    """Return the cache folder: $COMA_CACHE, $XDG_CACHE_HOME/coma or ~/.cache/coma."""
    if given := os.environ.get("COMA_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coma"


def load_columns(path: Path) -> Columns:
    """Read the columns of a manifest into memory, or map them if it is large and the cache can hold them.

    Raises:
        DataError: as `scan`.
        pa.ArrowException, OSError: the file cannot be read.
    """
    with open_for_arrow(path) as source:
        key = _cache_key(path, source)
        if key is None:
            return read_columns(path, source)
        try:
            with _cache_errors():
                folder = default_folder() / "columns" / key
            return _load_mapped(folder) or _build(path, source, folder)
        except _CacheError as error:
            log.warning(
                "the columns of %s cannot be cached (%s): every start reads all of them into memory; "
                "set COMA_CACHE to another folder",
                *(without_credentials(str(path)), error),
            )
            return read_columns(path, source)


class _CacheError(Exception):
    """The cache folder cannot take the columns."""


@contextmanager
def _cache_errors() -> Iterator[None]:
    """Raise errors in the block, which come from the cache and not from the manifest, as _CacheError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise _CacheError(str(error)) from error


def _cache_key(path: Path, source: Any) -> str | None:
    """Return a name for this version of a manifest's file, or None if the file is small."""
    if is_remote(path):
        store: Any = path
        info = store.fs.info(store.path)
        size = info.get("size") or 0
        state = [without_credentials(str(path)), *(str(info.get(name)) for name in (*_VERSIONS, *_TIMES))]
    else:
        status = os.fstat(source.fileno())
        size, state = status.st_size, [str(status.st_mtime_ns), str(status.st_ino)]
    if size < LARGE_BYTES:
        return None
    source.seek(size - 8)
    end = source.read(8)
    footer_bytes = int.from_bytes(end[:4], "little") + 8
    if end[4:] != _FOOTER_END or footer_bytes > size:
        raise pa.ArrowInvalid("it does not end like a parquet file")
    source.seek(size - footer_bytes)
    digest = xxhash.xxh3_128(json.dumps([_FORMAT, size, *state]).encode())
    digest.update(source.read(footer_bytes))
    source.seek(0)
    return digest.hexdigest()


def _load_mapped(folder: Path) -> Columns | None:
    """Map the columns in a folder; return None if any is missing or of another format."""
    try:
        about = json.loads((folder / _SUMMARY_NAME).read_bytes())
        if about["format"] != _FORMAT:
            return None
        fields: dict[str, Any] = about["facts"]
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        if fields.get("masks") is not None:
            fields["masks"] = coding_from_json(fields["masks"])
        if fields.get("pixels") is not None:
            fields["pixels"] = pixels_from_json(fields["pixels"])
        summary = ManifestSummary(**fields)
        arrays = {}
        for name, dtype in summary.dtypes.items():
            # As a plain array: indexing a memmap one by one is several times slower.
            arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            if arrays[name].dtype != dtype or arrays[name].shape != (summary.rows,):
                return None
        with suppress(OSError):  # another user's cache may be read-only for us
            os.utime(folder / _SUMMARY_NAME)
        return Columns(summary, arrays, about["fingerprint"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None


def _build(path: Path, source: Any, folder: Path) -> Columns:
    """Write the column files of a manifest, unless another process has just done so, and map them."""
    with ExitStack() as stack:
        with _cache_errors():
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder.parent / "lock"))
        columns = _load_mapped(folder)
        if columns is None:
            with _cache_errors():
                _remove_unused(folder.parent)
            _write(path, source, folder)
            columns = _load_mapped(folder)
        if columns is None:
            raise _CacheError("the files vanished after they were written")
        return columns


def _write(path: Path, source: Any, folder: Path) -> None:
    began, partial = time.monotonic(), folder.with_name(folder.name + ".partial")
    try:
        with open_parquet(path, source) as file, ExitStack() as stack:
            count = file.metadata.num_rows
            dtypes = columns_of(has_masks(file))
            total_bytes = count * sum(dtype.itemsize for dtype in dtypes.values())
            log.warning(
                "writing the columns of %s to %s, once: %d samples, %.3g GB",
                *(without_credentials(str(path)), folder, count, total_bytes / 1e9),
            )
            with _cache_errors():
                _remove(partial)  # a killed process may have left one
                partial.mkdir(exist_ok=True)
                write_atomically(partial / _SUMMARY_NAME, json.dumps({"format": _FORMAT}))  # marks it as ours
                column_files = _ColumnFiles(partial, dtypes, count, stack)
            summary = scan(path, file, column_files.put)
            with _cache_errors():
                column_files.sync()
        with _cache_errors():
            if not summary.labelled:
                (partial / "label.npy").unlink()
            digest = fingerprint(summary, lambda name: _chunks(partial / f"{name}.npy"))
            about = {"format": _FORMAT, "facts": asdict(summary), "fingerprint": digest}
            write_atomically(partial / _SUMMARY_NAME, json.dumps(about))
            _remove(folder)  # an incomplete one may be there
            partial.rename(folder)
    finally:
        _remove(partial)
    log.info("wrote them in %.0f s", time.monotonic() - began)


class _ColumnFiles:
    """Columns written as .npy files by ordinary writes: a full disk raises an error, where a map would crash."""

    def __init__(self, folder: Path, dtypes: dict[str, np.dtype[Any]], rows: int, stack: ExitStack) -> None:
        self._files: dict[str, int] = {}
        for name, dtype in dtypes.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._files[name] = descriptor = os.open(folder / f"{name}.npy", flags, 0o666)
            stack.callback(_close, descriptor)
            header = io.BytesIO()
            shape = {"descr": dtype.str, "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(header, shape)
            _write_all(descriptor, header.getbuffer())

    def put(self, start: int, part: dict[str, Array]) -> None:
        """Append rows."""
        with _cache_errors():
            for name, values in part.items():
                _write_all(self._files[name], np.ascontiguousarray(values).data)

    def sync(self) -> None:
        """Flush all files to the disk."""
        for descriptor in self._files.values():
            os.fsync(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    left = data.cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _close(descriptor: int) -> None:
    with suppress(OSError):  # fsync has already reported errors that matter
        os.close(descriptor)


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as column:
        np.lib.format.read_magic(column)
        np.lib.format.read_array_header_1_0(column)
        while chunk := column.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not take_lock(descriptor):
            log.info("another process is writing columns to %s: waiting for it", path.parent)
            take_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _remove_unused(folder: Path) -> None:
    """Remove column folders that are unused or that killed processes left; other files are not touched."""
    for kept in folder.iterdir():
        about = kept / _SUMMARY_NAME
        try:
            ours = json.loads(about.read_bytes())["format"].startswith("coma columns")
            unused_s = time.time() - about.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if ours and (kept.suffix == ".partial" or unused_s > UNUSED_S):
            _remove(kept)


def _remove(folder: Path) -> None:
    """Remove a folder of columns; processes that have mapped them can still read them."""
    with suppress(OSError):
        remove_temporaries(folder)
        for name in (*(f"{name}.npy" for name in columns_of(True)), _SUMMARY_NAME):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()

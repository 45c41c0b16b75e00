"""The numbers of a large manifest as files that are mapped into memory: made once a machine, opened at once.

    FOLDER/columns/KEY/NAME.npy      a column; KEY stands for this very state of the manifest's file
    FOLDER/columns/KEY/columns.json  the rest; its time of modification says when it was last used
    FOLDER/columns/KEY.partial/      being written
    FOLDER/columns/lock              held by whoever writes or removes

A page of a column is read when it is needed, shared by all processes, and given back when memory is short.
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

from coma.shards.files import is_remote, remove_temporaries, without_credentials, write_atomically
from coma.shards.locks import take_lock
from coma.shards.manifest.columns import (
    DTYPES,
    Array,
    Columns,
    Facts,
    fingerprint,
    opened,
    parquet,
    read_columns,
    scan,
)

log = logging.getLogger(__name__)

LARGE_BYTES = 2**25
"""A manifest's file from which on its columns are kept as files: a million rows, more or less."""
UNUSED_S = 30 * 86400.0
"""Column files that nobody has opened for so long are removed when others are written."""

_ABOUT = "columns.json"
_FORMAT = "coma columns 1"
_FOOTER_END = b"PAR1"
_CHUNK_BYTES = 2**22
_VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "generation", "blob_id")  # as stores call them
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")


def default_folder() -> Path:
    """$COMA_CACHE, $XDG_CACHE_HOME/coma or ~/.cache/coma."""
    if given := os.environ.get("COMA_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coma"


def load_columns(path: Path) -> Columns:
    """The numbers of a manifest: in memory, or mapped if it is large and there is room for files.

    Raises:
        DataError: as `scan`.
        pa.ArrowException, OSError: the file cannot be read.
    """
    with opened(path) as source:
        key = _key(path, source)
        if key is None:
            return read_columns(path, source)
        try:
            with _keeping():
                folder = default_folder() / "columns" / key
            return _mapped(folder) or _made(path, source, folder)
        except _NotKeptError as error:
            log.warning(
                "the columns of %s cannot be kept as files (%s): all of them are read into memory, each time; "
                "give another folder with COMA_CACHE",
                *(without_credentials(str(path)), error),
            )
            return read_columns(path, source)


class _NotKeptError(Exception):
    """The cache folder cannot take the columns."""


@contextmanager
def _keeping() -> Iterator[None]:
    """What fails in here is the cache's fault, not the manifest's."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise _NotKeptError(str(error)) from error


def _key(path: Path, source: Any) -> str | None:
    """A name for the state of a manifest's file; None if it is a small one."""
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
        raise pa.ArrowInvalid("it does not end as a parquet file does")
    source.seek(size - footer_bytes)
    digest = xxhash.xxh3_128(json.dumps([_FORMAT, size, *state]).encode())
    digest.update(source.read(footer_bytes))
    source.seek(0)
    return digest.hexdigest()


def _mapped(folder: Path) -> Columns | None:
    """The columns in a folder; None if they are not there, or not all of them."""
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        if about["format"] != _FORMAT:
            return None
        facts = Facts(**{name: _frozen(value) for name, value in about["facts"].items()})
        arrays = {}
        for name, dtype in DTYPES.items():
            if name != "label" or facts.labelled:
                # A plain array: indexing a memmap one by one is several times slower.
                arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
                if arrays[name].dtype != dtype or arrays[name].shape != (facts.rows,):
                    return None
        with suppress(OSError):  # another user's cache may be read-only for us
            os.utime(folder / _ABOUT)
        return Columns(facts, arrays, about["fingerprint"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _made(path: Path, source: Any, folder: Path) -> Columns:
    """Make the folder of a manifest's columns, unless another process does."""
    with ExitStack() as stack:
        with _keeping():
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder.parent / "lock"))
        found = _mapped(folder)
        if found is None:
            with _keeping():
                _remove_unused(folder.parent)
            _write(path, source, folder)
            found = _mapped(folder)
        if found is None:
            raise _NotKeptError("they are not there any more once they are written")
        return found


def _write(path: Path, source: Any, folder: Path) -> None:
    began, partial = time.monotonic(), folder.with_name(folder.name + ".partial")
    try:
        with parquet(path, source) as file, ExitStack() as stack:
            count = file.metadata.num_rows
            total_bytes = count * sum(dtype.itemsize for dtype in DTYPES.values())
            log.warning(
                "writing the columns of %s to %s, once: %d samples, %.3g GB",
                *(without_credentials(str(path)), folder, count, total_bytes / 1e9),
            )
            with _keeping():
                _remove(partial)  # what a killed process left
                partial.mkdir(exist_ok=True)
                write_atomically(partial / _ABOUT, json.dumps({"format": _FORMAT}))  # ours, whatever happens
                rows = _OnDisk(partial, count, stack)
            facts = scan(path, file, rows)
            with _keeping():
                rows.sync()
        with _keeping():
            if not facts.labelled:
                (partial / "label.npy").unlink()
            digest = fingerprint(facts, lambda name: _chunks(partial / f"{name}.npy"))
            about = {"format": _FORMAT, "facts": asdict(facts), "fingerprint": digest}
            write_atomically(partial / _ABOUT, json.dumps(about))
            _remove(folder)  # what was cut short
            partial.rename(folder)
    finally:
        _remove(partial)
    log.info("wrote them in %.0f s", time.monotonic() - began)


class _OnDisk:
    """Rows as files in numpy's format, by ordinary writes: a full disk is an error, where a map would crash."""

    def __init__(self, folder: Path, rows: int, stack: ExitStack) -> None:
        self._files: dict[str, int] = {}
        for name, dtype in DTYPES.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._files[name] = descriptor = os.open(folder / f"{name}.npy", flags, 0o666)
            stack.callback(_close, descriptor)
            header = io.BytesIO()
            shape = {"descr": dtype.str, "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(header, shape)
            _write_all(descriptor, header.getbuffer())

    def put(self, start: int, part: dict[str, Array]) -> None:
        """Append them."""
        with _keeping():
            for name, values in part.items():
                _write_all(self._files[name], np.ascontiguousarray(values).data)

    def sync(self) -> None:
        """Wait until the disk has them."""
        for descriptor in self._files.values():
            os.fsync(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    left = data.cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _close(descriptor: int) -> None:
    with suppress(OSError):  # what matters was said by fsync
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
    """Remove columns that nobody uses any more, and what killed processes left; nothing that is not ours."""
    for kept in folder.iterdir():
        about = kept / _ABOUT
        try:
            ours = json.loads(about.read_bytes())["format"].startswith("coma columns")
            unused_s = time.time() - about.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if ours and (kept.suffix == ".partial" or unused_s > UNUSED_S):
            _remove(kept)


def _remove(folder: Path) -> None:
    """Remove a folder of columns. Who has them mapped can go on reading."""
    with suppress(OSError):
        remove_temporaries(folder)
        for name in (*(f"{name}.npy" for name in DTYPES), _ABOUT):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
